# SPDX-License-Identifier: Apache-2.0
"""Other people's sources: EntropyBroker, stunnel, a program that writes into a FIFO, the kernel's /dev/hwrng.

EntropyBroker and stunnel are Debian's, unpacked into the cache and never installed (bed/packages.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed import entropy_broker
from tests.edge.rig import PATIENCE_S, Guest, Hostd, wait_for
from tests.edge.stunnels import (
    AS_WHO_WE_ARE,
    CLIENT,
    LOOPBACK,
    SERVER,
    assert_told,
    certificates,
    configured,
    free_ports,
    stunnel,
)

from netrng_hostd.config import SourceConfig
from netrng_hostd.core.health import HealthTests
from netrng_hostd.sources import Source, SourceFailure, egd, make_source
from netrng_hostd.sources.identity import is_hwrng, rng_current


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may stand still for seconds, which is not to look like a server that knows half of EGD."""
    for name in ("CONNECT_S", "UNKNOWN_S", "SHORT_S"):
        monkeypatch.setattr(egd, name, PATIENCE_S)


def taken(source: Source, n_bytes: int, read_size: int = 512, hang_ups: int = 0) -> bytes:
    """The first ``n_bytes``; failures that say "soon", and so many others, are passed over until then."""
    data, end = bytearray(), time.monotonic() + PATIENCE_S
    with memoryview(bytearray(read_size)) as view:
        while len(data) < n_bytes:
            assert time.monotonic() < end, f"{len(data)} bytes instead of {n_bytes}"
            try:
                data.extend(view[: source.read_into(view)])
            except SourceFailure as failure:
                hang_ups -= not failure.soon
                if hang_ups < 0:
                    raise
                time.sleep(0.01)
                source.close()
                source.open()
    return bytes(data)


@contextlib.contextmanager
def opened(**config: str) -> Iterator[Source]:
    source = make_source(SourceConfig(**{"path": "", **config}))  # type: ignore[arg-type]
    source.open()
    try:
        yield source
    finally:
        source.close()


def assert_vetted(data: bytes) -> None:
    health, released = HealthTests(), 0
    for start in range(0, len(data), 500):
        verdict = health.feed(memoryview(bytearray(data[start : start + 500])))
        released += len(verdict.released)
        assert verdict.alarm is None
    assert released >= len(data) - 1024
    assert len(set(data)) > 200  # of 2,000 bytes, chance leaves out one value, or two


# EntropyBroker


def test_entropy_brokers_egd_front_end(tmp_path: Path) -> None:
    with entropy_broker.running(tmp_path) as path, opened(kind="egd", path=str(path)) as source:
        assert_vetted(taken(source, 100_000))


def test_an_entropy_broker_that_has_little_left_is_asked_again(tmp_path: Path) -> None:
    """Fed with what a FIFO holds and no more: answers that are short, and empty ones, and more later."""
    feed = tmp_path / "feed"
    os.mkfifo(feed)
    fd = os.open(feed, os.O_RDWR | os.O_NONBLOCK)
    try:
        with entropy_broker.running(tmp_path, str(feed)) as path:
            os.write(fd, os.urandom(8000))
            with opened(kind="egd", path=str(path)) as source:
                first = taken(source, 1000)
                view, empty = memoryview(bytearray(255)), 0
                while empty < 2:
                    count = source.read_into(view)
                    empty = 0 if count else empty + 1
                os.write(fd, os.urandom(8000))
                assert_vetted(first + taken(source, 1000))
    finally:
        os.close(fd)


def test_a_daemon_gives_out_what_entropy_broker_and_a_fifo_give(tmp_path: Path) -> None:
    """Both at once, mixed; and it is said when one of the two is gone."""
    fifo = tmp_path / "noise"
    os.mkfifo(fifo)
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(contextlib.ExitStack())
        egd_path = broker.enter_context(entropy_broker.running(tmp_path))
        stack.enter_context(openssl_into(fifo))
        guest = Guest(tmp_path / "vm.sock")
        stack.callback(guest.close)
        hostd = stack.enter_context(
            Hostd(
                tmp_path,
                "[libvirt]\nuris = []\n"
                f'[[source]]\nname = "broker"\nkind = "egd"\npath = "{egd_path}"\n'
                f'[[source]]\nname = "noise"\nkind = "fifo"\npath = "{fifo}"\n'
                '[sources]\npolicy = "xor"\n'
                f'[[channel]]\nname = "vm"\npath = "{tmp_path / "vm.sock"}"\n',
            ).start()
        )
        wait_for(lambda: len(guest.taken) > 20_000, "bytes in the guest")
        broker.close()
        wait_for(lambda: states(hostd)["broker"] in ("absent", "error"), "its end")
        assert hostd.stop() == 0
    assert_vetted(bytes(guest.taken[:20_000]))


def states(hostd: Hostd) -> dict[str, str]:
    return {source["name"]: source["state"] for source in hostd.status()["sources"]}


