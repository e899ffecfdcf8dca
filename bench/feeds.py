# SPDX-License-Identifier: Apache-2.0
"""Sources that go bad when they are told to, and whose bytes can be told wherever they turn up.

A feed writes a stream of its own, evenly, and keeps all that it has written: the place of a byte in that is
its *offset*. What nobody takes waits, so the offsets of what a reader gets follow one another.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pty
import threading
import time
import tty
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from tests.edge.rig import F_SETPIPE_SZ

PIECE = 512  # bytes
PAGE = 4096
TURN_S = 0.005
LATE_S = 0.1  # a turn may be so late and is made up for
BIAS = 0.7
RATE = 50_000  # bytes per second

GOOD, ZEROS, BIASED, COUNTER, SILENT = "good", "zeros", "biased", "counter", "silent"

_ONE_OR_ZERO = bytes(b"01"[byte < round(BIAS * 256)] for byte in range(256))
_NUMBERS = bytes(range(256)) * (PIECE // 256)


def good(key: bytes, number: int) -> bytes:
    """The piece of that number; any 8 bytes of it are nowhere else."""
    return hashlib.shake_256(b"%b %d" % (key, number)).digest(PIECE)


def biased(key: bytes, number: int) -> bytes:
    """The same, but a bit is one with probability BIAS."""
    chances = hashlib.shake_256(b"biased %b %d" % (key, number)).digest(8 * PIECE)
    return int(chances.translate(_ONE_OR_ZERO), 2).to_bytes(PIECE, "big")


MAKERS: dict[str, Callable[[bytes, int], bytes]] = {
    GOOD: good,
    ZEROS: lambda _key, _number: bytes(PIECE),
    BIASED: biased,
    COUNTER: lambda _key, _number: _NUMBERS,
}


class Feed(ABC):
    """Writes to a descriptor from a thread; a context manager. ``rate``: bytes per second at most."""

    kind: ClassVar[str]  # of a source, for hostd.toml

    def __init__(self, path: Path, key: bytes, rate: int = RATE) -> None:
        self.path = path
        self.written = bytearray()
        self._key = key
        self._rate = rate
        self._lock = threading.Lock()  # for all below
        self._fd = -1
        self._kind = GOOD
        self._rest = b""
        self._pieces = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"feed {path.name}", daemon=True)

    def plug(self) -> None:
        """Makes the path and begins, or goes on, to write."""
        with self._lock:
            self._fd = self._make()

    def unplug(self) -> int:
        """Path and descriptor are gone; how many bytes were written before."""
        with self._lock:
            self._remove()
            self._fd = -1
            return len(self.written)

    def turn(self, kind: str) -> int:
        """From now on it writes that; the offset of the first such byte."""
        with self._lock:
            self._kind, self._rest = kind, b""
            return len(self.written)

    def late(self, n_bytes: int) -> None:
        """So many good bytes at once, whatever it writes."""
        with self._lock:
            self.written += good(self._key, self._pieces)[:n_bytes]
            self._pieces += 1
            os.write(self._fd, self.written[-n_bytes:])

    @abstractmethod
    def _make(self) -> int:
        """The path leads there from now on; the descriptor to write to."""

    def _remove(self) -> None:
        self.path.unlink()
        os.close(self._fd)

    def _run(self) -> None:
        begun, done = time.monotonic(), 0
        while not self._ended.wait(TURN_S):
            now = time.monotonic()
            begun = max(begun, now - LATE_S - done / self._rate)
            due = int((now - begun) * self._rate) - done
            with self._lock:
                count = self._write(due)
            done += count
            if count < due:  # nobody reads, or there is nothing to be written: not to be made up for
                begun, done = now, 0

    def _write(self, due: int) -> int:
        count = 0
        while count < due and self._fd >= 0 and self._kind != SILENT:
            if not self._rest:
                self._rest = MAKERS[self._kind](self._key, self._pieces)
                self._pieces += 1
            try:
                n = os.write(self._fd, self._rest[: due - count])
            except BlockingIOError:
                break
            self.written += self._rest[:n]
            self._rest = self._rest[n:]
            count += n
        return count

    def __enter__(self) -> Feed:
        self.plug()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._fd >= 0:
            self.unplug()


class FifoFeed(Feed):
    """Another program's output in a FIFO, which holds a page."""

    kind = "fifo"

    def _make(self) -> int:
        os.mkfifo(self.path)
        fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # no write ever sees EPIPE
        fcntl.fcntl(fd, F_SETPIPE_SZ, PAGE)
        return fd


class DeviceFeed(Feed):
    """A character device: the slave of a pseudo terminal in raw mode. A read of it waits until bytes come."""

    kind = "device"

    def _make(self) -> int:
        master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(master, False)
        # As /dev/hwrng may be a link of udev's: the next device that is plugged in has another number.
        self.path.symlink_to(os.ttyname(self._slave))
        return master

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._slave)
        super()._remove()
