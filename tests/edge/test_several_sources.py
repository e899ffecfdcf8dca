# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process with several sources, one of which misbehaves while VMs are served."""

from __future__ import annotations

import contextlib
import os
import pty
import threading
import tty
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.edge.rig import PATIENCE_S, Guest, Hostd, wait_for
from tests.streams import assert_disjoint, stream

ZEROS = bytes(16)
ENDLESS = 1 << 40  # bytes: until it is told otherwise
RECOVERED_S = 120.0  # a source that has failed is tried again after a minute at the latest
LENGTH = 4_000_000  # of each stream: more than is read on a slow machine
A, B = stream(LENGTH, b"a"), stream(LENGTH, b"b")


class Tap(threading.Thread):
    """Writes a stream into a descriptor at about 50 kB/s; zeros in its place, or nothing, while told so."""

    def __init__(self, fd: int, data: bytes) -> None:
        super().__init__(daemon=True)
        self._fd = fd
        self._data = memoryview(data)
        self._end = threading.Event()
        self._lock = threading.Lock()  # a piece is written and counted, or not begun
        self._zeros = 0
        self.silent = False
        self.size = 500  # bytes at a time
        self.start()

    def run(self) -> None:
        while not self._end.wait(0.01):
            if not self.silent:
                with self._lock, contextlib.suppress(BlockingIOError):
                    self._write()

    def _write(self) -> None:
        if self._zeros:
            self._zeros -= os.write(self._fd, bytes(min(self._zeros, self.size)))
        else:
            self._data = self._data[os.write(self._fd, self._data[: self.size]) :]

    def give_zeros(self, n_bytes: int) -> None:
        """So many next."""
        with self._lock:
            self._zeros = n_bytes

    def stop(self) -> None:
        self._end.set()
        self.join()


@contextlib.contextmanager
def fifo(path: Path, data: bytes) -> Iterator[Tap]:
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # its own reader, so that it never sees EPIPE
    tap = Tap(fd, data)
    try:
        yield tap
    finally:
        tap.stop()
        os.close(fd)


