# SPDX-License-Identifier: Apache-2.0
"""A connected, non-blocking socket on the event loop, with a bounded way out and a pausable way in.

asyncio's transports would keep copies of what is sent in buffers that nobody can wipe.  Here the frame that
the kernel has not taken yet stays in the caller's bytearray, which is overwritten once it is sent.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

READ_SIZE = 4096  # bytes of one recv(); what a guest sends is small
MAX_PENDING = 64  # control frames of a few bytes that may wait behind a frame that is being sent


class Link:
    """``received(bytes)``, ``drained()`` (all pending sent) and ``closed(reason)`` are called in the loop."""

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        *,
        received: Callable[[bytes], None],
        drained: Callable[[], None],
        closed: Callable[[str], None],
    ) -> None:
        sock.setblocking(False)
        self._sock: socket.socket | None = sock
        self._loop = loop
        self._received = received
        self._drained = drained
        self._closed = closed
        self._pending: deque[bytearray] = deque()
        self._offset = 0  # bytes of the first pending frame that the kernel has taken
        self.reading = False

    def start(self) -> None:
        self.resume()

    @property
    def open(self) -> bool:
        """False from `close` on."""
        return self._sock is not None

    @property
    def idle(self) -> bool:
        """True when all that was to be sent is with the kernel."""
        return not self._pending and self._sock is not None

    @property
    def sending(self) -> bool:
        """True while something waits for the kernel to take it."""
        return bool(self._pending) and self._sock is not None

    def send(self, frame: bytearray) -> None:
        """Takes ownership of ``frame``; it is overwritten once sent or given up."""
        if self._sock is None or len(self._pending) >= MAX_PENDING:
            frame[:] = bytes(len(frame))
            return
        self._pending.append(frame)
        if len(self._pending) == 1:
            self._flush()
            if self._pending and self._sock is not None:
                self._loop.add_writer(self._sock, self._writable)

    def pause(self) -> None:
        """Reads no more until ``resume``."""
        if self.reading and self._sock is not None:
            self.reading = False
            self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        if not self.reading and self._sock is not None:
            self.reading = True
            self._loop.add_reader(self._sock, self._readable)

    def close(self, reason: str = "") -> None:
        """Closes the socket, overwrites what was not sent, calls ``closed`` once."""
        if self._sock is None:
            return
        sock, self._sock = self._sock, None
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)
        self.reading = False
        for frame in self._pending:
            frame[:] = bytes(len(frame))
        self._pending.clear()
        sock.close()
        self._closed(reason)

    def _flush(self) -> None:
        while self._pending and self._sock is not None:
            frame = self._pending[0]
            try:
                if self._offset:
                    with memoryview(frame) as view, view[self._offset :] as rest:
                        self._offset += self._sock.send(rest)
                else:
                    self._offset = self._sock.send(frame)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self.close(f"write failed: {error.strerror or error}")
                return
            if self._offset == len(frame):
                frame[:] = bytearray(len(frame))  # of bytes() a copy would be made first
                self._pending.popleft()
                self._offset = 0

    def _writable(self) -> None:
        self._flush()
        if not self._pending and self._sock is not None:
            self._loop.remove_writer(self._sock)
            self._drained()

    def _readable(self) -> None:
        if self._sock is None:
            return
        try:
            data = self._sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(f"read failed: {error.strerror or error}")
            return
        if data:
            self._received(data)
        else:
            self.close("closed by the other end")
