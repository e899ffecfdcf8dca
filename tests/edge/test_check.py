# SPDX-License-Identifier: Apache-2.0
"""What `netrng-hostd check` finds, and that each line says what, where and what to do."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import functools
import grp
import os
import pty
import resource
import socket
import subprocess
import threading
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import libvirt
import pytest
from tests.edge.rig import PATIENCE_S, wait_for
from tests.edge.test_egd import Noise, serving
from tests.streams import stream

from netrng_hostd.config import ChannelConfig, Config, LibvirtConfig, ServeConfig, SourceConfig
from netrng_hostd.hypervisor import (
    DeniedError,
    HypervisorError,
    LiveChannel,
    LiveDomain,
    NoDomainError,
    QuotaElement,
    UnreachableError,
    UnsupportedError,
)
from netrng_hostd.hypervisor.connection import Connection
from netrng_hostd.hypervisor.domain_xml import DomainXmlError
from netrng_hostd.operate import check
from netrng_hostd.operate.check import device, domains, host, sockets, upstream
from netrng_hostd.operate.check.device import check_source, holders
from netrng_hostd.operate.check.domains import Unread, check_domains, list_domains
from netrng_hostd.operate.check.finding import Finding, Job, TooLate, within
from netrng_hostd.operate.check.host import check_host
from netrng_hostd.operate.check.noise import DISTRUST, Trial
from netrng_hostd.operate.check.running import check_running
from netrng_hostd.operate.control import ControlServer
from netrng_hostd.operate.status import SOURCE_STATES, DaemonStatus, SourceStatus
from netrng_hostd.sources import egd

NOISE = stream(1024)  # as much as the start-up test takes
UUID = "11111111-2222-3333-4444-555555555555"


def lines(findings: Iterator[Finding]) -> list[str]:
    """Each finding as its line, "!" before a problem."""
    found = list(findings)
    assert not any("\n" in finding.text for finding in found)
    return [("! " if finding.wrong else "") + finding.text for finding in found]


def domain(name: str = "web-1", channel: LiveChannel | None = None) -> LiveDomain:
    return LiveDomain(name, UUID, "qemu:///system", 1, channel)


def virtio(path: str | None, mode: str = "bind") -> LiveChannel:
    return LiveChannel("virtio", path, mode, None)


pytestmark = pytest.mark.usefixtures("libvirt_events")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may stand still for seconds: no time runs out but where a test sets it."""
    for name in ("CONNECT_S", "UNKNOWN_S", "SHORT_S", "SILENT_S"):
        monkeypatch.setattr(egd, name, PATIENCE_S)
    monkeypatch.setattr(host, "CONTROL_S", PATIENCE_S)
    monkeypatch.setattr(check, "check_source", functools.partial(check_source, read_s=PATIENCE_S))


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """A device whose bytes a test decides: the master's descriptor and the slave's path."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    try:
        yield master, os.ttyname(slave)
    finally:
        os.close(slave)
        os.close(master)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "channel"))
        sock.listen()
        sock.setblocking(False)
        yield sock


def source(path: str, kind: str = "device") -> SourceConfig:
    return SourceConfig("hwrng", kind, path)


# The source


def test_a_source_that_delivers(terminal: tuple[int, str]) -> None:
    master, path = terminal
    os.write(master, NOISE)
    assert lines(check_source(source(path), frozenset(), PATIENCE_S)) == []


def test_a_source_that_delivers_nothing(terminal: tuple[int, str]) -> None:
    master, path = terminal
    before = set(threading.enumerate())
    found = lines(check_source(source(path), frozenset(), read_s=0.05))
    assert found == [
        f"! source hwrng: {path} gave not one byte within 0.05 s; see whether its driver is stuck (dmesg) "
        "or another program reads all of it"
    ]
    os.write(master, NOISE)
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)


def test_a_source_that_delivers_slowly(terminal: tuple[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes in time is too little for the tests, and enough to see that it delivers."""
    master, path = terminal
    before = set(threading.enumerate())
    real_wait = Job.wait

    def wait(job: Job[None], seconds: float) -> bool:
        wait_for(lambda: [trial.n_bytes for trial in Remembering.made] == [40], "what comes in time")
        return real_wait(job, seconds)

    monkeypatch.setattr(device, "Trial", Remembering)
    monkeypatch.setattr(Remembering, "made", [])
    monkeypatch.setattr(Job, "wait", wait)
    os.write(master, NOISE[:40])
    assert lines(check_source(source(path), frozenset(), read_s=0.05)) == []
    os.write(master, NOISE[:16])
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)  # it reads no more than it had begun to
    assert not set(threading.enumerate()) - before


def test_a_source_that_delivers_zeros(terminal: tuple[int, str]) -> None:
    said = (
        "! source hwrng: health test alarm (repetition-count) after {} bytes: 6 equal bytes in a row, "
        "alarm from 6; distrust it: cable, driver, age; netrng-hostd check --source hwrng tests more of it"
    )
    assert lines(check_source(source("/dev/zero"), frozenset(), PATIENCE_S)) == [said.format(6)]
    master, path = terminal
    os.write(master, NOISE[:1000] + bytes(24))
    assert lines(check_source(source(path), frozenset(), PATIENCE_S)) == [said.format(1006)]


def test_a_claim_below_8_bits_is_tested_as_such(terminal: tuple[int, str]) -> None:
    master, path = terminal
    few = dataclasses.replace(source(path), min_entropy=1.0)
    os.write(master, bytes(value % 4 for value in NOISE))
    assert lines(check_source(few, frozenset(), PATIENCE_S)) == []


