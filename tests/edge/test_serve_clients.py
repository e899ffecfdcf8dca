# SPDX-License-Identifier: Apache-2.0
"""Who comes to a [[serve]] of a real netrng-hostd: other people's EGD clients, and some that misbehave.

EntropyBroker and ekeyd-egd-linux are Debian's, unpacked into the cache and never installed.  What they did:

eb_server_egd (EntropyBroker 2.9)  asks with command 1 alone, for what its buffer of 4096 bytes lacks, at most
    255; takes answers that are shorter; and writes the 4096 bytes out, or gives them to its broker, each
    interval (-b).
ekeyd-egd-linux 1.1.5  connects over TCP and polls /dev/random for POLLOUT before it asks.  A modern kernel
    (here 6.18) says POLLOUT only until its pool is initialised once (random_poll() in drivers/char/random.c):
    from then on it stays connected, asks for nothing, and is given nothing.  Where it is told
    POLLOUT it asks with command 2, `-b` times for 128 bytes, and credits what comes piece by piece.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from bed import entropy_broker
from bed.packages import package
from tests.edge.egd_ends import (
    Asker,
    askers,
    connected,
    received,
    relay,
    section,
    tcp_listener,
    unix_listener,
)
from tests.edge.rig import PATIENCE_S, Guest, Hostd, fed_fifo, wait_for
from tests.streams import assert_disjoint, stream

LOOPBACK = entropy_broker.loopback()
DATA = stream(8_000_000)
RATE = 150_000  # bytes per second of the source


def config(folder: Path, *names: str, more: str = "") -> str:
    source = f'[[source]]\nname = "test"\nkind = "prng"\npath = "{folder}/fifo"\n'
    return "[libvirt]\nuris = []\n" + more + source + "".join(section(name, folder) for name in names)


def channel(name: str, folder: Path) -> str:
    return f'[[channel]]\nname = "{name}"\npath = "{folder / name}.sock"\n'


def quota(match: str, **settings: str | int) -> str:
    lines = "".join(f"{key} = {value!r}\n" for key, value in settings.items())
    return f'[[quota]]\nname = "{match.replace(":", "-").strip("-*")}"\nmatch = ["{match}"]\n{lines}'


def served(hostd: Hostd, name: str) -> dict[str, Any]:
    return hostd.domain(f"serve:{name}")


def wait_until_listening(hostd: Hostd, *names: str) -> None:
    for name in names:
        wait_for(functools.partial(_listens, hostd, name), f"{name} listens")


def _listens(hostd: Hostd, name: str) -> bool:
    return bool(served(hostd, name)["state"] == "listening")


@contextlib.contextmanager
def running(folder: Path, *names: str, rate: int = RATE, more: str = "") -> Iterator[Hostd]:
    """A daemon that serves them all; at the end its books have to be right."""
    with fed_fifo(folder / "fifo", DATA, rate), Hostd(folder, config(folder, *names, more=more)) as hostd:
        hostd.start()
        wait_until_listening(hostd, *names)
        yield hostd
        assert hostd.status()["ledger_ok"]
        assert hostd.stop() == 0
        assert "Traceback" not in hostd.log and "ERROR" not in hostd.log


def assert_from_the_source(*pieces: bytes) -> None:
    """All of it, and nothing twice; a few bytes where two parts of the stream meet cannot be told."""
    assert assert_disjoint(DATA, pieces) > 0.99 * sum(map(len, pieces))


def egd(folder: Path, name: str) -> Path:
    return folder / f"{name}.egd"


# EntropyBroker


@contextlib.contextmanager
def eb_server_egd(folder: Path, path: Path) -> Iterator[Path]:
    """The file that it writes into."""
    password, out = folder / "password", folder / "eb.out"
    password.touch(0o600)
    password.write_text("of\nnobody\n")  # it wants one, and a mode, without a broker as well
    own = ("-n", "-P", str(folder / "eb.pid"), "-X", str(password), "-a", "1000", "-b", "1")
    command = [entropy_broker.program("eb_server_egd"), *own, "-d", str(path), "-o", str(out)]
    with (
        (folder / "eb.log").open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            yield out
            assert process.poll() is None, (folder / "eb.log").read_text()
        finally:
            process.kill()


def answers(said: bytes) -> tuple[list[int], bytes]:
    """To command 1: how long each was, and all their bytes."""
    lengths, data, place = [], bytearray(), 0
    while place < len(said):
        lengths.append(said[place])
        data += said[place + 1 : place + 1 + said[place]]
        place += 1 + said[place]
    return lengths, bytes(data)


def test_entropy_brokers_egd_client(tmp_path: Path) -> None:
    """Beside another client there, and one of another [[serve]]."""
    with running(tmp_path, "a", "b") as hostd:
        with (
            askers(egd(tmp_path, "a"), egd(tmp_path, "b")) as others,
            relay(egd(tmp_path, "a"), unix_listener(tmp_path / "relay")) as between,
            eb_server_egd(tmp_path, tmp_path / "relay") as out,
        ):
            wait_for(lambda: out.exists() and out.stat().st_size >= 4096, "a buffer full")
            wait_for(lambda: all(len(other.taken) > 2000 for other in others), "the others served")
            written = out.read_bytes()
        commands = bytes(between.asked)
        assert set(commands[::2]) == {1}, commands
        _, got = answers(bytes(between.answered))
        assert got.startswith(written)
        assert_from_the_source(got, *(bytes(other.taken) for other in others))
        # What was in a socket when its reader left counts as sent: EGD knows no better.
        sent = served(hostd, "a")["bytes_sent"]
        here = len(got) + len(others[0].taken)
        assert here <= sent <= here + 2 * 65536
        assert served(hostd, "a")["bytes_acked"] is None


def test_entropy_brokers_egd_client_goes_on_after_empty_answers(tmp_path: Path) -> None:
    """Which it gets where its [[serve]] may give little, and another client there asks as well."""
    little = quota("serve:a", limit=200, burst=64)
    with (
        running(tmp_path, "a", more=little),
        askers(egd(tmp_path, "a")) as (other,),
        relay(egd(tmp_path, "a"), unix_listener(tmp_path / "relay")) as between,
        eb_server_egd(tmp_path, tmp_path / "relay"),
    ):

        def went_on() -> bool:
            lengths, _ = answers(bytes(between.answered))
            return any(lengths[lengths.index(0) :]) if 0 in lengths else False

        wait_for(went_on, "an empty answer, and one that is not")
        _, got = answers(bytes(between.answered))
        assert_from_the_source(got, bytes(other.taken))


def test_the_counts_of_one_who_waits_for_its_answers_fit_to_a_byte(tmp_path: Path) -> None:
    with running(tmp_path, "a") as hostd, contextlib.closing(connected(egd(tmp_path, "a"))) as sock:
        got = b""
        for n_bytes in (1, 32, 255, 255):
            sock.sendall(bytes((2, n_bytes)))
            got += received(sock, n_bytes)
        sock.sendall(b"\x01\xff")
        (count,) = received(sock, 1)
        got += received(sock, count)
        sock.sendall(b"\x00\x04")
        received(sock, 4)
        (length,) = received(sock, 1)
        assert hostd.process is not None and int(received(sock, length)) == hostd.process.pid
        row = served(hostd, "a")
        assert (row["bytes_sent"], row["clients"], row["kind"]) == (len(got), 1, "serve")
        assert_from_the_source(got)


# ekeyd-egd-linux

BLOCKS, BLOCK = 3, 128  # what it asks for at a time


@contextlib.contextmanager
def ekeyd_egd_linux(folder: Path, port: int, *before: str) -> Iterator[Path]:
    """What strace says of it; ``before``: a command that runs strace."""
    if os.geteuid() != 0:
        pytest.skip("only root may open /dev/random as ekeyd-egd-linux does, to credit it; run as root")
    if shutil.which("strace") is None:
        pytest.skip("no strace; run scripts/setup vm")
    said = folder / "ekeyd.strace"
    program = package("ekeyd-egd-linux") / "usr" / "sbin" / "ekeyd-egd-linux"
    looking = ("strace", "-o", said, "-xx", "-s", "1024", "-e", "trace=poll,ioctl,write")
    injected = ("-e", "inject=ioctl:retval=0") if before else ()
    process = subprocess.Popen(
        [*before, *looking, *injected, program, "-H", LOOPBACK, "-p", str(port), "-b", str(BLOCKS)],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield said
        assert process.poll() is None, said.read_text()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_told_to_write() -> bool:
    """Whether this kernel's /dev/random asks for entropy now."""
    fd = os.open("/dev/random", os.O_RDWR)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        return bool(poll.poll(0))
    finally:
        os.close(fd)


