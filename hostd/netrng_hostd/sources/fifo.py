# SPDX-License-Identifier: Apache-2.0
"""A FIFO that another program writes its random bytes into: infnoise, ssmrandom, rtl_entropy."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import weakref
from pathlib import Path

from netrng_hostd.sources.failure import SourceFailure
from netrng_hostd.sources.identity import refuse_reason, refuse_status
from netrng_hostd.sources.polled import read_polled

F_GETPIPE_SZ = 1032  # fcntl(2); Python names it from 3.10 on
PIECE = 65536  # bytes, what a FIFO holds by default
BETWEEN_S = 0.5  # a writer may open it for each block anew, as EntropyBroker's feeders do
LOOK_S = 0.02


class FifoSource:
    """What one writer after the other puts into a FIFO.

    The descriptor outlives close(), until the path names another FIFO or this object is gone: a program that
    writes while nobody has the FIFO open is killed (SIGPIPE), and one that opens it then waits. What such a
    program has written by the time of open() is thrown away: of a source that failed, a full FIFO would fail
    it again many times after it is good.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._ended_s: float | None = None  # since when it is at its end
        self._release: weakref.finalize[[int], FifoSource] | None = None

    def open(self) -> None:
        # Before opening: that of a device may have effects.
        self._refuse(refuse_reason(self._path, "fifo"))
        if self._still_named():
            if self._ended_s is None:  # else all that is here is of a writer that has just come
                self._throw_away()
            return
        self._give_up()
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            raise SourceFailure.of(error, "open", self._path) from None
        self._fd, self._release = fd, weakref.finalize(self, os.close, fd)
        self._ended_s = None
        self._refuse(refuse_status(os.fstat(fd), self._path, "fifo"))  # and what was opened, as by a device

    def read_into(self, view: memoryview) -> int:
        count = read_polled(self._fd, view, self._path)
        if count != 0:
            self._ended_s = None
            return count or 0
        # pipe(7): all that was written has been read, and no writer has it open
        now_s = time.monotonic()
        if self._ended_s is None:
            self._ended_s = now_s
        if now_s - self._ended_s >= BETWEEN_S:
            raise SourceFailure("absent", f"no program writes to {self._path}", soon=True)
        time.sleep(LOOK_S)  # poll() would say at once that there is an end, and for ever
        return 0

    def kernel_name(self) -> str | None:
        return None

    def close(self) -> None:
        """Keeps the descriptor, see the class."""

    def _throw_away(self) -> None:
        buffer = bytearray(PIECE)
        left = fcntl.fcntl(self._fd, F_GETPIPE_SZ)
        with contextlib.suppress(BlockingIOError):
            while left > 0 and (count := os.readv(self._fd, [buffer])):
                left -= count
        buffer[:] = bytes(PIECE)

    def _refuse(self, reason: str | None) -> None:
        if reason is not None:
            self._give_up()
            raise SourceFailure("error", reason)

    def _still_named(self) -> bool:
        """Whether the path still names the FIFO that is open."""
        if self._fd < 0:
            return False
        try:
            return os.path.samestat(Path(self._path).stat(), os.fstat(self._fd))
        except OSError:
            return False

    def _give_up(self) -> None:
        self._fd = -1
        if self._release is not None:
            self._release()
            self._release = None