@contextlib.contextmanager
def terminal(data: bytes) -> Iterator[tuple[Tap, str]]:
    """A character device whose read() blocks, for ever, while the tap is silent."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    tap = Tap(master, data)
    try:
        yield tap, os.ttyname(slave)
    finally:
        tap.stop()
        os.close(slave)
        os.close(master)


@contextlib.contextmanager
def served(folder: Path, config: str) -> Iterator[tuple[Hostd, Guest]]:
    guest = Guest(folder / "vm.sock")
    head = f'[libvirt]\nuris = []\n[[channel]]\nname = "vm"\npath = "{folder}/vm.sock"\n'
    try:
        with Hostd(folder, head + config) as hostd:
            hostd.start()
            yield hostd, guest
            assert "Traceback" not in hostd.log
    finally:
        guest.close()


def source(name: str, path: object, kind: str = "fifo", more: str = "", stall_s: float = PATIENCE_S) -> str:
    """``stall_s``: a busy machine lets a good source be silent for seconds."""
    described = f'name = "{name}"\nkind = "{kind}"\npath = "{path}"\nstall_timeout = {stall_s}'
    return f"[[source]]\n{described}\n{more}\n"


def two(folder: Path, sources: str = "") -> str:
    return source("a", folder / "a") + source("b", folder / "b") + sources


def by_name(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in status["sources"]}


def wait_until_serving(hostd: Hostd, *names: str) -> None:
    def serving() -> bool:
        return [name for name, item in by_name(hostd.status()).items() if item["serving"]] == list(names)

    wait_for(serving, f"served from {names}, in {hostd.log}", RECOVERED_S)


def wait_for_state(hostd: Hostd, name: str, *expected: str) -> None:
    """Until the source is in that state, with that detail if one is given."""

    def shown() -> bool:
        told = by_name(hostd.status())[name]
        return (told["state"], told["detail"])[: len(expected)] == expected

    wait_for(shown, f"{name}: {expected}, in {hostd.log}")


def origins(hostd: Hostd) -> Callable[[str], int]:
    """How many bytes more of an origin the VM was sent since."""
    before = hostd.domain("vm").get("origins", {})
    return lambda name: int(hostd.domain("vm").get("origins", {}).get(name, 0) - before.get(name, 0))


def wait_for_more_of(hostd: Hostd, name: str, n_bytes: int = 2_000) -> None:
    more = origins(hostd)
    wait_for(lambda: more(name) >= n_bytes, f"{n_bytes} bytes of {name}, in {hostd.log}")


def assert_ledger(hostd: Hostd) -> dict[str, Any]:
    status = hostd.status()
    assert status["ledger_ok"]
    (domain,) = status["domains"]
    assert sum(domain["origins"].values()) == domain["bytes_sent"]
    return status


def test_failover_zeros_reach_nobody_the_other_serves_and_the_better_one_comes_back(tmp_path: Path) -> None:
    with (
        fifo(tmp_path / "a", A) as better,
        fifo(tmp_path / "b", B),
        served(tmp_path, two(tmp_path)) as (hostd, guest),
    ):
        wait_until_serving(hostd, "a")
        wait_for_more_of(hostd, "a")
        wait_for_state(hostd, "b", "healthy")  # else there is nobody who could take over
        changed = "failover: VMs are served from the source b"
        before = hostd.log.count(changed)  # once already, if b was healthy first
        better.give_zeros(300)  # in one window, or in two that adjoin: one alarm or two
        wait_for_more_of(hostd, "b")
        assert hostd.log.count("source a: health test alarm: ") in (1, 2)
        assert hostd.log.count(changed) == before + 1
        wait_until_serving(hostd, "a")
        wait_for_more_of(hostd, "a")
        status = assert_ledger(hostd)
        assert hostd.stop() == 0
        assert by_name(status)["a"]["bytes_sent"] > 4_000
        taken = bytes(guest.taken)  # the last of it may be on its way
        assert ZEROS not in taken
        assert assert_disjoint(A + B, [taken]) > 0.95 * len(taken)


def test_a_rate_that_drops_to_a_tenth_is_no_failure_and_what_is_promised_follows_it(tmp_path: Path) -> None:
    quota = '[[quota]]\nname = "vm"\nmatch = ["vm"]\nreservation = "8kB/s"\n'
    with (
        fifo(tmp_path / "a", A) as slow,
        fifo(tmp_path / "b", B),
        served(tmp_path, two(tmp_path, quota)) as (hostd, _guest),
    ):

        def wait_for_verdict(verdict: str) -> dict[str, Any]:
            """The status that shows it. A capacity is the mean of ten seconds, or more on a busy machine."""

            def shown() -> dict[str, Any] | None:
                status = hostd.status()
                return status if [d["admission"] for d in status["domains"]] == [verdict] else None

            found: dict[str, Any] = wait_for(shown, f"{verdict}, in {hostd.log}")
            return found

        wait_until_serving(hostd, "a")
        wait_for_verdict("promised")
        slow.size = 50
        told = by_name(wait_for_verdict("shrunk"))["a"]
        assert (told["state"], told["serving"]) == ("healthy", True)
        assert told["capacity"] < 8_900
        assert "netrng.admission: the source gives " in hostd.log
        wait_for_more_of(hostd, "a")
        slow.size = 500
        wait_for_verdict("promised")
        assert_ledger(hostd)


def test_a_read_that_never_returns_is_left_behind_and_what_it_brings_later_goes_nowhere(
    tmp_path: Path,
) -> None:
    with terminal(A) as (better, path), fifo(tmp_path / "b", B):
        config = source("a", path, "device", stall_s=3.0) + source("b", tmp_path / "b")
        with served(tmp_path, config) as (hostd, guest):
            wait_until_serving(hostd, "a")
            wait_for_more_of(hostd, "a")
            better.silent = True
            wait_for_state(
                hostd, "a", "stalled", f"a read of {path} has not returned for 3 s; it is left behind"
            )
            wait_for_more_of(hostd, "b")
            better.silent = False
            wait_until_serving(hostd, "a")
            wait_for_more_of(hostd, "a")
            assert_ledger(hostd)
            better.silent = True
            wait_for_state(hostd, "a", "stalled")
            assert hostd.stop() == 0, "a thread that hangs does not keep the process"
            assert f"a read of {path} does not return; it is left behind" in hostd.log
        assert assert_disjoint(A + B, [bytes(guest.taken)]) > 0.95 * len(guest.taken)


def test_combine_adds_up_and_one_that_fails_takes_nothing_of_the_other_along(tmp_path: Path) -> None:
    config = two(tmp_path, '[sources]\npolicy = "combine"\n')
    with (
        fifo(tmp_path / "a", A) as failing,
        fifo(tmp_path / "b", B),
        served(tmp_path, config) as (hostd, guest),
    ):
        wait_until_serving(hostd, "a", "b")
        wait_for_more_of(hostd, "a")
        wait_for_more_of(hostd, "b")
        destroyed = by_name(hostd.status())["b"]["bytes_discarded"]
        failing.give_zeros(ENDLESS)
        wait_for_state(hostd, "a", "failed")
        wait_until_serving(hostd, "b")
        wait_for_more_of(hostd, "b")
        status = assert_ledger(hostd)
        assert by_name(status)["b"]["bytes_discarded"] - destroyed < 65_536  # a probe's, at most
        failing.give_zeros(0)
        wait_until_serving(hostd, "a", "b")
        assert hostd.stop() == 0
        taken = bytes(guest.taken)
        assert ZEROS not in taken
        assert assert_disjoint(A + B, [taken]) > 0.9 * len(taken)


def test_xor_mixes_and_gives_nothing_while_one_is_missing(tmp_path: Path) -> None:
    config = two(tmp_path, '[sources]\npolicy = "xor"\n')
    with (
        fifo(tmp_path / "a", A) as missing,
        fifo(tmp_path / "b", B),
        served(tmp_path, config) as (hostd, guest),
    ):
        wait_until_serving(hostd, "a", "b")
        wait_for_more_of(hostd, "a+b")
        missing.give_zeros(ENDLESS)
        wait_until_serving(hostd)
        assert "xor: nothing is given out: of 2 sources that count 1 are healthy, and 2 are" in hostd.log
        sent = hostd.domain("vm")["bytes_sent"]
        wait_for_state(hostd, "a", "failed")
        assert hostd.domain("vm")["bytes_sent"] == sent
        missing.give_zeros(0)
        wait_until_serving(hostd, "a", "b")
        wait_for_more_of(hostd, "a+b")
        status = assert_ledger(hostd)
        (domain,) = status["domains"]
        assert set(domain["origins"]) == {"a+b"}
        assert hostd.stop() == 0
        taken = bytes(guest.taken)
        for start in range(0, len(taken) - 8, 64):
            assert taken[start : start + 8] not in A
            assert taken[start : start + 8] not in B


def test_one_without_credit_is_mixed_in_and_counts_for_nothing(tmp_path: Path) -> None:
    extra = source("kernel", "/dev/urandom", "prng", "credit = false") + '[sources]\npolicy = "xor"\n'
    with (
        fifo(tmp_path / "a", A),
        fifo(tmp_path / "b", B) as missing,
        served(tmp_path, two(tmp_path, extra)) as (hostd, _guest),
    ):
        wait_until_serving(hostd, "a", "b", "kernel")
        wait_for_more_of(hostd, "a+b+kernel")
        missing.give_zeros(ENDLESS)
        wait_until_serving(hostd)
        assert not by_name(hostd.status())["kernel"]["credit"]


def test_all_bad_nothing_is_given_out_and_it_goes_on_by_itself(tmp_path: Path) -> None:
    with (
        fifo(tmp_path / "a", A) as first,
        fifo(tmp_path / "b", B) as second,
        served(tmp_path, two(tmp_path)) as (hostd, guest),
    ):
        wait_for_more_of(hostd, "a")
        for tap in (first, second):
            tap.give_zeros(ENDLESS)

        def states() -> set[str]:
            return {item["state"] for item in by_name(hostd.status()).values()}

        wait_for(lambda: states() == {"failed"}, "both quarantined")
        sent = hostd.domain("vm")["bytes_sent"]
        assert hostd.status()["reservoir"]["stored"] == 0
        # An alarm that found a sample half written has ended the connection: there is a next one.
        wait_for(lambda: hostd.domain("vm")["state"] == "open", "the session is kept, or begun anew")
        assert hostd.domain("vm")["bytes_sent"] == sent
        for tap in (first, second):
            tap.give_zeros(0)
        wait_for(lambda: hostd.domain("vm")["bytes_sent"] > sent, "served again", RECOVERED_S)
        assert_ledger(hostd)
        assert ZEROS not in guest.taken


def test_a_source_that_carries_less_is_compressed(tmp_path: Path) -> None:
    with (
        fifo(tmp_path / "a", A),
        served(tmp_path, source("a", tmp_path / "a", more="min_entropy = 4.0")) as (hostd, guest),
    ):
        wait_for_more_of(hostd, "a", 8_000)
        state = by_name(assert_ledger(hostd))["a"]
        # 80 noise bytes for each 32; what is stored makes it more.
        assert state["bytes_conditioned"] >= state["bytes_sent"] * 48 // 32
        assert hostd.stop() == 0
        pieces = {bytes(guest.taken[start : start + 32]) for start in range(len(guest.taken))}
        # Where the first block begins is not known; some are in the seed reserve, some are cut in two.
        # Who was late has not got the first of all: a probe's newer bytes have taken their place.
        digests = (sha256(A[start : start + 80]).digest() for start in range(400_000))
        assert sum(digest in pieces for digest in digests) > 10
