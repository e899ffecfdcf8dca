# SPDX-License-Identifier: Apache-2.0
"""The channel's three kinds: port, terminal, socket."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import pty
import random
import select
import socket
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from netrng_guest import port, wire
from netrng_guest.port import BUSY, TTY_FULL, Port, PortError

from .rig import PATIENCE_S, wait_for


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """The host's end of a terminal, and the path of the guest's."""
    host, guest = pty.openpty()
    name = os.ttyname(guest)
    os.close(guest)
    yield host, name
    os.close(host)


def read_exactly(fd: int, size: int) -> bytes:
    """What a terminal carries may come in pieces."""
    found = b""
    while len(found) < size:
        found += os.read(fd, size - len(found))
    return found


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@pytest.fixture
def virtio(tmp_path: Path) -> str:
    (tmp_path / "vport0p1").mkdir()
    (tmp_path / "vport0p1" / "name").write_text("org.netrng.0\n")
    return str(tmp_path)


def test_no_channel_and_what_to_do(virtio: str) -> None:
    (Path(virtio) / "vport0p1" / "name").write_text("another\n")
    message = r"^no channel org\.netrng\.0; on the host: netrng-hostd attach DOMAIN$"
    with pytest.raises(PortError, match=message):
        Port(None, virtio).open()


def test_a_device_that_sysfs_knows_and_dev_does_not(virtio: str, tmp_path: Path) -> None:
    with pytest.raises(PortError, match=r"vport0p1: No such file or directory$"):
        Port(None, virtio, str(tmp_path / "dev")).open()


def test_a_terminal_is_raw_after_every_open(terminal: tuple[int, str]) -> None:
    host, name = terminal
    everything = bytes(range(256))
    guest = Port(name)
    for _ in range(2):
        guest.open()
        assert guest.read_all() == (bytearray(), True, False)
        os.write(host, everything)
        assert guest.read_all()[0] == everything
        assert guest.write(everything) == 256
        assert read_exactly(host, 256) == everything, "echoed or changed on its way"
        guest.close()


@pytest.mark.parametrize("at_least", [0, 200])
def test_a_terminal_is_raw_whatever_others_left_it_at(at_least: int, terminal: tuple[int, str]) -> None:
    host, name = terminal
    other = os.open(name, os.O_RDWR | os.O_NOCTTY)  # who holds it keeps its settings
    settings = termios.tcgetattr(other)
    settings[0] |= termios.INLCR | termios.IGNCR | termios.IXOFF | termios.ISTRIP
    settings[3] &= ~termios.ICANON
    settings[6][termios.VMIN], settings[6][termios.VTIME] = at_least, 0
    termios.tcsetattr(other, termios.TCSANOW, settings)
    guest = Port(name)
    poll = select.poll()
    poll.register(guest.open(), select.POLLIN)
    assert guest.read_all() == (bytearray(), True, False), "nothing to read is no end"
    everything = bytes(range(256))
    for byte in everything:
        os.write(host, bytes([byte]))
        assert poll.poll(PATIENCE_S * 1000), "one byte wakes nobody"
        assert guest.read_all()[0] == bytes([byte])
    assert guest.write(everything) == 256
    assert read_exactly(host, 256) == everything
    guest.close()
    os.close(other)


def test_a_terminal_once_empty_is_asked_once(
    terminal: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second read, to hear that there is no more, would be half of what an agent's reading costs."""
    host, name = terminal
    guest = Port(name)
    guest.open()
    readv, asked = os.readv, []

    def counted(fd: int, buffers: list[bytearray]) -> int:
        asked.append(fd)
        return readv(fd, buffers)

    monkeypatch.setattr(os, "readv", counted)
    for expected in (2, 1, 1):
        os.write(host, b"abc")
        asked.clear()
        assert guest.read_all() == (bytearray(b"abc"), True, False)
        assert len(asked) == expected
    guest.open()
    os.write(host, b"abc")
    asked.clear()
    guest.read_all()
    assert len(asked) == 2, "what it was before, it was of another opening"
    guest.close()


def test_a_long_stream_is_read_from_a_terminal_as_its_poll_tells(terminal: tuple[int, str]) -> None:
    """Nothing stays behind for want of another word from the kernel."""
    host, name = terminal
    guest = Port(name)
    sent = random.Random(1).randbytes(300_000)
    writer = threading.Thread(target=lambda: write_all(host, sent), daemon=True)
    found = bytearray()
    with select.epoll() as poll:
        poll.register(guest.open(), select.EPOLLIN | select.EPOLLET)
        writer.start()
        try:
            while len(found) < len(sent):
                assert poll.poll(PATIENCE_S), f"silent after {len(found)} bytes"
                more = True
                while more:
                    data, _, more = guest.read_all()
                    found += data
        finally:
            guest.close()  # which ends a writer that waits
    assert found == sent
    writer.join()


