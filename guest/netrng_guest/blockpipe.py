# SPDX-License-Identifier: Apache-2.0
"""A pipe that holds one block at a time, and knows how much of it was read.

Both ends stay open here, so that what a reader left can be taken out again: to be given to the next reader,
or to be overwritten.  The pipe holds one page in one slot and so polls writable exactly when it is empty.
"""

import array
import fcntl
import os
import select
import termios
from typing import Tuple

from .loop import Loop
from .pipesink import shrink_pipe


class BlockPipe:
    """``read_end`` is for the reader; ``waiting`` the bytes that lay in the pipe at the last ``count``."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # the reader opens it anew
        shrink_pipe(self._write_end)
        self.waiting = 0

    def put(self, block: bytearray) -> None:
        """Writes ``block``, at most a page, into the empty pipe: at once and whole."""
        written = os.write(self._write_end, block)
        if written != len(block):  # pipe(7): a write of up to a page is never partial
            raise AssertionError("{} of {} bytes in the pipe".format(written, len(block)))
        self.waiting = written
        self._loop.watch(self._write_end, select.EPOLLOUT, self._on_empty)

    def count(self) -> int:
        """Bytes that the reader took since the last call."""
        if not self.waiting:
            return 0
        unread = array.array("i", [0])
        fcntl.ioctl(self._write_end, termios.FIONREAD, unread, True)
        taken, self.waiting = self.waiting - unread[0], unread[0]
        return taken

    def take_back(self) -> Tuple[bytearray, int]:
        """Empties the pipe; returns what lay in it, and how much the reader took since the last count."""
        rest = bytearray(self.waiting)
        n = 0
        if rest:
            try:
                n = os.readv(self.read_end, [rest])
            except BlockingIOError:
                pass  # the reader was faster
        taken, self.waiting = len(rest) - n, 0
        del rest[n:]
        return rest, taken

    def close(self) -> None:
        """Closes both ends."""
        self._loop.unwatch(self._write_end)
        os.close(self._write_end)
        os.close(self.read_end)

    def _on_empty(self, events: int) -> None:
        self._loop.unwatch(self._write_end)  # it would poll writable until the next block
