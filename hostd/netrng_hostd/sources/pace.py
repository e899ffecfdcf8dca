# SPDX-License-Identifier: Apache-2.0
"""How much to read at once, how fast a source is, and how long to wait after a failure."""

from __future__ import annotations

MIN_READ = 32  # bytes
SLOW_READ_NS = 40_000_000
FAST_READ_NS = 4_000_000
MEASURE_NS = 1_000_000_000
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 30.0


class ReadSize:
    """Bytes per read: small enough that a slow source's bytes arrive soon, large enough to be cheap."""

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.bytes = min(64, maximum)

    def took(self, count: int, want: int, elapsed_ns: int) -> None:
        """A read of ``want`` bytes brought ``count`` in ``elapsed_ns``."""
        if elapsed_ns > SLOW_READ_NS:
            self.bytes = max(MIN_READ, self.bytes // 2)
        elif elapsed_ns < FAST_READ_NS and count == want >= self.bytes:
            self.bytes = min(self.maximum, self.bytes * 2)


class CapacityMeter:
    """A source's sustained rate, learnt only while its reader never waits for space.

    ``rate`` is in bytes per second, None until a second of reading on end has been seen;
    ``measured_ns`` is the monotonic time of that measurement's end.
    """

    def __init__(self) -> None:
        self.rate: int | None = None
        self.measured_ns: int | None = None
        self._since_ns: int | None = None
        self._bytes = 0

    def waited(self) -> None:
        """The reader waits, or the source failed: what was counted says nothing about the source."""
        self._since_ns = None
        self._bytes = 0

    def add(self, count: int, begun_ns: int, ended_ns: int) -> None:
        """``count`` bytes came from a read that lasted from ``begun_ns`` to ``ended_ns``."""
        if self._since_ns is None:
            self._since_ns = begun_ns
        self._bytes += count
        elapsed_ns = ended_ns - self._since_ns
        if elapsed_ns >= MEASURE_NS:
            self.rate = self._bytes * 1_000_000_000 // elapsed_ns
            self.measured_ns = ended_ns
            self._since_ns = ended_ns
            self._bytes = 0


class Retry:
    """Waits of 0.5 s doubling to 30 s; back to the shortest after success."""

    def __init__(self) -> None:
        self.failures = 0

    def failed(self) -> None:
        self.failures += 1

    def succeeded(self) -> None:
        self.failures = 0

    def delay_s(self) -> float:
        """The wait after one more failure."""
        delay = min(LAST_RETRY_S, FIRST_RETRY_S * (1 << min(self.failures, 10)))
        self.failures += 1
        return delay