def test_what_waits_behind_a_full_terminal_is_read_with_it(terminal: tuple[int, str]) -> None:
    """The end of a session shall be seen together with what came before it."""
    host, name = terminal
    guest = Port(name)
    guest.open()
    assert guest.read_all() == (bytearray(), True, False)
    sent = random.Random(1).randbytes(8_000)  # with 8,192 a pty is full (drivers/tty/pty.c)
    write_all(host, sent)
    waiting = array.array("i", [0])

    def is_full() -> bool:
        assert guest.fd is not None
        fcntl.ioctl(guest.fd, termios.FIONREAD, waiting)
        return waiting[0] >= TTY_FULL

    wait_for(is_full, "a full terminal")
    assert guest.read_all() == (bytearray(sent), True, False)
    guest.close()


def test_what_came_to_a_terminal_before_it_was_raw_is_still_read(terminal: tuple[int, str]) -> None:
    host, name = terminal
    other = os.open(name, os.O_RDWR | os.O_NOCTTY)
    probe = wire.encode(wire.Probe(b"h" * 8, 1, 1))
    os.write(host, b"\x03\x7f\x15\x16\x04" + probe)  # what a cooked terminal eats, and more
    echo = b""
    while not echo.endswith(probe[-1:]):
        echo += os.read(host, 4096)
    guest = Port(name)
    guest.open()
    os.write(host, b"raw")
    data, _, _ = guest.read_all()
    assert data.endswith(b"raw"), "what came since is changed"
    assert b"\xc7\x4e" in data, "the PROBE was thrown away"
    guest.close()
    os.close(other)


def test_a_terminal_has_one_agent(terminal: tuple[int, str]) -> None:
    _, path = terminal
    first, second = Port(path), Port(path)
    first.open()
    with pytest.raises(PortError, match="another program has it open"):
        second.open()
    assert second.fd is None
    first.close()
    second.open()
    second.close()


def test_a_terminal_whose_host_goes() -> None:
    host, guest_end = pty.openpty()
    guest = Port(os.ttyname(guest_end))
    guest.open()
    os.close(guest_end)
    os.close(host)
    with pytest.raises(PortError, match=r"closed by the host$"):
        guest.read_all()
    with pytest.raises(PortError, match=r"detached or closed by the host$"):
        guest.write(b"x")
    guest.close()


def test_a_socket_tells_its_end_after_what_came_before(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        guest = Port(str(tmp_path / "s"))
        fd = guest.open()
        assert not os.get_blocking(fd)
        host, _ = listener.accept()
        with host:
            assert guest.read_all() == (bytearray(), True, False)
            host.sendall(b"abc")
        assert guest.read_all() == (bytearray(b"abc"), True, True)
        with pytest.raises(PortError, match=r"closed by the host$"):
            guest.read_all()
        guest.close()
        guest.close()


def test_a_flood_is_read_in_bounded_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "MAX_READ", 1000)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        guest = Port(str(tmp_path / "s"))
        guest.open()
        host, _ = listener.accept()
        with host:
            guest._buffer = bytearray(600)
            host.sendall(bytes(range(256)) * 10)
            data, connected, more = guest.read_all()
            assert (len(data), connected, more) == (1200, True, True)
            assert not any(guest._buffer), "what was read is still in the buffer"
        guest.close()


def test_a_window_of_the_smallest_samples_and_the_probe_behind_it_are_read_at_once(tmp_path: Path) -> None:
    old, new = b"o" * 8, b"n" * 8
    frames = [bytes(wire.encode_sample(old, start, bytearray(32))) for start in range(0, wire.MAX_WINDOW, 32)]
    frames += [wire.encode(wire.Hold(old, wire.MAX_WINDOW)), wire.encode(wire.Probe(new, 1, 1))]
    (tmp_path / "frames").write_bytes(b"".join(frames))
    guest = Port()
    guest.fd = os.open(tmp_path / "frames", os.O_RDONLY)
    data, _, _ = guest.read_all()
    guest.close()
    assert bytes(data) == b"".join(frames), "the PROBE would come after its predecessor's bytes were used"


def test_a_port_without_a_host_reads_as_not_connected(tmp_path: Path) -> None:
    # A FIFO that nobody writes to reads like one: the end at once.
    os.mkfifo(tmp_path / "p")
    guest = Port(str(tmp_path / "p"))
    guest.fd = os.open(tmp_path / "p", os.O_RDONLY | os.O_NONBLOCK)
    assert guest.read_all() == (bytearray(), False, False)
    guest.close()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.EBUSY, BUSY),
        (errno.EACCES, "permission denied (run as root)"),
        (errno.ENODEV, "no Xen console is behind it (xenstore-list device/console shows which there are)"),
        (errno.ENXIO, "detached or closed by the host"),
        (errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_what_the_kernel_says_is_explained(monkeypatch: pytest.MonkeyPatch, code: int, text: str) -> None:
    def fail(path: str, flags: int) -> int:
        assert flags & os.O_NONBLOCK
        raise OSError(code, os.strerror(code))

    guest = Port("/dev/null")
    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(PortError) as caught:
        guest.open()
    assert str(caught.value) == f"/dev/null: {text}"
    assert guest.fd is None


def test_a_full_channel_takes_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        guest = Port(str(tmp_path / "s"))
        guest.open()
        host, _ = listener.accept()
        with host:
            while guest.write(bytes(65536)):
                pass
            assert guest.write(b"x") == 0
        guest.close()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_channel(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("")
    else:
        path.mkdir()
    with pytest.raises(PortError, match="neither a character device nor a socket"):
        Port(str(path)).open()
