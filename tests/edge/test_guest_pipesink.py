# SPDX-License-Identifier: Apache-2.0
"""A pipe and standard output as sinks: what they take, and that they never wait."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.edge.guest_lab import stream

from netrng_guest.loop import Loop
from netrng_guest.pipesink import SLOW_NS, PipeSink, StdoutClosed, StdoutSink
from netrng_guest.sink import STATES, Sink

T0 = 10**12
DATA = stream(0, 10_000)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def reader_of(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def offer(sink: Sink, data: bytes, now_ns: int = T0) -> int:
    sink.tick(now_ns)
    assert sink.state in STATES
    return sink.offer(memoryview(data), now_ns)


def test_a_pipe_that_is_absent_unread_read_left_and_read_again(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "p"
    sink = PipeSink(loop, str(path))
    assert offer(sink, DATA) == 0
    assert (sink.state, sink.detail) == ("absent", f"no {path}; mkfifo {path}")
    assert sink.next_ns() == T0 + 200_000_000
    os.mkfifo(path)
    assert offer(sink, DATA, T0 + 100_000_000) == 0
    assert sink.state == "absent"
    assert offer(sink, DATA, T0 + 200_000_000) == 0
    assert (sink.state, sink.detail) == ("waiting-for-reader", f"nobody reads {path}")
    reader = reader_of(path)
    assert offer(sink, DATA, T0 + 600_000_000) == 4096, "the FIFO holds more than a page"
    assert sink.state == "ok"
    assert os.read(reader, 65536) == DATA[:4096]
    loop.wait(0)
    assert offer(sink, b"abc", T0 + 600_000_000) == 3
    assert sink.settle() == 4099
    os.close(reader)
    loop.wait(0)
    sink.tick(T0 + 700_000_000)
    assert (sink.state, sink.detail) == ("waiting-for-reader", f"the reader of {path} has gone")
    reader = reader_of(path)
    assert offer(sink, b"def", T0 + 900_000_000) == 3
    assert os.read(reader, 100) == b"def"
    os.close(reader)
    sink.stop()
    sink.stop()


def test_the_retries_slow_down_to_two_seconds(loop: Loop, fifo: Path) -> None:
    sink = PipeSink(loop, str(fifo))
    now_ns, gaps = T0, []
    for _ in range(7):
        sink.tick(now_ns)
        due_ns = sink.next_ns()
        assert due_ns is not None
        gaps.append((due_ns - now_ns) // 10**6)
        now_ns = due_ns
    assert gaps == [200, 400, 800, 1600, 2000, 2000, 2000]


def test_a_slow_reader_is_waited_for_and_named(loop: Loop, fifo: Path) -> None:
    reader = reader_of(fifo)
    sink = PipeSink(loop, str(fifo))
    assert offer(sink, DATA) == 4096
    loop.wait(0)
    assert offer(sink, DATA[4096:]) == 0
    assert sink.state == "ok"
    assert sink.next_ns() == T0 + SLOW_NS
    assert offer(sink, DATA[4096:], T0 + SLOW_NS) == 0
    assert (sink.state, sink.detail) == ("waiting-for-reader", f"the reader of {fifo} does not read")
    os.read(reader, 65536)
    loop.wait(0)
    assert sink.next_ns() is None
    assert offer(sink, DATA[4096:], T0 + SLOW_NS) == 4096
    assert sink.state == "ok"
    os.close(reader)
    sink.stop()


def test_a_write_that_meets_a_reader_just_gone(loop: Loop, fifo: Path) -> None:
    reader = reader_of(fifo)
    sink = PipeSink(loop, str(fifo))
    sink.tick(T0)
    os.close(reader)
    assert sink.offer(memoryview(DATA), T0) == 0
    assert sink.state == "waiting-for-reader"


def test_a_file_is_appended_to(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    sink = PipeSink(loop, str(path))
    assert offer(sink, DATA) == len(DATA)
    assert path.read_bytes() == b"before" + DATA
    sink.stop()


def test_a_full_disk_is_a_failure_and_tried_again(loop: Loop) -> None:
    sink = PipeSink(loop, "/dev/full")
    assert offer(sink, DATA) == 0
    assert (sink.state, sink.detail) == ("failed", "/dev/full: No space left on device")
    assert sink.next_ns() == T0 + 200_000_000


def test_a_file_that_takes_a_part_is_written_on_once_there_is_room(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sink = PipeSink(loop, str(tmp_path / "file"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        assert offer(sink, DATA[:300]) == 100
        assert offer(sink, DATA[100:300]) == 0
        assert sink.state == "failed"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert offer(sink, DATA[100:300], T0 + 10**9) == 200
    assert (tmp_path / "file").read_bytes() == DATA[:300]
    sink.stop()


def test_what_cannot_be_opened(loop: Loop, tmp_path: Path) -> None:
    sink = PipeSink(loop, str(tmp_path))
    assert offer(sink, DATA) == 0
    assert (sink.state, sink.detail) == ("failed", f"{tmp_path}: Is a directory")


def test_stdout_as_a_pipe_leaves_the_shared_end_blocking(loop: Loop) -> None:
    reader, writer = os.pipe()
    sink = StdoutSink(loop, writer)
    assert offer(sink, DATA) == 4096
    assert os.get_blocking(writer), "whoever shares our standard output now fails on it"
    assert os.read(reader, 65536) == DATA[:4096]
    os.close(reader)
    loop.wait(0)
    with pytest.raises(StdoutClosed):
        offer(sink, DATA)
    os.close(writer)


def test_stdout_notices_a_reader_that_goes_while_nothing_is_written(loop: Loop) -> None:
    reader, writer = os.pipe()
    sink = StdoutSink(loop, writer)
    sink.tick(T0)
    loop.wait(0)
    sink.tick(T0)
    os.close(reader)
    loop.wait(None)
    with pytest.raises(StdoutClosed):
        sink.tick(T0)
    os.close(writer)


def test_stdout_as_a_socket(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sink = StdoutSink(loop, ours.fileno())
        assert offer(sink, b"abc") == 3
        assert theirs.recv(10) == b"abc"
        sink.stop()


def test_stdout_as_a_file_keeps_its_place(loop: Loop, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb", buffering=0) as file:
        file.write(b"xxxx")
        file.seek(1)
        sink = StdoutSink(loop, file.fileno())
        assert offer(sink, b"abc") == 3
        sink.stop()
    assert (tmp_path / "out").read_bytes() == b"xabc"


def test_stdout_that_is_full(loop: Loop) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    sink = StdoutSink(loop, fd)
    assert offer(sink, DATA) == 0
    assert sink.state == "failed"
    os.close(fd)