def test_ekeyd_egd_linux_connects_and_asks_for_nothing_on_a_kernel_that_lacks_nothing(tmp_path: Path) -> None:
    """See above: not a fault of either end, and nothing that a server of EGD could change."""
    if os.geteuid() == 0 and is_told_to_write():
        pytest.skip("this kernel asks for entropy: it is an old one, or its pool is not initialised yet")
    with (
        running(tmp_path, "a") as hostd,
        relay(egd(tmp_path, "a"), listener := tcp_listener(LOOPBACK)) as between,
        ekeyd_egd_linux(tmp_path, listener.getsockname()[1]) as said,
    ):
        waits = r"poll\(\[\{fd=\d+, events=POLLOUT\}, \{fd=\d+, events=POLLIN\}\], 2, -1$"
        wait_for(lambda: said.exists() and re.search(waits, said.read_text()), "it waits for the kernel")
        wait_for(lambda: served(hostd, "a")["clients"] == 1, "it is connected")
        with askers(egd(tmp_path, "a")) as (other,):
            wait_for(lambda: len(other.taken) > 20_000, "another served meanwhile")
        assert not between.asked and not between.answered
        assert "write" not in said.read_text()


def test_ekeyd_egd_linux_credits_what_the_daemon_gives_where_it_is_told_to(tmp_path: Path) -> None:
    """A FIFO, into which one may always write, is bound over /dev/random, for this process alone.

    So it asks as it did on older kernels.  The ioctl RNDADDENTROPY, which a FIFO does not know, is
    strace's to answer: what it is called with is what the kernel would have been given.
    """
    os.mkfifo(tmp_path / "random")
    bind = ("unshare", "-m", "sh", "-c", f'mount --bind {tmp_path}/random /dev/random && exec "$0" "$@"')
    with (
        running(tmp_path, "a") as hostd,
        relay(egd(tmp_path, "a"), listener := tcp_listener(LOOPBACK)) as between,
        ekeyd_egd_linux(tmp_path, listener.getsockname()[1], *bind) as said,
    ):
        with askers(egd(tmp_path, "a")) as (other,):
            wait_for(lambda: len(between.answered) >= 3 * BLOCKS * BLOCK, "three times what it asks for")
            wait_for(lambda: credited(said).startswith(between.answered[:BLOCK]), "it is credited")
            wait_for(lambda: len(other.taken) > 2000, "another served")
        got = bytes(between.answered)
        pairs = between.asked[: len(between.asked) // 2 * 2]
        assert bytes(pairs) == bytes((2, BLOCK)) * (len(pairs) // 2)
        assert len(got) <= len(pairs) // 2 * BLOCK + BLOCK
        assert served(hostd, "a")["clients"] >= 1
        wait_for(lambda: credited(said)[: len(got)] == got, "all of it credited")
        assert_from_the_source(got, bytes(other.taken))


def credited(said: Path) -> bytes:
    """What RNDADDENTROPY was called with, in all."""
    call = r'RNDADDENTROPY, \{entropy_count=\d+, buf_size=\d+, buf="((?:\\x..)*)"'
    calls = re.findall(call, said.read_text())
    return bytes.fromhex("".join(calls).replace("\\x", ""))


# Quotas


def test_a_limit_holds_for_all_clients_of_a_serve_together(tmp_path: Path) -> None:
    """At each moment from the first connection on, whatever the machine does: it can only be later."""
    limit, burst = 4_000, 1_024
    with running(tmp_path, "a", "b", more=quota("serve:a", limit=limit, burst=burst)) as hostd:
        begun = time.monotonic()
        with askers(*[egd(tmp_path, "a")] * 4, egd(tmp_path, "b")) as (*limited, free):

            def enough() -> bool:
                taken = sum(len(asker.taken) for asker in limited)
                assert taken <= burst + limit * (time.monotonic() - begun) + 512
                return taken >= 3 * limit

            wait_for(enough, "three seconds' bytes")
            status = served(hostd, "a")
            assert status["bytes_sent"] <= burst + limit * (time.monotonic() - begun) + 512
            assert (status["clients"], status["limit"]) == (4, limit)
            shares = [len(asker.taken) for asker in limited]
            assert max(shares) < 2 * min(shares), shares  # they take turns
            wait_for(lambda: len(free.taken) > 4 * limit, "the other [[serve]] has no limit")
        assert_from_the_source(*(bytes(asker.taken) for asker in (*limited, free)))


def test_weights_share_a_scarce_source_between_serves_and_an_agent(tmp_path: Path) -> None:
    """By [[serve]], however many clients it has."""
    weights = {"serve:a": 100, "serve:b": 200, "vm": 300}
    more = channel("vm", tmp_path) + "".join(quota(name, weight=n) for name, n in weights.items())
    guest = Guest(tmp_path / "vm.sock", ask=65_536)
    with (
        contextlib.closing(guest),
        running(tmp_path, "a", "b", rate=60_000, more=more) as hostd,
        askers(*[egd(tmp_path, "a")] * 3, egd(tmp_path, "b"), ask=65_536) as asking,
    ):
        wait_for(lambda: guest.taken, "the agent is served")

        def sent() -> dict[str, int]:
            return {row["name"]: row["bytes_sent"] for row in hostd.status()["domains"]}

        counted = sent()

        def fair() -> bool:  # who stands still spoils one count; the next begins anew
            nonlocal counted
            now = sent()
            shares = {name: now[name] - counted[name] for name in weights}
            total = sum(shares.values())
            if total < 60_000:
                return False
            counted = now
            return all(0.75 < shares[name] * 600 / (total * n) < 1.25 for name, n in weights.items())

        wait_for(fair, "60,000 bytes by weights")
        assert_from_the_source(bytes(guest.taken), *(bytes(asker.taken) for asker in asking))


# Reload, and sockets


def test_a_reload_adds_changes_and_removes_a_serve_and_interrupts_nobody(tmp_path: Path) -> None:
    with running(tmp_path, "a") as hostd, askers(egd(tmp_path, "a")) as (stays,):

        def went_on(asker: Asker) -> None:
            before = len(asker.taken)
            wait_for(lambda: len(asker.taken) > before + 4096, "it is served on")

        went_on(stays)
        hostd.write(config(tmp_path, "a", "b"))
        hostd.reload()
        wait_until_listening(hostd, "b")
        assert egd(tmp_path, "b").stat().st_mode & 0o777 == 0o660
        with askers(egd(tmp_path, "b")) as (goes,):
            went_on(goes)
            went_on(stays)
            hostd.write(config(tmp_path, "a", "b", more=quota("serve:b", limit=1_000, burst=512)))
            hostd.reload()
            wait_for(lambda: served(hostd, "b")["limit"] == 1_000, "its quota")
            assert served(hostd, "b")["quota"] == "serve-b"
            went_on(stays)
            assert not goes.ended.is_set() and served(hostd, "b")["clients"] == 1
            hostd.write(config(tmp_path, "a"))
            hostd.reload()
            assert goes.ended.wait(PATIENCE_S)
            wait_for(lambda: not egd(tmp_path, "b").exists(), "its socket is removed")
        went_on(stays)
        assert not stays.ended.is_set() and served(hostd, "a")["clients"] == 1
        assert served(hostd, "b")["state"] == ""
        assert_from_the_source(bytes(stays.taken), bytes(goes.taken))
        assert hostd.stop() == 0
        assert not egd(tmp_path, "a").exists()
        hostd.start()  # for the end's look at its books


def test_a_serve_of_another_name_takes_a_path_over(tmp_path: Path) -> None:
    with running(tmp_path, "a") as hostd, askers(egd(tmp_path, "a")) as (goes,):
        wait_for(lambda: goes.taken, "it is served")
        hostd.write(config(tmp_path, "a").replace('name = "a"', 'name = "z"'))
        hostd.reload()
        assert goes.ended.wait(PATIENCE_S)
        wait_until_listening(hostd, "z")
        with askers(egd(tmp_path, "a")) as (other,):
            wait_for(lambda: other.taken, "another is served")
        assert "unreachable" not in hostd.log


def test_a_path_of_another_program_is_not_stolen_and_taken_once_it_is_free(tmp_path: Path) -> None:
    listener = unix_listener(egd(tmp_path, "b"))
    with contextlib.closing(listener), running(tmp_path, "a") as hostd:
        hostd.write(config(tmp_path, "a", "b"))
        hostd.reload()
        wait_for(lambda: served(hostd, "b")["state"] == "unreachable", "it is said")
        detail = served(hostd, "b")["detail"]
        assert f"another program listens on {egd(tmp_path, 'b')}: " in detail and "ss -xlp" in detail
        with contextlib.closing(connected(egd(tmp_path, "b"))) as sock:
            sock.sendall(b"still its own")
            listener.settimeout(PATIENCE_S)
            said = b""
            while not said:  # the daemon's probe says nothing
                conn, _ = listener.accept()
                said = conn.recv(64)
                conn.close()
            assert said == b"still its own"
        listener.close()
        wait_until_listening(hostd, "b")
        assert served(hostd, "b")["detail"] == ""
        with askers(egd(tmp_path, "b")) as (asker,):
            wait_for(lambda: asker.taken, "served")


def test_what_a_killed_daemon_left_behind_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path, "a") as hostd:
        with askers(egd(tmp_path, "a")) as (before,):
            wait_for(lambda: len(before.taken) > 4096, "served")
            left = egd(tmp_path, "a").stat().st_ino
            hostd.kill()
            assert before.ended.wait(PATIENCE_S)
        assert egd(tmp_path, "a").stat().st_ino == left
        hostd.start()
        wait_until_listening(hostd, "a")
        with askers(egd(tmp_path, "a")) as (after,):
            wait_for(lambda: len(after.taken) > 4096, "served again")
        assert_from_the_source(bytes(before.taken), bytes(after.taken))


# Clients that misbehave

Attack = Callable[[Path, threading.Event], None]


def insists(path: Path, stop: threading.Event, said: bytes) -> None:
    """Says it again and again on one connection after another, and reads nothing."""
    while not stop.is_set():
        with contextlib.suppress(OSError), contextlib.closing(connected(path)) as sock:
            sock.settimeout(0.1)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    sock.sendall(said)


def pushes_without_end(path: Path, stop: threading.Event) -> None:
    insists(path, stop, (b"\x03\xff\xff\xff" + bytes(255)) * 256)


def never_reads(path: Path, stop: threading.Event) -> None:
    insists(path, stop, b"\x02\xff" * 32_768)


def floods_with_what_takes_no_entropy(path: Path, stop: threading.Event) -> None:
    insists(path, stop, b"\x00\x04" * 32_768)


def floods_with_short_waits(path: Path, stop: threading.Event) -> None:
    insists(path, stop, b"\x01\x01" * 32_768)


def says_what_is_no_command(path: Path, stop: threading.Event) -> None:
    insists(path, stop, b"GET / HTTP/1.1\r\n\r\n")


def begins_and_never_ends(path: Path, stop: threading.Event) -> None:
    with contextlib.ExitStack() as stack:
        for half in (b"\x01", b"\x02", b"\x03", b"\x03\x00\x00", b"\x03\xff\xff\xff"):
            stack.enter_context(contextlib.closing(connected(path))).sendall(half)
        stop.wait()


def comes_many_times_at_once(path: Path, stop: threading.Event) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(25):
            sock = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
            sock.settimeout(0.1)
            with contextlib.suppress(OSError):  # a full backlog
                sock.connect(str(path))
                sock.sendall(b"\x02\xff" * 100)
        stop.wait()


def comes_and_goes(path: Path, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(OSError), contextlib.closing(connected(path)) as sock:
            sock.sendall(b"\x02\xff")


@pytest.mark.parametrize(
    "attack",
    [pushes_without_end, never_reads, floods_with_what_takes_no_entropy, floods_with_short_waits,
     says_what_is_no_command, begins_and_never_ends, comes_many_times_at_once, comes_and_goes],
)  # fmt: skip
def test_a_client_that_misbehaves_hurts_nobody(tmp_path: Path, attack: Attack) -> None:
    """Neither those who came before it, nor one of another [[serve]], nor an agent, nor who comes later."""
    guest = Guest(tmp_path / "vm.sock")
    with (
        contextlib.closing(guest),
        running(tmp_path, "a", "b", rate=300_000, more=channel("vm", tmp_path)) as hostd,
        askers(egd(tmp_path, "a"), egd(tmp_path, "b")) as (beside, apart),
        contextlib.closing(connected(egd(tmp_path, "a"))) as polite,
    ):
        assert hostd.process is not None
        process = psutil.Process(hostd.process.pid)
        wait_for(lambda: guest.taken and beside.taken and apart.taken, "all served")
        rss = process.memory_info().rss
        with attacked(egd(tmp_path, "a"), attack):
            before = [len(taken) for taken in (guest.taken, apart.taken, beside.taken)]

            def went_on() -> bool:
                now = (len(guest.taken), len(apart.taken), len(beside.taken))
                return all(new >= old + more for new, old, more in zip(now, before, (40_000, 40_000, 1_000)))

            wait_for(went_on, "the others are served")
            taken = answered_one_by_one(polite, 20)
            assert process.memory_info().rss < rss + 8_000_000
            status = hostd.status()
            assert status["ledger_ok"]
            assert served(hostd, "a")["clients"] <= 64
            assert not beside.ended.is_set() and not apart.ended.is_set() and len(guest.sessions) == 1
        with contextlib.closing(connected(egd(tmp_path, "a"))) as later:
            taken += answered_one_by_one(later, 2)
        about = [line for line in hostd.log.splitlines() if "serve:a" in line]
        assert len(about) < 80, "a line per event, not per byte"
        assert_from_the_source(bytes(guest.taken), bytes(apart.taken), bytes(beside.taken), taken)


@contextlib.contextmanager
def attacked(path: Path, attack: Attack, times: int = 4) -> Iterator[None]:
    """By so many at once."""
    stop = threading.Event()
    attackers = [threading.Thread(target=attack, args=(path, stop), daemon=True) for _ in range(times)]
    for attacker in attackers:
        attacker.start()
    try:
        yield
    finally:
        stop.set()
        for attacker in attackers:
            attacker.join(PATIENCE_S)


def answered_one_by_one(sock: socket.socket, times: int) -> bytes:
    """Asks for 32 bytes again and again, and waits for each answer."""
    taken, end = b"", time.monotonic() + PATIENCE_S
    for n in range(times):
        assert time.monotonic() < end, f"{n} of {times} answers within {PATIENCE_S} s"
        sock.sendall(b"\x02\x20")
        taken += received(sock, 32)
    return taken


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"\x05", "a byte that is no command"),
        (b"\x01\x01" * 300, "too many requests at once, or answers that it does not take"),
    ],
)
def test_who_breaks_the_protocol_is_sent_away_and_nobody_else(tmp_path: Path, said: bytes, why: str) -> None:
    with (
        running(tmp_path, "a") as hostd,
        askers(egd(tmp_path, "a")) as (stays,),
        contextlib.closing(connected(egd(tmp_path, "a"))) as goes,
    ):
        answered_one_by_one(goes, 1)
        goes.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            while goes.recv(4096):
                pass
        wait_for(lambda: f"serve:a: protocol violation: {why}" in hostd.log, "it is said")
        before = len(stays.taken)
        wait_for(lambda: len(stays.taken) > before + 4096, "the other is served on")
        assert served(hostd, "a")["clients"] == 1