def test_no_device() -> None:
    (line,) = lines(check_source(source("/nonexistent/hwrng"), frozenset(), PATIENCE_S))
    assert line == (
        "! source hwrng: there is no /nonexistent/hwrng; plug the RNG in, load its driver, "
        "or set path in [[source]]"
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENODEV, "exists and there is no RNG behind it; plug one in or load its driver"),
        (errno.EACCES, "permission denied; run as root"),
        (errno.EIO, "cannot be read: Input/output error; see dmesg"),
    ],
)
def test_a_device_that_fails(number: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "readv", fail)
    (line,) = lines(check_source(source("/dev/null"), frozenset(), PATIENCE_S))
    assert line.startswith("! source hwrng: /dev/null")
    assert text in line


def test_a_device_at_its_end() -> None:
    (line,) = lines(check_source(source("/dev/null"), frozenset(), PATIENCE_S))
    assert line == "! source hwrng: /dev/null is at its end; set path to a device"


def test_what_is_no_hardware_is_refused_once(tmp_path: Path) -> None:
    (line,) = lines(device.check_refused(source("/dev/urandom")))
    assert line.startswith("! source hwrng: /dev/urandom is the kernel's own PRNG")
    assert line.endswith("; set path to a hardware RNG's device")
    assert lines(check_source(source("/dev/urandom"), frozenset(), PATIENCE_S)) == []


