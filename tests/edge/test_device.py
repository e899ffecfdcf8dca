# SPDX-License-Identifier: Apache-2.0
"""What a device source opens is looked at by its descriptor, whatever its path says by then."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import struct
import tty
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.edge.rig import wait_for

from netrng_hostd.config import SourceConfig
from netrng_hostd.sources import Source, SourceFailure, device, identity, make_source
from netrng_hostd.sources.device import DeviceSource

TIOCSPTLCK, TIOCGPTN = 0x40045431, 0x80045430  # ioctl_tty(2); Python does not name them


def exchange_while_opening(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    """The path is exchanged for ``other`` between the look at it and its opening."""
    real = os.open
    monkeypatch.setattr(os, "open", lambda _path, flags: real(other, flags))


def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service may be denied /proc (ProcSubset, hidepid); what cannot be looked at is then not there."""
    real = Path.stat

    def stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path)

    monkeypatch.setattr(Path, "stat", stat)


@pytest.mark.parametrize("proc", [True, False])
def test_what_was_opened_counts_and_not_what_the_path_named(
    proc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not proc:
        without_proc(monkeypatch)
    source = DeviceSource("/dev/null")
    exchange_while_opening(monkeypatch, "/dev/urandom")
    with pytest.raises(SourceFailure, match=r"^/dev/null is the kernel's own PRNG") as caught:
        source.open()
    assert caught.value.state == "error"


def test_what_cannot_be_examined_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fstat(_fd: int) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    source = DeviceSource("/dev/zero")
    with monkeypatch.context() as patched:
        without_proc(patched)
        patched.setattr(os, "fstat", fstat)
        try:
            source.open()
        except SourceFailure as failure:
            found = failure
    assert found.detail == "cannot examine /dev/zero: Permission denied"


def test_a_device_is_read_and_closed() -> None:
    source = DeviceSource("/dev/zero")
    source.open()
    buffer = bytearray(b"\xff" * 8)
    assert source.read_into(memoryview(buffer)[:5]) == 5
    assert buffer == bytes(5) + b"\xff" * 3
    source.close()
    source.close()  # harmless


def test_an_end_of_input_is_an_error() -> None:
    source = DeviceSource("/dev/null")
    source.open()
    with pytest.raises(SourceFailure, match="cannot read /dev/null: end of input"):
        source.read_into(memoryview(bytearray(8)))
    source.close()


@pytest.mark.parametrize("kind", ["device", "prng"])
def test_the_kernels_name_is_that_of_the_open_device(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = tmp_path / "rng_current"
    current.write_text("tpm-rng-0\n")
    monkeypatch.setattr(identity, "RNG_CURRENT", current)
    source = make_source(SourceConfig(kind=kind, path="/dev/zero"))
    assert source.kernel_name() is None  # not open
    source.open()
    assert source.kernel_name() is None  # not behind hw_random
    zero = Path("/dev/zero").stat().st_rdev
    monkeypatch.setattr(identity, "HWRNG", (os.major(zero), os.minor(zero)))
    assert source.kernel_name() == "tpm-rng-0"
    current.write_text("none\n")
    assert source.kernel_name() is None
    source.close()


# A required rng_current


@pytest.fixture
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kernel says is behind /dev/hwrng; that is /dev/zero here."""
    file = tmp_path / "rng_current"
    file.write_text("tpm-rng-0\n")
    monkeypatch.setattr(identity, "RNG_CURRENT", file)
    zero = Path("/dev/zero").stat().st_rdev
    monkeypatch.setattr(identity, "HWRNG", (os.major(zero), os.minor(zero)))
    return file


def required(name: str, path: str = "/dev/zero") -> Source:
    return make_source(SourceConfig(path=path, rng_current=name))


def refused(source: Source) -> tuple[str, str]:
    with pytest.raises(SourceFailure) as caught:
        source.open()
    return caught.value.state, caught.value.detail


def test_the_required_rng_is_read(current: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_fd: int, views: list[memoryview]) -> int:
        views[0][:] = b"\xaa" * len(views[0])
        return len(views[0])

    source = required("tpm-rng-0")
    source.open()
    monkeypatch.setattr(os, "readv", read)
    buffer = bytearray(b"\xff" * 100)
    with memoryview(buffer) as view:
        skipped = 0
        while not source.read_into(view):  # what the kernel may have left of another one is thrown away
            skipped += len(view)
            assert buffer == bytes(100), "and wiped"
        assert 256 <= skipped < 356
    assert buffer == b"\xaa" * 100
    source.close()


@pytest.mark.parametrize(("name", "told"), [("virtio_rng.0", "virtio_rng.0"), ("none", "nothing")])
def test_another_one_is_not_opened(current: Path, name: str, told: str) -> None:
    current.write_text(f"{name}\n")
    source = required("tpm-rng-0")
    wanted = (
        f"the kernel has {told} behind /dev/zero, and the configuration requires tpm-rng-0; "
        "choose it: echo tpm-rng-0 > /sys/class/misc/hw_random/rng_current"
    )
    assert refused(source) == ("absent", wanted)
    current.write_text("tpm-rng-0\n")
    source.open()  # found again
    source.close()


def test_bytes_that_another_one_may_have_given_are_not_used(
    current: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.readv
    source = required("tpm-rng-0")
    source.open()
    view = memoryview(bytearray(300))
    while not source.read_into(view):
        pass

    def change(fd: int, views: list[memoryview]) -> int:
        count = real(fd, views)
        views[0][:] = b"\xaa" * len(views[0])
        current.write_text("chaoskey-hw-0\n")
        return count

    monkeypatch.setattr(os, "readv", change)
    with pytest.raises(SourceFailure, match="the kernel has chaoskey-hw-0 behind") as caught:
        source.read_into(view)
    assert caught.value.state == "absent"
    assert view == bytes(300)
    source.close()


def test_only_the_kernels_device_can_have_a_required_name(current: Path) -> None:
    assert refused(required("tpm-rng-0", "/dev/full")) == (
        "error",
        "/dev/full is not the kernel's hardware RNG device (/dev/hwrng), so it cannot have an rng_current",
    )


# Bad manners


def opened(path: Path | str) -> Source:
    source = make_source(SourceConfig(path=str(path)))
    source.open()
    return source


def test_eio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own: a terminal's master gives it when the last slave is gone."""
    fds: list[int] = []
    real = os.open

    def opening(path: str, flags: int) -> int:
        fds.append(real(path, flags))
        return fds[0]

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", opening)
        source = opened("/dev/ptmx")
    fcntl.ioctl(fds[0], TIOCSPTLCK, struct.pack("i", 0))
    number = struct.unpack("i", fcntl.ioctl(fds[0], TIOCGPTN, bytes(4)))[0]
    slave = os.open(f"/dev/pts/{number}", os.O_RDWR | os.O_NOCTTY)
    tty.setraw(slave)
    view = memoryview(bytearray(8))
    os.write(slave, b"abc")
    assert source.read_into(view) == 3, "a short read"
    os.close(slave)
    with pytest.raises(SourceFailure, match="cannot read /dev/ptmx: Input/output error") as caught:
        source.read_into(view)
    assert caught.value.state == "error"
    source.close()


def test_a_device_that_is_unplugged_and_comes_back_is_found_by_its_path(tmp_path: Path) -> None:
    """A terminal that is hung up, as a serial RNG's is, gives an end of input."""
    link = tmp_path / "rng"
    master, slave = pty.openpty()
    tty.setraw(slave)
    link.symlink_to(os.ttyname(slave))
    source = opened(link)
    os.write(master, b"abc")
    view = memoryview(bytearray(8))
    assert source.read_into(view) == 3
    link.unlink()
    os.close(slave)
    os.close(master)
    with pytest.raises(SourceFailure, match=f"^cannot read {link}: end of input$") as caught:
        source.read_into(view)
    assert caught.value.state == "error"
    source.close()
    assert refused(source) == ("absent", f"cannot open {link}: No such file or directory")
    link.symlink_to("/dev/zero")  # under another number, as udev's links after a replug
    source.open()
    assert source.read_into(view) == 8
    source.close()


@pytest.mark.parametrize("path", ["/nonexistent/rng", "/dev/null/rng"])
def test_no_such_path(path: str) -> None:
    state, detail = refused(DeviceSource(path))
    assert state == "absent"
    assert detail.startswith(f"cannot open {path}: No")


@pytest.mark.parametrize(
    ("number", "state"),
    [(errno.ENODEV, "absent"), (errno.ENXIO, "absent"), (errno.EIO, "error"), (errno.EPERM, "denied")],
)
def test_errors_of_a_read(number: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made up, because ENODEV takes a driver whose device is gone, and no such driver is on every machine."""

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    source = opened("/dev/zero")
    with monkeypatch.context() as patched:
        patched.setattr(os, "readv", fail)
        with pytest.raises(SourceFailure) as caught:
            source.read_into(memoryview(bytearray(8)))
    assert (caught.value.state, caught.value.detail) == (
        state,
        f"cannot read /dev/zero: {os.strerror(number)}",
    )
    source.close()


def test_eagain_is_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a driver that does not wait: a terminal, with O_NONBLOCK set behind its back."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    real = os.open
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", lambda path, flags: real(path, flags | os.O_NONBLOCK))
        source = opened(os.ttyname(slave))
    view = memoryview(bytearray(8))
    slept: list[float] = []
    with monkeypatch.context() as patched:
        patched.setattr(device, "time", SimpleNamespace(sleep=slept.append))
        assert source.read_into(view) == 0
    assert slept == [device.EMPTY_S], "it is not asked without a pause"
    os.write(master, b"x")
    wait_for(lambda: source.read_into(view) == 1, "the byte, which the kernel passes on in its own time")
    source.close()
    os.close(slave)
    os.close(master)
