# SPDX-License-Identifier: Apache-2.0
"""The bytes of a session that no sink has taken yet: one buffer of fixed size, overwritten as it is spent."""

from .wire import wipe


class Stock:
    """At most ``capacity`` bytes, first in, first out."""

    def __init__(self, capacity: int) -> None:
        self._buffer = bytearray(capacity)  # never resized: growing would leave copies behind
        self._start = self._end = 0

    def __len__(self) -> int:
        return self._end - self._start

    def __repr__(self) -> str:  # the bytes must not end in a log
        return "Stock({} bytes)".format(len(self))

    def put(self, data: bytearray) -> None:
        """Adds a copy of ``data``.  Raises ValueError when there is no room for all of it."""
        size = len(data)
        if size > len(self._buffer) - len(self):
            raise ValueError("{} bytes, room for {}".format(size, len(self._buffer) - len(self)))
        if self._end + size > len(self._buffer):
            used = len(self)
            self._buffer[:used] = self._buffer[self._start : self._end]
            self._buffer[used:] = bytes(len(self._buffer) - used)
            self._start, self._end = 0, used
        self._buffer[self._end : self._end + size] = data
        self._end += size

    def view(self) -> memoryview:
        """All that is there, without a copy.  Release it before the next call."""
        return memoryview(self._buffer)[self._start : self._end]

    def drop(self, n: int) -> None:
        """Overwrites and forgets the first ``n`` bytes."""
        self._buffer[self._start : self._start + n] = bytes(n)
        self._start += n
        if self._start == self._end:
            self._start = self._end = 0

    def wipe(self) -> int:
        """Overwrites and forgets everything; returns how many bytes there were."""
        n = len(self)
        wipe(self._buffer)
        self._start = self._end = 0
        return n