def test_a_counter_that_entropy_brokers_feeder_hands_on_is_caught_within_4_kib(tmp_path: Path) -> None:
    """Unmixed, as the feeder has it: the broker would take it for full entropy, and hide it."""
    with entropy_broker.counter(tmp_path) as feed, entropy_broker.unmixed(tmp_path, feed) as path, opened(
        kind="fifo", path=str(path)
    ) as source:
        data = taken(source, 4096)[:4096]
    assert data == bytes((data[0] + n) % 256 for n in range(4096))
    health, alarmed = HealthTests(), False
    for start in range(0, len(data), 64):
        verdict = health.feed(memoryview(bytearray(data[start : start + 64])))
        assert not verdict.released
        alarmed |= verdict.alarm is not None
    assert alarmed


# stunnel


@pytest.fixture
def tunnel(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """The server's end, before an EGD server: the folder of the certificates, and its port."""
    certificates(tmp_path)
    port, other = free_ports(2)
    with entropy_broker.running(tmp_path) as path:
        settings = {
            **AS_WHO_WE_ARE,
            "rack-1.accept": f"{LOOPBACK}:{port}",
            "rack-1.connect": str(path),
            "rack-2.accept": f"{LOOPBACK}:{other}",
        }
        with stunnel(configured(SERVER, tmp_path, settings)):
            yield tmp_path, port


@pytest.mark.parametrize("place", ["port", "socket"])
def test_an_egd_server_through_stunnel(tunnel: tuple[Path, int], place: str) -> None:
    folder, port = tunnel
    accept = str(folder / "here.sock") if place == "socket" else f"{LOOPBACK}:{free_ports(1)[0]}"
    config = configured(CLIENT, folder, {"rng-1.accept": accept, "rng-1.connect": f"{LOOPBACK}:{port}"})
    where = {"path" if place == "socket" else "address": accept}
    with stunnel(config), opened(kind="egd", **where) as source:
        # On a machine ten times slower stunnel was seen to hang up, once.
        assert_vetted(taken(source, 20_000, hang_ups=1))


WRONG_AUTHORITY, WRONG_NAME = "Pre-verification error", "Subject checks failed"


@pytest.mark.parametrize(
    ("client", "why"),
    [
        ("without a certificate", "peer did not return a certificate"),
        ("a stranger", WRONG_AUTHORITY),
        ("another host's name", WRONG_NAME),
    ],
)
def test_who_may_not_come_is_refused(tunnel: tuple[Path, int], client: str, why: str) -> None:
    folder, port = tunnel
    address = f"{LOOPBACK}:{free_ports(1)[0]}"
    settings = {"rng-1.accept": address, "rng-1.connect": f"{LOOPBACK}:{port}"}
    if client == "without a certificate":
        settings.update(cert="", key="")
    elif client == "a stranger":
        settings.update(cert=f"{folder}/stranger/rack-1.pem", key=f"{folder}/stranger/rack-1.key")
    else:
        settings.update(cert=f"{folder}/rng-1.pem", key=f"{folder}/rng-1.key")
    with stunnel(configured(CLIENT, folder, settings)):
        assert_nothing_comes(address)
        assert_told(folder / f"{SERVER}.log", why)


@pytest.mark.parametrize(
    ("server", "why"), [("a stranger", WRONG_AUTHORITY), ("another host's name", WRONG_NAME)]
)
def test_a_server_that_is_another_is_not_believed(tunnel: tuple[Path, int], server: str, why: str) -> None:
    folder, port = tunnel
    address = f"{LOOPBACK}:{free_ports(1)[0]}"
    settings = {"rng-1.accept": address, "rng-1.connect": f"{LOOPBACK}:{port}"}
    if server == "a stranger":
        settings.update(CAfile=f"{folder}/stranger/ca.pem")
    else:
        settings["rng-1.checkHost"] = "other.example.org"
    with stunnel(configured(CLIENT, folder, settings)) as log:
        assert_nothing_comes(address)
        assert_told(log, why)


def assert_nothing_comes(address: str) -> None:
    view = memoryview(bytearray(64))
    with opened(kind="egd", address=address) as source:

        def refused() -> SourceFailure | None:
            try:
                assert source.read_into(view) == 0
            except SourceFailure as failure:
                return failure
            return None

        failure = wait_for(refused, "the end of the connection")
        assert failure.state == "error"


# Another program's FIFO


@contextlib.contextmanager
def openssl_into(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Again and again: each time it ends the FIFO has no writer for a while."""
    loop = 'while openssl rand 20000 >"$0"; do :; done'
    with subprocess.Popen(["sh", "-c", loop, path], start_new_session=True) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_openssl_writes_into_a_fifo(tmp_path: Path) -> None:
    path = tmp_path / "noise"
    os.mkfifo(path)
    with opened(kind="fifo", path=str(path)) as source, openssl_into(path) as process:
        assert_vetted(taken(source, 100_000))
        assert process.poll() is None, "it was never killed for writing"


# The kernel's


def test_the_kernels_hardware_rng() -> None:
    """Where this machine has one; its name is required as it is, and then as another."""
    name = rng_current()
    if not is_hwrng("/dev/hwrng") or name is None or not os.access("/dev/hwrng", os.R_OK):
        pytest.skip("no hardware RNG that this user may read")
    with opened(path="/dev/hwrng", rng_current=name) as source:
        assert source.kernel_name() == name
        assert_vetted(taken(source, 3000, read_size=64))
    with pytest.raises(SourceFailure, match="requires another-rng") as caught:
        make_source(SourceConfig(rng_current="another-rng")).open()
    assert caught.value.state == "absent"
