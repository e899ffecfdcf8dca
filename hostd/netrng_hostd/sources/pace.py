# SPDX-License-Identifier: Apache-2.0
"""How much to read at once, how fast a source is, and how long to wait after a failure."""

from __future__ import annotations

from collections import deque

MIN_READ = 32  # bytes
SLOW_READ_NS = 80_000_000
FAST_READ_NS = 30_000_000  # between two reads some devices do nothing: few and large ones
SAVED_UP_NS = 250_000_000
MEASURE_NS = 1_000_000_000
AVERAGE_NS = 10_000_000_000
HUNG_ONCE_NS = 60_000_000_000
FIRST_RETRY_NS = 500_000_000
LAST_RETRY_NS = 30_000_000_000
LAST_ALARM_RETRY_NS = 60_000_000_000
SETTLED_NS = 60_000_000_000
ALARM_MEMORY_NS = 3_600_000_000_000


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

    ``rate`` is in bytes per second, None until a second of reading on end has been seen: the mean over the
    seconds of that kind that ended in the last ten. ``measured_ns`` is the monotonic time of the last one's
    end. After a wait the first quarter of a second does not count: it may find what a device, or a pipe, has
    saved up meanwhile. Nor does a measurement that took more than twice its second, a minute or more after
    the last such: a read that hung for once says nothing of the source before and after, while one that hangs
    again is so slow.
    """

    def __init__(self, rate: int | None = None, measured_ns: int | None = None) -> None:
        self.rate = rate
        self.measured_ns = measured_ns
        self._resumed_ns: int | None = None
        self._since_ns: int | None = None
        self._bytes = 0
        self._hung_ns: int | None = None  # when a measurement was passed over
        self._seconds: deque[tuple[int, int, int]] = deque()  # (end, bytes, duration)

    def waited(self) -> None:
        """The reader waits, or the source failed: what was counted says nothing about the source."""
        self._resumed_ns = self._since_ns = None
        self._bytes = 0

    def failed(self) -> None:
        """The source failed, and what is opened next may be another one."""
        self.waited()
        self._hung_ns = None
        self._seconds.clear()

    def add(self, count: int, ended_ns: int) -> bool:
        """``count`` bytes came from a read that has ended; whether a measurement ended with it."""
        if self._since_ns is None:
            if self._resumed_ns is None:
                self._resumed_ns = ended_ns
            elif ended_ns - self._resumed_ns >= SAVED_UP_NS:
                self._since_ns = ended_ns
            return False
        self._bytes += count
        elapsed_ns = ended_ns - self._since_ns
        if elapsed_ns < MEASURE_NS:
            return False
        if elapsed_ns > 2 * MEASURE_NS:
            hung_ns, self._hung_ns = self._hung_ns, ended_ns
            if hung_ns is None or self._since_ns - hung_ns > HUNG_ONCE_NS:
                self._since_ns, self._bytes = ended_ns, 0
                return False
        seconds = self._seconds
        seconds.append((ended_ns, self._bytes, elapsed_ns))
        while seconds[0][0] < ended_ns - AVERAGE_NS:
            seconds.popleft()
        total_ns = sum(duration for _, _, duration in seconds)
        self.rate = sum(n_bytes for _, n_bytes, _ in seconds) * 1_000_000_000 // total_ns
        self.measured_ns = self._since_ns = ended_ns
        self._bytes = 0
        return True


class Retry:
    """When a source is opened again, and whether its health tests' alarms are chance.

    One alarm in an hour may be chance: a test raises a false one in 2^40. A second within the hour of the
    last is proof. The waits double from 0.5 s to 30 s, to 60 s while an alarm is remembered; a failing
    source may pass its start-up each time, so success shortens them only a minute after the last failure
    and an hour after the last alarm.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._failed_ns = 0
        self._alarms = 0
        self._alarmed_ns = 0

    def alarmed(self, count: int, now_ns: int) -> bool:
        """``count`` alarms, just now; whether they and those remembered are proof of a bad source."""
        self._alarms = self._remembered(now_ns) + count
        self._alarmed_ns = now_ns
        return self._alarms > 1

    def succeeded(self, now_ns: int) -> None:
        """Bytes have passed the health tests."""
        if now_ns - self._failed_ns >= SETTLED_NS and not self._remembered(now_ns):
            self._failures = 0

    def delay_ns(self, now_ns: int) -> int:
        """The wait after one more failure."""
        last = LAST_ALARM_RETRY_NS if self._remembered(now_ns) else LAST_RETRY_NS
        delay = min(last, FIRST_RETRY_NS << min(self._failures, 10))
        self._failures += 1
        self._failed_ns = now_ns
        return delay

    def _remembered(self, now_ns: int) -> int:
        """How many alarms there were since the last hour without one."""
        return self._alarms if now_ns - self._alarmed_ns < ALARM_MEMORY_NS else 0
