# SPDX-License-Identifier: Apache-2.0
"""Two sinks whose reader sets the pace: a FIFO or file at a path, and standard output."""

import errno
import fcntl
import os
import select
import stat
from typing import Optional

from .demand import SECOND_NS
from .loop import Loop
from .sink import Sink

F_SETPIPE_SZ = 1031  # fcntl(2), Linux: the bytes parked in a pipe are bytes that a snapshot copies
PAGE = 4096
SLOW_NS = 10 * SECOND_NS  # a pipe that stays full this long has no reader worth the name
FIRST_RETRY_NS, MAX_RETRY_NS = SECOND_NS // 5, 2 * SECOND_NS


class StdoutClosed(Exception):
    """Whoever read our standard output has gone."""


def shrink_pipe(fd: int) -> None:
    """Makes a pipe hold one page; leaves what is no pipe, or holds more already, as it is."""
    try:
        fcntl.fcntl(fd, F_SETPIPE_SZ, PAGE)
    except OSError:
        pass


class PipeSink(Sink):
    """A FIFO or file at a path.  Whoever reads the FIFO sets the pace."""

    name = "pipe"

    def __init__(self, loop: Loop, path: str) -> None:
        super().__init__()
        self._loop = loop
        self._path = path
        self._fd: Optional[int] = None
        self._full_ns: Optional[int] = None  # since when it is full
        self._watched = False  # whether we are told when it is not full any more
        self._broken = False
        self._open_ns = 0
        self._gap_ns = FIRST_RETRY_NS

    def tick(self, now_ns: int) -> None:
        if self._fd is None:
            if now_ns >= self._open_ns:
                self._try_open(now_ns)
        elif self._broken:
            self._lost(OSError(errno.EPIPE, ""), now_ns)
        elif self._full_ns is not None and now_ns >= self._full_ns + SLOW_NS:
            self._say("waiting-for-reader", "the reader of {} does not read".format(self._path))

    def offer(self, data: memoryview, now_ns: int) -> int:
        if self._fd is None or self._full_ns is not None or not data:
            return 0
        try:
            n = os.write(self._fd, data)
        except BlockingIOError:
            n = 0
        except OSError as error:
            self._lost(error, now_ns)
            return 0
        if n < len(data) and self._watched:  # of a file, the next write says what is wrong
            self._full_ns = now_ns
        if n:
            self._passed_on += n
            self._say("ok")
        return n

    def next_ns(self) -> Optional[int]:
        if self._fd is None:
            return self._open_ns
        return self._full_ns + SLOW_NS if self._full_ns is not None else None

    def stop(self) -> None:
        if self._fd is not None:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = None

    def _try_open(self, now_ns: int) -> None:
        try:
            self._fd = self._open()
        except OSError as error:
            if error.errno == errno.ENXIO:
                self._say("waiting-for-reader", "nobody reads " + self._path)
            elif error.errno == errno.ENOENT:
                self._say("absent", "no {0}; mkfifo {0}".format(self._path))
            else:
                self._say("failed", "{}: {}".format(self._path, error.strerror))
            self._retry(now_ns)
            return
        self._gap_ns = FIRST_RETRY_NS
        self._full_ns = None
        self._broken = False
        self._watched = self._loop.watch(self._fd, select.EPOLLOUT | select.EPOLLET, self._on_event)
        self._say("starting")

    def _open(self) -> int:
        fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_APPEND)
        shrink_pipe(fd)
        return fd

    def _on_event(self, events: int) -> None:
        self._full_ns = None
        self._broken = bool(events & select.EPOLLERR)

    def _lost(self, error: OSError, now_ns: int) -> None:
        self.stop()
        if error.errno == errno.EPIPE:
            self._say("waiting-for-reader", "the reader of {} has gone".format(self._path))
        else:
            self._say("failed", "{}: {}".format(self._path, error.strerror))
        self._retry(now_ns)

    def _retry(self, now_ns: int) -> None:
        self._open_ns = now_ns + self._gap_ns
        self._gap_ns = min(self._gap_ns * 2, MAX_RETRY_NS)


class StdoutSink(PipeSink):
    """Standard output; StdoutClosed when its reader has gone."""

    name = "stdout"

    def __init__(self, loop: Loop, fd: int = 1) -> None:
        super().__init__(loop, "standard output")
        self._source = fd

    def _open(self) -> int:
        if stat.S_ISREG(os.fstat(self._source).st_mode):
            return fcntl.fcntl(self._source, fcntl.F_DUPFD_CLOEXEC, 3)  # opening it anew would lose the place
        try:  # a description of our own, so that O_NONBLOCK does not reach those who share this one
            fd = os.open(
                "/proc/self/fd/{}".format(self._source),
                os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC,
            )
        except OSError:  # a socket cannot be opened by its name
            fd = fcntl.fcntl(self._source, fcntl.F_DUPFD_CLOEXEC, 3)
            os.set_blocking(fd, False)
        shrink_pipe(fd)
        return fd

    def _lost(self, error: OSError, now_ns: int) -> None:
        if error.errno == errno.EPIPE:
            self.stop()
            raise StdoutClosed from None
        super()._lost(error, now_ns)
