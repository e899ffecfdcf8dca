# SPDX-License-Identifier: Apache-2.0
"""The pump beside a stream that is full, slow or broken in ways that a healthy libvirtd does not show.

The stream is a stand-in with virStream's methods; the event thread and the socket pair are real.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
import pytest

from netrng_hostd.hypervisor.stream import StreamPump

READABLE, WRITABLE, ERROR = (
    libvirt.VIR_STREAM_EVENT_READABLE,
    libvirt.VIR_STREAM_EVENT_WRITABLE,
    libvirt.VIR_STREAM_EVENT_ERROR,
)


class Stream:
    """``room`` bytes can be sent (None: sending fails); ``incoming`` is what recv() gives in turn."""

    def __init__(self, room: int | None, incoming: tuple[bytes | int | None, ...] = ()) -> None:
        self.room = room
        self.incoming = list(incoming)
        self.sent = bytearray()
        self.events = 0
        self.aborted = 0
        self.cb: object = None
        self._callback: Callable[[object, int, object], None] | None = None
        self._argument: object = None

    def eventAddCallback(
        self, events: int, callback: Callable[[object, int, Any], None], argument: object
    ) -> None:
        self.events, self._callback, self._argument = events, callback, argument

    def eventUpdateCallback(self, events: int) -> None:
        self.events = events

    def eventRemoveCallback(self) -> None:
        self.events = 0

    def send(self, data: bytes) -> int:
        if self.room is None:
            raise libvirt.libvirtError("broken")
        count = min(self.room, len(data))
        self.room -= count
        self.sent += data[:count]
        return count or -2

    def recv(self, _count: int) -> bytes | int:
        data = self.incoming.pop(0) if self.incoming else -2
        if data is None:
            raise libvirt.libvirtError("broken")
        return data

    def abort(self) -> None:
        self.aborted += 1
        raise libvirt.libvirtError("gone already")

    def __del__(self) -> None:
        pass

    def happens(self, events: int) -> None:
        assert self._callback is not None
        self._callback(self, events, self._argument)


pytestmark = pytest.mark.usefixtures("libvirt_events")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def pumped() -> Iterator[Callable[[Stream], tuple[StreamPump, socket.socket]]]:
    made: list[tuple[StreamPump, socket.socket]] = []

    def pump(stream: Stream) -> tuple[StreamPump, socket.socket]:
        one = StreamPump(stream, lambda function: function())
        end = one.start()
        end.settimeout(20)
        made.append((one, end))
        return one, end

    yield pump
    for one, end in made:
        one.close()
        end.close()


Pumped = Callable[[Stream], tuple[StreamPump, socket.socket]]


def test_a_full_stream_is_waited_for_and_nothing_is_lost_or_repeated(pumped: Pumped) -> None:
    stream = Stream(room=100)
    _, end = pumped(stream)
    data = bytes(range(200))
    end.sendall(data)
    until(lambda: stream.events & WRITABLE)
    assert stream.sent == data[:100]
    stream.room = 1000
    stream.happens(WRITABLE)
    assert stream.sent == data
    assert not stream.events & WRITABLE
    end.sendall(b"and on")
    until(lambda: stream.sent == data + b"and on")


def test_while_the_stream_is_full_the_socket_fills_up_and_the_writer_waits(pumped: Pumped) -> None:
    stream = Stream(room=0)
    _, end = pumped(stream)
    end.setblocking(False)
    parked = 0
    with pytest.raises(BlockingIOError):
        while True:
            parked += end.send(bytes(1024))
            until(lambda: stream.events & WRITABLE)
    assert parked <= 32 * 1024


def test_closing_our_end_of_a_full_stream_ends_it(pumped: Pumped) -> None:
    stream = Stream(room=0)
    pump, end = pumped(stream)
    end.sendall(b"never taken")
    until(lambda: stream.events & WRITABLE)
    end.close()
    until(lambda: stream.aborted)
    assert pump.aborted
    assert stream.aborted == 1


def test_a_stream_that_breaks_while_sending_is_our_end_of_file(pumped: Pumped) -> None:
    _, end = pumped(Stream(room=None))
    end.sendall(b"x")
    assert end.recv(1) == b""


def test_a_stream_that_breaks_while_receiving_is_our_end_of_file(pumped: Pumped) -> None:
    stream = Stream(0, (b"before", None))
    _, end = pumped(stream)
    stream.happens(READABLE)
    stream.happens(READABLE)
    assert end.recv(64) == b"before"
    assert end.recv(64) == b""


def test_an_error_event_is_our_end_of_file_and_later_events_are_nothing(pumped: Pumped) -> None:
    stream = Stream(0, (-2,))
    pump, end = pumped(stream)
    stream.happens(READABLE)
    assert not pump.closed
    stream.happens(ERROR)
    assert end.recv(64) == b""
    stream.happens(READABLE | WRITABLE | ERROR)
    assert stream.aborted == 1


def test_bytes_for_a_reader_that_is_late_wait_in_order(pumped: Pumped) -> None:
    pieces = tuple(bytes([n]) * 8192 for n in range(6))
    stream = Stream(0, pieces)
    _, end = pumped(stream)
    for _ in pieces:
        stream.happens(READABLE)
    got = bytearray()
    while len(got) < 6 * 8192:
        got += end.recv(65536)
    assert got == b"".join(pieces)


def test_no_byte_is_left_in_the_buffers_of_a_closed_pump(pumped: Pumped) -> None:
    stream = Stream(0)
    pump, end = pumped(stream)
    end.sendall(b"secret")
    until(lambda: stream.events & WRITABLE)
    buffer = pump._to_guest
    view = bytes(buffer)
    assert view == b"secret"
    pump.close()
    assert buffer == b""