def test_a_prng_is_named(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in ("/dev/urandom", str(fifo)):
        assert lines(device.check_refused(source(path, "prng"))) == []
        assert lines(check_source(source(path, "prng"), frozenset(), PATIENCE_S)) == [
            f"source hwrng: {path} is a pseudo-random stream, for trials only"
        ]


def test_a_fifo_with_a_silent_writer_is_no_problem(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR)
    try:
        (line,) = lines(check_source(source(str(fifo), "prng"), frozenset(), PATIENCE_S))
    finally:
        os.close(fd)
    assert "for trials only" in line


def test_a_virtual_device_is_labelled(terminal: tuple[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    master, path = terminal
    os.write(master, NOISE)
    monkeypatch.setattr(device, "is_hwrng", lambda _: True)
    monkeypatch.setattr(device, "rng_current", lambda: "virtio_rng.0")
    monkeypatch.setattr(device, "holders", lambda _: ([], False))
    (line,) = lines(check_source(source(path), frozenset(), PATIENCE_S))
    assert line.startswith(f"source hwrng: {path} is virtual (virtio_rng.0): it is only as good as")


def test_a_required_rng(terminal: tuple[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    master, path = terminal
    wanted = dataclasses.replace(source(path), rng_current="tpm-rng-0")
    os.write(master, NOISE)
    assert lines(check_source(wanted, frozenset(), PATIENCE_S)) == [
        f"! source hwrng: {path} is not the kernel's hardware RNG device (/dev/hwrng), "
        "so it cannot have an rng_current; take rng_current out of [[source]]"
    ]
    monkeypatch.setattr(device, "is_hwrng", lambda _: True)
    monkeypatch.setattr(device, "holders", lambda _: ([], False))
    for current, told in (("chaoskey-hw-0", "chaoskey-hw-0"), (None, "nothing")):
        monkeypatch.setattr(device, "rng_current", lambda current=current: current)
        os.write(master, NOISE)
        assert lines(check_source(wanted, frozenset(), PATIENCE_S)) == [
            f"! source hwrng: the kernel has {told} behind {path}, and the configuration requires tpm-rng-0; "
            "choose it: echo tpm-rng-0 > /sys/class/misc/hw_random/rng_current"
        ]
    monkeypatch.setattr(device, "rng_current", lambda: "tpm-rng-0")
    os.write(master, NOISE)
    assert lines(check_source(wanted, frozenset(), PATIENCE_S)) == []


# Other programs' bytes


def test_a_fifo_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "noise"
    found = lines(check_source(source(str(fifo), "fifo"), frozenset(), PATIENCE_S))
    assert found == [
        f"! source hwrng: there is no {fifo} (No such file or directory); make it (mkfifo -m 600 {fifo}) "
        "and let the program write into it"
    ]
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    os.write(fd, b"once")
    assert lines(device.check_refused(source(str(fifo), "fifo"))) == []
    found = lines(check_source(source(str(fifo), "fifo"), frozenset(), PATIENCE_S))
    assert found == [
        f"source hwrng: {fifo} was not read, because its bytes come once; "
        "netrng-hostd status says whether a program writes into it"
    ]
    assert os.read(fd, 16) == b"once"
    os.close(fd)
    monkeypatch.setattr(os, "access", lambda *_: False)
    (line,) = lines(check_source(source(str(fifo), "fifo"), frozenset(), PATIENCE_S))
    assert line == f"! source hwrng: {fifo}: permission denied; run as root, or let this user read it"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("fifo", "is a character device, not a FIFO; set path to the FIFO that the program writes into"),
        ("egd", "is a character device, not an EGD server's socket; set path to the EGD server's socket"),
    ],
)
def test_what_is_of_another_kind_is_refused_once(kind: str, text: str) -> None:
    wrong = source("/dev/null", kind)
    assert lines(device.check_refused(wrong)) == [f"! source hwrng: /dev/null {text}"]
    assert lines(check_source(wrong, frozenset(), PATIENCE_S)) == []


def test_an_egd_server(tmp_path: Path) -> None:
    path = tmp_path / "egd"
    with serving(path, Noise()) as server:
        assert lines(check_source(source(str(path), "egd"), frozenset(), PATIENCE_S)) == []
        assert set(server.requests) == {(1, 255)}
        assert len(server.requests) == 5, "for 1,024 bytes"
    (line,) = lines(check_source(source(str(path), "egd"), frozenset(), PATIENCE_S))
    assert line == (
        f"! source hwrng: cannot connect to {path}: Connection refused; "
        "start the EGD server (or stunnel) that is to listen there, or set path in [[source]]"
    )
    remote = SourceConfig("far", "egd", "", "127.0.0.1:1")
    (line,) = lines(check_source(remote, frozenset(), PATIENCE_S))
    assert line.endswith("or set address in [[source]]")
    assert lines(device.check_refused(remote)) == []


def test_an_egd_server_that_gives_zeros(tmp_path: Path) -> None:
    def answer(conn: socket.socket, _: int, n_bytes: int) -> bool:
        conn.sendall(bytes([n_bytes]) + bytes(n_bytes))
        return True

    with serving(tmp_path / "egd", answer):
        (line,) = lines(check_source(source(str(tmp_path / "egd"), "egd"), frozenset(), PATIENCE_S))
    assert line.startswith("! source hwrng: health test alarm (repetition-count) after 6 bytes: ")


def test_an_egd_server_that_closes_or_denies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "egd"
    with serving(path, lambda *_: False):
        (line,) = lines(check_source(source(str(path), "egd"), frozenset(), PATIENCE_S))
    assert line == (
        f"! source hwrng: {path} closed the connection; "
        "see the log of the EGD server, and with stunnel the logs of both ends"
    )

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (line,) = lines(check_source(source(str(path), "egd"), frozenset(), PATIENCE_S))
    assert line.endswith(": Permission denied; run as root, or let this user connect")


def test_an_egd_server_that_gives_nothing(tmp_path: Path) -> None:
    path = tmp_path / "egd"
    before = set(threading.enumerate())

    def answer(conn: socket.socket, *_: int) -> bool:
        conn.sendall(bytes(1))
        return True

    with serving(path, answer):
        found = lines(check_source(source(str(path), "egd"), frozenset(), read_s=0.5))
        for thread in set(threading.enumerate()) - before:
            if thread.name == "netrng-check":
                thread.join(PATIENCE_S)
    assert found == [
        f"! source hwrng: {path} gave not one byte within 0.5 s; "
        "see whether the EGD server there has any left, and its log"
    ]


# What was read


class Remembering(Trial):
    """Shows what a test may want to see wiped."""

    made: ClassVar[list[Remembering]] = []

    def __init__(self, min_entropy: float) -> None:
        super().__init__(min_entropy)
        self.made.append(self)
        self.fed: list[memoryview] = []

    def feed(self, noise: memoryview) -> None:
        super().feed(noise)
        self.fed.append(noise[:])


def test_what_was_read_is_wiped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the tests still hold a part of it: 600 bytes of a FIFO, 5 * 255 of an EGD server."""
    monkeypatch.setattr(device, "Trial", Remembering)
    monkeypatch.setattr(upstream, "Trial", Remembering)
    monkeypatch.setattr(Remembering, "made", [])
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR)
    os.write(fd, NOISE[:600])
    lines(check_source(source(str(fifo), "prng"), frozenset(), PATIENCE_S))
    os.close(fd)
    with serving(tmp_path / "egd", Noise()):
        lines(check_source(source(str(tmp_path / "egd"), "egd"), frozenset(), PATIENCE_S))
    assert [trial.n_bytes for trial in Remembering.made] == [600, 1275]
    for trial in Remembering.made:
        assert not any(trial._tests._buffer)
        assert not any(map(any, trial.fed))


# Who else holds it open


def test_holders_are_found_by_the_devices_number(terminal: tuple[int, str]) -> None:
    _, path = terminal
    with Path(path).open("rb") as opened, subprocess.Popen(["sleep", "60"], stdin=opened) as child:
        try:
            # Its name changes a moment after Popen() has seen that it was started.
            wait_for(lambda: (child.pid, "sleep") in holders(path)[0], "the holder")
        finally:
            child.kill()
    assert child.pid not in [holder.pid for holder in holders(path)[0]]


def test_holders_of_nothing() -> None:
    assert holders("/nonexistent/hwrng") == ([], False)


def test_other_holders_are_noted_and_the_daemon_is_not(
    terminal: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    master, path = terminal
    monkeypatch.setattr(device, "is_hwrng", lambda _: True)
    monkeypatch.setattr(device, "rng_current", lambda: "tpm-rng-0")
    found = [device.Holder(7, "rngd"), device.Holder(8, "netrng-hostd")]
    monkeypatch.setattr(device, "holders", lambda _: (found, True))
    os.write(master, NOISE)
    assert lines(check_source(source(path), frozenset([8]), PATIENCE_S)) == [
        f"rngd (pid 7) holds {path} open as well and takes a part of it; "
        "stop it if the VMs are to have all of it",
        f"not every process could be looked at (root sees more); one of them may hold {path} open",
    ]


def test_processes_that_may_not_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise PermissionError

    monkeypatch.setattr(device, "_is_device", refuse)
    assert holders("/dev/null") == ([], True)


# libvirt and the domains


def config(*uris: str, transport: str = "socket", channels: tuple[ChannelConfig, ...] = ()) -> Config:
    return Config(control="/x", libvirt=LibvirtConfig(uris, transport), channels=channels)


def domains_found(*domains: LiveDomain, transport: str = "socket", uri: str = "qemu:///system") -> list[str]:
    there = [dataclasses.replace(domain, uri=uri) for domain in domains]
    return lines(check_domains(config(uri, transport=transport), lambda _: there))


def test_nothing_to_serve() -> None:
    (line,) = lines(check_domains(config()))
    assert line.startswith(
        "! nothing to serve: libvirt.uris is empty and there is no [[channel]] and no [[serve]]"
    )
    serving = dataclasses.replace(config(), serves=(ServeConfig("local", "/nonexistent"),))
    assert lines(check_domains(serving)) == []


def test_libvirt_down() -> None:
    def refuse(uri: str) -> Sequence[LiveDomain]:
        raise UnreachableError(f"{uri}: cannot connect: nobody there; is libvirtd running there?")

    found = lines(check_domains(config("qemu:///system", "xen:///system"), refuse))
    assert found == [
        "! qemu:///system: cannot connect: nobody there; is libvirtd running there?",
        "! xen:///system: cannot connect: nobody there; is libvirtd running there?",
    ]


def test_libvirt_that_hangs() -> None:
    go_on = threading.Event()

    def hang(_: str) -> Sequence[LiveDomain]:
        go_on.wait(20)
        return ()

    try:
        found = lines(check_domains(config("qemu:///system"), hang, libvirt_s=0.05))
    finally:
        go_on.set()
    assert found == ["! qemu:///system: no answer from libvirt in 0.05 s; look at its log, or restart it"]


def test_each_uri_is_asked_for_itself() -> None:
    asked: list[str] = []

    def ask(uri: str) -> Sequence[LiveDomain]:
        asked.append(uri)
        return ()

    found = lines(check_domains(config("a:///", "b:///"), ask))
    assert asked == ["a:///", "b:///"]
    assert found == ["a:///: no domain is running", "b:///: no domain is running"]


def test_a_domain_whose_xml_cannot_be_read_runs_all_the_same() -> None:
    uri = "qemu:///system?a=b&c=d"
    found = lines(check_domains(config(uri), lambda _: [Unread(3, f"{uri}: no\n"), domain(), Unread(5, "x")]))
    assert found[0] == (
        f"! {uri}: running domains that cannot be served: 3, 5: no\\n; see: virsh -r -c '{uri}' dumpxml 3"
    )
    assert found[1].startswith("web-1 has no channel")


def test_two_domains_on_one_socket(listener: socket.socket) -> None:
    path = listener.getsockname()
    static = config("qemu:///system", channels=(ChannelConfig("vm-1", path),))
    other = dataclasses.replace(domain("web-2", virtio(path)), uuid=UUID.replace("1", "6"))
    there = [domain("web-1", virtio(path)), other]
    shared, pasted = lines(check_domains(static, lambda _: there))
    assert shared == (
        f"! web-1 and web-2: their channels have the same socket, {path}; "
        "take <source> out of the channel's XML, and libvirt gives each its own"
    )
    assert pasted.startswith(f"! vm-1: {path} is the socket of web-1 and web-2, which libvirt lists")


def rng(path: str | None) -> LiveChannel:
    return LiveChannel("virtio-rng", path, "bind", None)


def agentless(
    name: str, path: str | None, channel: LiveChannel | None = None
) -> LiveDomain:
    """With a virtio-rng."""
    return dataclasses.replace(domain(name, channel), uuid=f"uuid of {name}", rng=rng(path))


def test_a_virtio_rng_is_enough(listener: socket.socket) -> None:
    path = listener.getsockname()
    assert domains_found(agentless("web-1", path)) == []
    with pytest.raises(BlockingIOError):
        listener.accept()
    missing = "! web-1: no socket at /nonexistent, where libvirt says it is; restart the domain"
    both = agentless("web-1", "/nonexistent", channel=virtio(path))
    assert domains_found(agentless("web-1", "/nonexistent")) == domains_found(both) == [missing]
    assert domains_found(agentless("web-1", None)) == [
        "! web-1: libvirt shows no socket for its virtio-rng; restart the domain"
    ]


def test_a_virtio_rng_of_another_user(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    path = listener.getsockname()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    (line,) = domains_found(agentless("web-1", path))
    assert line.startswith(f"! web-1: permission denied: {path}; ")


def test_streams_carry_no_virtio_rng() -> None:
    text = 'web-1: its virtio-rng is not served: transport = "stream" carries channels alone'
    uri = "qemu+ssh://host/system"
    for path in ("/nonexistent", None):
        assert domains_found(agentless("web-1", path), transport="stream", uri=uri) == [
            f"{text}; give it a channel: netrng-hostd attach --connect {uri} web-1"
        ]
    served = agentless("web-1", "/nonexistent", channel=virtio("/nonexistent"))
    assert domains_found(served, transport="stream", uri=uri) == [text]


def test_two_virtio_rngs_on_one_socket(listener: socket.socket) -> None:
    path = listener.getsockname()
    own = "give each its own: netrng-hostd detach --virtio-rng, then attach --virtio-rng"
    copied = f"have the same socket, {path}, as a copied definition has; {own}"
    first, second = agentless("web-1", path), agentless("web-2", path)
    assert domains_found(first, second) == [f"! web-1 and web-2: their virtio-rng devices {copied}"]
    mixed = domain("web-3", virtio(path))
    assert domains_found(first, mixed) == [f"! web-1 and web-3: their channel and virtio-rng {copied}"]
    both = agentless("web-1", path, channel=virtio(path))
    assert domains_found(both) == [f"! web-1: their channel and virtio-rng {copied}"]


def test_one_libvirt_under_two_names_lists_a_virtio_rng_twice(listener: socket.socket) -> None:
    served = agentless("web-1", listener.getsockname())
    uris = ("qemu:///system", "qemu+unix:///system")
    (line,) = lines(check_domains(config(*uris), lambda uri: [dataclasses.replace(served, uri=uri)]))
    assert line.startswith("! libvirt.uris: qemu:///system and qemu+unix:///system are the same libvirt")


def test_a_static_socket_that_is_a_listed_virtio_rngs(listener: socket.socket) -> None:
    path = listener.getsockname()
    for kind in ("agent", "egd"):
        static = config("qemu:///system", channels=(ChannelConfig("vm-1", path, kind),))
        (line,) = lines(check_domains(static, lambda _: [agentless("web-1", path)]))
        assert line.startswith(f"! vm-1: {path} is the socket of web-1, which libvirt lists: two channels")


def test_one_libvirt_under_two_names(listener: socket.socket) -> None:
    uris = ("qemu:///system", "qemu+unix:///system")
    served = domain(channel=virtio(listener.getsockname()))

    def there(uri: str) -> list[LiveDomain]:
        return [dataclasses.replace(served, uri=uri), domain("web-2", None)]

    *notes, twice = lines(check_domains(config(*uris), there))
    assert all("has no channel" in line for line in notes)
    assert twice == (
        "! libvirt.uris: qemu:///system and qemu+unix:///system are the same libvirt: each domain has "
        "several channels on one socket, of which one is served; keep one of them"
    )


def test_domains_without_a_channel_are_notes() -> None:
    assert domains_found(domain()) == ["web-1 has no channel; give it one: netrng-hostd attach web-1"]
    assert domains_found(domain(), uri="xen:///system") == [
        "web-1 has no channel; give it one: netrng-hostd attach --connect xen:///system web-1"
    ]


def test_metadata_that_does_not_count_is_a_note(listener: socket.socket) -> None:
    served = domain(channel=virtio(listener.getsockname()))
    good = dataclasses.replace(served, quota=QuotaElement((("weight", "3"),)))
    typo = dataclasses.replace(served, quota=QuotaElement((("wieght", "3"),)))
    assert domains_found(good) == []
    text = (
        "web-1: the quota in its metadata is malformed, so the file's is used: unknown attribute 'wieght'; "
        "allowed: reservation, weight, limit, burst; mend it: netrng-hostd quota --reset"
    )
    assert domains_found(typo) == [f"{text} web-1"]
    assert domains_found(typo, uri="xen:///system") == [f"{text} --connect xen:///system web-1"]
    deaf = Config(control="/x", libvirt=LibvirtConfig(("qemu:///system",), trust_metadata=False))
    text = "web-1 has a quota in its metadata that does not count: libvirt.trust_metadata is false"
    for there, told in (([good], [text]), ([typo], [text]), ([served], [])):
        assert lines(check_domains(deaf, {"qemu:///system": there}.__getitem__)) == told


def test_a_name_that_would_command_the_terminal() -> None:
    (line,) = domains_found(domain("evil\x1b[2J\nname"))
    assert line.startswith(r"evil\x1b[2J\nname has no channel")
    assert line.endswith(r"netrng-hostd attach 'evil\x1b[2J\nname'")


def test_a_channel_is_never_connected_to(listener: socket.socket) -> None:
    path = listener.getsockname()
    assert domains_found(domain(channel=virtio(path))) == []
    assert lines(check_domains(config(channels=(ChannelConfig("vm-1", path),)))) == []
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize(
    ("channel", "text"),
    [
        (virtio("/nonexistent/socket"), "no socket at /nonexistent/socket, where libvirt says it is"),
        (virtio("/dev/null"), "/dev/null is not a socket"),
        (virtio(None), "libvirt shows no socket for its channel"),
        (virtio("/x", mode="connect"), "its channel has <source mode='connect'>; netrng needs mode='bind'"),
    ],
)
def test_channels_that_cannot_be_reached(channel: LiveChannel, text: str) -> None:
    (line,) = domains_found(domain(channel=channel))
    assert line.startswith(f"! web-1: {text}; ")
    assert domains_found(domain(channel=channel), transport="stream") == []


def test_the_mode_counts_and_not_who_listens(listener: socket.socket) -> None:
    """Xen's QEMU listens in either mode."""
    channel = LiveChannel("xen", listener.getsockname(), "connect", None)
    assert domains_found(domain(channel=channel), uri="xen:///system") == [
        "! web-1: its channel has <source mode='connect'>; netrng needs mode='bind'; "
        "take <source> out of the channel's XML: netrng-hostd xml --xen shows it"
    ]


@pytest.mark.parametrize("uri", ["xen:///system", "xen+unix:///system", "xen+ssh://host/system"])
def test_xen_has_no_streams(uri: str, listener: socket.socket) -> None:
    served = domain(channel=LiveChannel("xen", listener.getsockname(), "bind", None))
    said = f'! {uri}: Xen\'s driver has no streams to channels; set transport = "socket" in [libvirt]'
    assert domains_found(served, transport="stream", uri=uri) == [said]
    assert domains_found(served, uri=uri) == []


def test_a_channel_of_another_user(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    path = listener.getsockname()
    expected = f"! web-1: permission denied: {path}; run as root with CAP_DAC_OVERRIDE, or as the VM's user"
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_, **__: False)
        assert domains_found(domain(channel=virtio(path))) == [expected]

    def refuse(_: Path) -> bool:
        raise PermissionError

    with monkeypatch.context() as patched:
        patched.setattr(Path, "exists", refuse)
        assert domains_found(domain(channel=virtio(path))) == [expected]
        static = lines(check_domains(config(channels=(ChannelConfig("web-1", path),))))
        assert static == [expected]


def test_a_static_socket_that_is_a_listed_domains(listener: socket.socket, tmp_path: Path) -> None:
    path, link = listener.getsockname(), tmp_path / "link"
    link.symlink_to(path)
    static = config("qemu:///system", channels=(ChannelConfig("vm-1", str(link)),))
    there = [domain("web-2", virtio(None)), domain("we\x1bb", virtio(path)), domain("web-3")]
    assert lines(check_domains(static, lambda _: there))[-1] == (
        f"! vm-1: {link} is the socket of we\\x1bb, which libvirt lists: "
        "two channels on one socket, of which one waits for ever; take the [[channel]] out"
    )
    there = [domain("web-1", virtio(f"{path}-2"))]
    assert not any("two channels" in line for line in lines(check_domains(static, lambda _: there)))


def test_a_static_socket_of_a_vm_that_is_off() -> None:
    found = lines(check_domains(config(channels=(ChannelConfig("vm-1", "/nonexistent/s"),))))
    assert found == ["vm-1: no socket at /nonexistent/s; the VM is off, or its QEMU has no such chardev"]


def test_a_pattern_that_matches_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        pattern = ChannelConfig("pve", f"{folder}/*.netrng")
        assert lines(check_domains(config(channels=(pattern,)))) == [
            f"pve: no socket matches {folder}/*.netrng; no VM is on, or none has such a chardev"
        ]


def test_each_socket_that_a_pattern_matches_is_checked(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(listener.getsockname())
    pattern = ChannelConfig("pve", f"{path.parent}/{path.name[:-1]}?")
    name = f"pve-{path.name[-1]}"
    both = config("qemu:///system", channels=(pattern, ChannelConfig("other", "/nonexistent/s")))
    other = "other: no socket at /nonexistent/s; the VM is off, or its QEMU has no such chardev"
    assert lines(check_domains(both, lambda _: ())) == ["qemu:///system: no domain is running", other]
    there = [domain("web-2", virtio(str(path)))]
    assert lines(check_domains(both, lambda _: there)) == [
        other,
        f"! {name}: {path} is the socket of web-2, which libvirt lists: "
        "two channels on one socket, of which one waits for ever; take the [[channel]] out",
    ]
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert lines(check_domains(config(channels=(pattern,)))) == [
        f"! {name}: permission denied: {path}; run as root with CAP_DAC_OVERRIDE, or as the VM's user"
    ]


def test_what_is_wrong_with_a_patterns_sockets(listener: socket.socket) -> None:
    path = Path(listener.getsockname())
    pattern = ChannelConfig("pve", f"{path.parent}/{path.name[:-1]}?")
    same = ChannelConfig("vm", f"{path.parent}/{path.name[:-1]}*")
    (line,) = lines(check_domains(config(channels=(pattern, same))))
    assert line == f"! vm: {path} is served as pve-{path.name[-1]} already"


def test_a_pattern_on_a_file_system_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(sockets, "scan", lambda _: go_on.wait(20))
    pattern = config(channels=(ChannelConfig("pve", "/mnt/*.s"),))
    try:
        assert lines(check_domains(pattern, scan_s=0.05)) == [
            "! pve: no answer from the file system of /mnt/*.s in 0.05 s; "
            "mend its mount, or name a folder on another"
        ]
    finally:
        go_on.set()


def test_libvirts_own_test_driver() -> None:
    (found,) = list_domains("test:///default")
    assert isinstance(found, LiveDomain)
    assert (found.name, found.channel) == ("test", None)
    with pytest.raises(UnreachableError):
        list_domains("qemu+unix:///session?socket=/nonexistent/libvirt-sock")


def test_a_domain_whose_xml_cannot_be_read_is_listed_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    (known,) = list_domains("test:///default")

    def refuse(*_: str) -> LiveDomain:
        raise DomainXmlError("too large")

    monkeypatch.setattr(domains, "parse_live", refuse)
    assert isinstance(known, LiveDomain)
    assert list_domains("test:///default") == [Unread(known.id, "too large")]


@pytest.mark.parametrize(
    ("error", "found"),
    [(DeniedError, [Unread(1, "no")]), (UnsupportedError, [Unread(1, "no")]), (NoDomainError, [])],
)
def test_a_domain_that_libvirt_will_not_show_hides_no_other(
    error: type[HypervisorError], found: list[Unread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has just ended is none."""

    def refuse(*_: str) -> str:
        raise error("no")

    monkeypatch.setattr(Connection, "live_xml", refuse)
    assert list_domains("test:///default") == found


def test_a_libvirt_that_goes_away_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    def go(*_: str) -> str:
        raise UnreachableError("gone")

    monkeypatch.setattr(Connection, "live_xml", go)
    with pytest.raises(UnreachableError):
        list_domains("test:///default")


def test_other_hosts_domains_have_the_same_paths() -> None:
    uris = ("qemu+ssh://a/system", "qemu+tcp://localhost:1/system", "qemu:///system")
    channels = (ChannelConfig("vm-1", "/same"),)
    streams = Config(control="/x", libvirt=LibvirtConfig(uris, transport="stream"), channels=channels)

    def there(uri: str) -> list[LiveDomain]:
        return [dataclasses.replace(domain(uri, virtio("/same")), uuid=uri, uri=uri)]

    (found,) = lines(check_domains(streams, there))
    assert found.startswith("! vm-1: /same is the socket of qemu:///system, which libvirt lists")


def test_a_domain_that_may_be_listed_and_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor may it be asked then whether it runs."""

    def refuse(*_: object) -> None:
        error = libvirt.libvirtError("")
        error.err = (libvirt.VIR_ERR_ACCESS_DENIED, libvirt.VIR_FROM_ACCESS, "no", 2, "", "", "", 0, 0)
        raise error

    monkeypatch.setattr(libvirt.virDomain, "XMLDesc", refuse)
    monkeypatch.setattr(libvirt.virDomain, "isActive", refuse)
    (found,) = list_domains("test:///default")
    assert isinstance(found, Unread)
    assert "cannot read the domain's XML: no" in found.why


# The daemon's own needs


def host_found(control: Path | str, daemon_pid: int | None = None) -> list[str]:
    return lines(check_host(Config(control=str(control)), daemon_pid))


@pytest.fixture
def no_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    swaps = tmp_path / "swaps"
    swaps.write_text("Filename\tType\tSize\tUsed\tPriority\n")
    monkeypatch.setattr(host, "SWAPS", swaps)
    return swaps


@pytest.mark.usefixtures("no_swap")
def test_a_place_for_the_control_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_found(tmp_path / "hostd.sock") == []
    assert host_found(tmp_path / "netrng" / "hostd.sock") == []
    assert host_found("/nonexistent/netrng/hostd.sock") == [
        "! control: there is no directory /nonexistent for /nonexistent/netrng/hostd.sock; "
        "make it, or set control"
    ]
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert host_found(tmp_path / "hostd.sock") == [
        f"! control: permission denied: {tmp_path}; run as root, or set control to a place of yours"
    ]


def test_a_daemon_that_runs(no_swap: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "hostd.sock")
    loaded = Config(control=path)
    assert host.running_daemon(loaded) is None

    async def ask() -> DaemonStatus | None:
        async with ControlServer(path, lambda: DaemonStatus("1", pid=4711), timeout_s=PATIENCE_S):
            return await asyncio.to_thread(host.running_daemon, loaded)

    assert asyncio.run(ask(), debug=True) == DaemonStatus("1", pid=4711)
    assert host_found(path, 4711) == ["netrng-hostd is running (pid 4711); a second one would be refused"]


# What the running daemon knows of its sources


def told(state: str, name: str = "hwrng", **more: Any) -> SourceStatus:
    return SourceStatus(name, more.pop("kind", "device"), state, f"/dev/{name}", **more)


def running_found(*sources: SourceStatus, policy: str = "failover", min_sources: int = 1) -> list[str]:
    return lines(check_running(DaemonStatus("1", sources, policy=policy, min_sources=min_sources)))


def test_sources_that_are_well_are_not_spoken_of() -> None:
    assert running_found(told("healthy", serving=True)) == []
    assert running_found(told("starting")) == []


@pytest.mark.parametrize(
    ("state", "kind", "what_to_do"),
    [
        ("failed", "device", f"{DISTRUST}; netrng-hostd check --source hwrng tests it now"),
        ("failed", "fifo", "distrust it: the program that writes there, and its device"),
        ("stalled", "device", "see whether its driver is stuck (dmesg) or another program reads all of it"),
        ("absent", "device", "plug the RNG in, load its driver, or set path in [[source]]"),
        ("absent", "fifo", "start the program that writes there"),
        ("absent", "egd", "start the EGD server (or stunnel) that is to listen there"),
        ("denied", "device", "let the daemon read it: run it as root; under systemd, DeviceAllow"),
        ("error", "device", "see dmesg, and the daemon's log"),
    ],
)
def test_every_other_state_is_a_problem(state: str, kind: str, what_to_do: str) -> None:
    assert set(SOURCE_STATES) == {
        "starting", "healthy", "failed", "stalled", "absent", "denied", "error",
    }  # fmt: skip
    assert running_found(told(state, kind=kind, detail="why\x1b")) == [
        rf"! source hwrng: {state} in the running daemon (why\x1b); {what_to_do}"
    ]


def test_one_that_serves_in_the_place_of_a_better_one_is_noted() -> None:
    alea = told("healthy", "alea", serving=True)
    assert running_found(told("failed"), alea)[1:] == [
        "failover: VMs are served from alea, because hwrng is failed"
    ]
    assert running_found(told("healthy"), alea) == [
        "failover: VMs are served from alea, because hwrng has not yet proved itself again"
    ]
    assert running_found(told("healthy"), alea, policy="combine") == []
    trial = told("healthy", "trial", serving=True, kind="prng")
    assert running_found(told("failed"), trial)[1:] == [
        "failover: VMs are served from trial (PRNG), because hwrng is failed"
    ]


def test_a_mix_of_too_few_is_a_problem() -> None:
    few = (told("healthy"), told("stalled", "alea"), told("healthy", "web", credit=False))
    assert running_found(*few, policy="xor", min_sources=2)[1:] == [
        "! xor: nothing is given out: of 2 sources that count 1 is healthy, and 2 are needed; "
        "mend the others, or set min_sources in [sources]"
    ]
    assert running_found(told("healthy"), told("starting", "alea"), policy="xor", min_sources=2) == []


def test_no_group(no_swap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str) -> None:
        raise KeyError

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "access", lambda *_, **__: True)
    monkeypatch.setattr(grp, "getgrnam", unknown)
    (line,) = host_found("/run/netrng/hostd.sock")
    assert line.endswith("make it: groupadd --system netrng")
    monkeypatch.setattr(grp, "getgrnam", lambda _: None)
    assert host_found("/run/netrng/hostd.sock") == []


def test_memory_that_could_be_swapped(no_swap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 8192))
    assert host_found(tmp_path / "s") == []
    no_swap.write_text(no_swap.read_text() + "/dev/sda2 partition 1 0 -2\n")
    (line,) = host_found(tmp_path / "s")
    assert line.startswith("this machine swaps, and a daemon started from here may lock only 8192 bytes")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, resource.RLIM_INFINITY))
    assert host_found(tmp_path / "s") == []
    monkeypatch.setattr(host, "SWAPS", tmp_path / "none")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 8192))
    assert host_found(tmp_path / "s") == []