def test_who_pushes_is_read_no_faster_than_its_budget(tmp_path: Path) -> None:
    """So what it costs is bounded: unread, its bytes wait in its own socket."""
    guest, pushed = Guest(tmp_path / "vm.sock"), 0
    with (
        contextlib.closing(guest),
        running(tmp_path, "a", more=channel("vm", tmp_path)),
        contextlib.closing(connected(egd(tmp_path, "a"))) as sock,
    ):
        sock.setblocking(False)

        def push() -> bool:
            nonlocal pushed
            with contextlib.suppress(BlockingIOError):
                while pushed < 4_000_000:
                    pushed += sock.send((b"\x03\xff\xff\xff" + bytes(255)) * 64)
            return len(guest.taken) > 100_000

        wait_for(push, "an agent served meanwhile")
        assert pushed < 1_000_000


# An agent beside them


class SeedWatch(Guest):
    """An agent that looks at what others have got: from its OPEN on, and when its seed is whole."""

    def __init__(self, path: Path, others: list[Asker]) -> None:
        self._others = others
        self._before: int | None = None
        self.meanwhile: int | None = None  # bytes that they were given between the two
        super().__init__(path)

    def _received(self, data: bytes) -> None:
        now = self._total()
        super()._received(data)
        if self._before is None and self.session:
            self._before = now
        if self._before is not None and self.meanwhile is None and len(self.taken) >= 64:
            self.meanwhile = self._total() - self._before

    def _total(self) -> int:
        return sum(len(other.taken) for other in self._others)


