# SPDX-License-Identifier: Apache-2.0
"""A libvirt stream to a domain's channel, seen as a socket.

libvirt's event thread carries the bytes between the stream and one end of a socket pair; whoever speaks the
protocol holds the other end and need not know libvirt.  What ends one side ends both.

libvirt's client takes whatever libvirtd sends and has no way to make it wait.  So a guest that sends more
than the reader takes cannot be held back, only cut off: past MAX_BACKLOG_BYTES the stream is aborted, after
which QEMU no longer reads that guest's port.
"""

from __future__ import annotations

import itertools
import select
import socket
import threading
from contextlib import ExitStack, suppress
from typing import Any, Callable

from netrng_hostd.hypervisor import event_thread
from netrng_hostd.hypervisor.binding import libvirt

# Little entropy shall be parked in the socket pair: Linux doubles this and has a floor of 4,608 bytes.
SOCKET_BUFFER_BYTES = 4096
MAX_BACKLOG_BYTES = 65536
_CHUNK_BYTES = 16384
_WOULD_BLOCK = -2  # virStreamSend's and virStreamRecv's answer instead of EAGAIN

# libvirt 9 never frees what the binding attaches to a stream's callback: the stream's Python shell and our
# callback with its argument.  So these are a module's function and a number, and a closed stream is taken out
# of its shell: half a kilobyte stays behind per stream that was ever opened, and no connection.
_pumps: dict[int, StreamPump] = {}
_numbers = itertools.count()


def _stream_ready(_stream: Any, events: int, number: int) -> None:
    pump = _pumps.get(number)
    if pump is not None:
        pump.stream_ready(events)


class StreamPump:
    """Pumps one connected, non-blocking virStream.

    start() and close() are called in the worker thread, everything else in libvirt's event thread; the lock
    keeps the two apart.  ``later`` runs a function in the worker thread: aborting waits for libvirtd's
    answer.  A virStreamSend waits too while libvirtd's socket is full: at most until the connection's
    keepalive gives up.
    """

    def __init__(self, stream: Any, later: Callable[[Callable[[], None]], object]) -> None:
        self.closed = False
        self._stream = stream
        self._later = later
        self._lock = threading.RLock()
        self._number = next(_numbers)
        self._to_guest = bytearray()
        self._to_host = bytearray()
        self._waiting = (True, False, False)
        self._inner, self._outer = socket.socketpair()
        for end in (self._inner, self._outer):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)

    def start(self) -> socket.socket:
        """Begin; returns the other end of the socket pair, which the caller closes.  Raises libvirtError."""
        with self._lock, ExitStack() as on_error:
            on_error.callback(self._outer.close)
            _pumps[self._number] = self
            event_thread.watch(self._inner.fileno(), select.EPOLLIN, self._socket_ready)
            self._stream.eventAddCallback(libvirt.VIR_STREAM_EVENT_READABLE, _stream_ready, self._number)
            on_error.pop_all()
            return self._outer

    def close(self) -> None:
        """End both sides and abort the stream, in the worker thread.  May be called twice, never raises."""
        self._detach()
        with self._lock:
            stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(libvirt.libvirtError):  # the connection is gone, or the stream had ended
                stream.abort()
            stream.cb = None
            stream.__del__()  # virStreamFree
            stream._conn = None

    @property
    def aborted(self) -> bool:
        """Whether close() is done and nothing of libvirt's is held any more."""
        return self._stream is None

    def _end(self) -> None:
        self._detach()
        self._later(self.close)

    def _detach(self) -> None:
        """Stop pumping, close the socket, overwrite what is left."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            _pumps.pop(self._number, None)
            event_thread.unwatch(self._inner.fileno())
            self._inner.close()
            for buffer in (self._to_guest, self._to_host):
                buffer[:] = bytes(len(buffer))
                buffer.clear()
            with suppress(libvirt.libvirtError):
                self._stream.eventRemoveCallback()

    def _socket_ready(self, events: int) -> None:
        with self._lock:
            if events & select.EPOLLOUT:
                self._flush_to_host()
            if self._to_guest and events & (select.EPOLLHUP | select.EPOLLERR):
                self._end()
            self._read_socket()

    def stream_ready(self, events: int) -> None:
        """libvirt says that the stream can be read or written, or has ended."""
        with self._lock:
            if events & libvirt.VIR_STREAM_EVENT_READABLE:
                self._read_stream()
            if events & libvirt.VIR_STREAM_EVENT_WRITABLE:
                self._flush_to_guest()
            if events & (libvirt.VIR_STREAM_EVENT_ERROR | libvirt.VIR_STREAM_EVENT_HANGUP):
                self._end()

    def _read_socket(self) -> None:
        if self.closed or self._to_guest:
            return
        chunk = bytearray(_CHUNK_BYTES)
        try:
            count = self._inner.recv_into(chunk)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if count == 0:
            self._end()
            return
        self._to_guest += memoryview(chunk)[:count]
        chunk[:count] = bytes(count)
        self._flush_to_guest()

    def _flush_to_guest(self) -> None:
        while self._to_guest:
            try:
                # The binding takes bytes only: one of the copies that we cannot overwrite.
                sent = self._stream.send(bytes(self._to_guest))
            except libvirt.libvirtError:
                self._end()
                return
            if sent == _WOULD_BLOCK:
                break
            self._to_guest[:sent] = bytes(sent)
            del self._to_guest[:sent]
        self._watch_for()

    def _read_stream(self) -> None:
        if self.closed:
            return
        try:
            data = self._stream.recv(_CHUNK_BYTES)
        except libvirt.libvirtError:
            data = b""
        if data == _WOULD_BLOCK:
            return
        if not data:
            self._flush_to_host()
            self._end()
            return
        self._to_host += data
        self._flush_to_host()
        if len(self._to_host) > MAX_BACKLOG_BYTES:
            self._end()

    def _flush_to_host(self) -> None:
        while self._to_host:
            try:
                sent = self._inner.send(self._to_host)
            except BlockingIOError:
                break
            except OSError:
                self._end()
                return
            del self._to_host[:sent]
        self._watch_for()

    def _watch_for(self) -> None:
        """Wait for what the buffers need next: reading stops while the other side would not take it."""
        waiting = (not self._to_guest, bool(self._to_host), bool(self._to_guest))
        if self.closed or waiting == self._waiting:
            return
        self._waiting = read_socket, write_socket, write_stream = waiting
        event_thread.rewatch(
            self._inner.fileno(),
            (select.EPOLLIN if read_socket else 0) | (select.EPOLLOUT if write_socket else 0),
        )
        self._stream.eventUpdateCallback(
            libvirt.VIR_STREAM_EVENT_READABLE | (libvirt.VIR_STREAM_EVENT_WRITABLE if write_stream else 0)
        )