# The command


@pytest.fixture
def file(tmp_path: Path, terminal: tuple[int, str], no_swap: Path) -> Path:
    """A configuration with which nothing is wrong, for one check."""
    master, path = terminal
    os.write(master, NOISE)
    written = tmp_path / "hostd.toml"
    written.write_text(f'control = "{tmp_path}/hostd.sock"\n[[source]]\npath = "{path}"\n')
    return written


def test_nothing_wrong(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.run(str(file), list_them=lambda _: [domain()]) == 0
    assert capsys.readouterr().out == (
        "note   web-1 has no channel; give it one: netrng-hostd attach web-1\n"
        "nothing wrong with the configuration and this host, 1 to note\n"
    )


def test_something_wrong(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.run(str(file), list_them=lambda _: [domain(channel=virtio(None))]) == 1
    assert capsys.readouterr().out == (
        "WRONG  web-1: libvirt shows no socket for its channel; restart the domain\n1 thing to mend\n"
    )


def test_what_the_running_daemon_says(
    file: Path, tmp_path: Path, terminal: tuple[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    told_by_daemon = DaemonStatus("1", (told("failed", detail="health test: why"),), pid=4711)

    async def run() -> int:
        control = str(tmp_path / "hostd.sock")
        async with ControlServer(control, lambda: told_by_daemon, timeout_s=PATIENCE_S):
            return await asyncio.to_thread(check.run, str(file), list_them=lambda _: [domain()])

    assert asyncio.run(run(), debug=True) == 1
    assert capsys.readouterr().out == (
        "WRONG  source hwrng: failed in the running daemon (health test: why); "
        "distrust it: cable, driver, age; netrng-hostd check --source hwrng tests it now\n"
        "note   netrng-hostd is running (pid 4711); a second one would be refused\n"
        "note   web-1 has no channel; give it one: netrng-hostd attach web-1\n"
        "1 thing to mend\n"
    )


def test_an_invalid_configuration(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("sample_sise = 1")
    for config_only in (True, False):
        assert check.run(str(file), config_only=config_only, list_them=_never) == 2
        said = capsys.readouterr().out
        assert said.startswith(f'WRONG  {file}: sample_sise: unknown key, did you mean "sample_size"?')
        assert len(said.splitlines()) == 1


def test_the_configuration_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('[[source]]\npath = "/nonexistent/hwrng"')
    assert check.run(str(file), config_only=True, list_them=_never) == 0
    assert capsys.readouterr().out == "nothing wrong with the configuration\n"


def test_the_configuration_alone_still_refuses_a_prng_as_hardware(file: Path) -> None:
    file.write_text('[[source]]\npath = "/dev/urandom"')
    assert check.run(str(file), config_only=True, list_them=_never) == 1


def test_one_source_by_two_names(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "again").symlink_to("/dev/zero")
    again = f'[[source]]\nname = "again"\npath = "{tmp_path}/again"\n'
    file.write_text(f'control = "{tmp_path}/hostd.sock"\n[[source]]\npath = "/dev/zero"\n{again}')
    assert check.run(str(file), config_only=True, list_them=_never) == 1
    assert capsys.readouterr().out.splitlines()[0] == (
        f"WRONG  source again: {tmp_path}/again is what source 'hwrng' reads, at /dev/zero; "
        "leave one of them out"
    )


def test_there_is_nothing_to_say_of_admission(file: Path) -> None:
    file.write_text("[admission]\nheadroom = 0.2\npolicy = 'refuse'\nmax_domains = 7\n")
    assert lines(check.findings(str(file), config_only=True)) == []


def test_a_burst_that_overflows_between_two_turns_is_noted(file: Path) -> None:
    file.write_text(
        '[[quota]]\nname = "bulk"\nmatch = ["b-*"]\nlimit = "1MB/s"\n'
        '[[quota]]\nname = "own"\nmatch = ["o-*"]\nlimit = "1MB/s"\nburst = "10kB"\n'
        '[[quota]]\nname = "default"\nmatch = ["*"]\nlimit = "200kB/s"\nburst = 1999\n'
    )
    told = lines(check.findings(str(file), config_only=True))
    assert [line.split(";")[-1] for line in told] == [
        " set burst to 10kB or more", " set burst to 2kB or more",
    ]  # fmt: skip
    assert told[0].startswith(f"{file}: quota 'bulk': a burst of 1999B is less than a limit of 1MB/s")
    assert told[1].startswith(f"{file}: quota 'default': a burst of 1999B")


def _never(_: str) -> Sequence[LiveDomain]:
    raise AssertionError("libvirt was asked")


# Waiting no longer than this


def test_within_returns_and_raises() -> None:
    assert within(PATIENCE_S, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(PATIENCE_S, lambda: 1 // 0)
    go_on = threading.Event()
    with pytest.raises(TooLate):
        within(0.01, go_on.wait)
    go_on.set()