def test_a_seed_does_not_wait_behind_clients_that_ask_without_end(tmp_path: Path) -> None:
    """Nor for its weight: by that, two thousand bytes would be theirs for each of the agents'."""
    rate, names = 4_000, ("vm-1", "vm-2", "vm-3")
    more = '[reservoir]\nsize = "16KiB"\nseed_reserve = "1KiB"\n'
    more += quota("vm-*", weight=1) + quota("serve:*", weight=1000)
    more += "".join(channel(name, tmp_path) for name in names)
    paths = [egd(tmp_path, name) for name in "aabb"]
    with (
        running(tmp_path, "a", "b", rate=rate, more=more) as hostd,
        askers(*paths, ask=65_536) as asking,
        contextlib.ExitStack() as stack,
    ):
        wait_for(lambda: hostd.status()["reservoir"]["seed_stored"] >= 3 * 64, "seeds in reserve")
        wait_for(lambda: all(asker.taken for asker in asking), "all served, and waiting for more")
        guests: list[SeedWatch] = []
        for name in names:
            guest = SeedWatch(tmp_path / f"{name}.sock", asking)
            guests.append(guest)
            stack.callback(guest.close)
            wait_for(lambda: guests[-1].meanwhile is not None, "a seed")
            assert guest.meanwhile is not None and guest.meanwhile <= 4 * 512, "a few samples, and no more"
        assert [row["seeds"] for row in hostd.status()["domains"] if row["kind"] == "static"] == [1, 1, 1]
        pieces = [guest.taken for guest in guests] + [asker.taken for asker in asking]
        assert_from_the_source(*map(bytes, pieces))
