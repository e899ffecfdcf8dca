# SPDX-License-Identifier: Apache-2.0
"""A token bucket in whole numbers, nothing rounded away.

The level is counted in byte·nanoseconds, so that rate (bytes per second) times elapsed nanoseconds is
added exactly, however often or seldom somebody looks. One class serves three purposes:

- a limit: depth is the burst; a domain waits while the level does not cover a sample;
- a reservation: the level is what is owed (entitled minus served), negative while served ahead;
- a seed: 64 bytes deep, one byte a second.
"""

from __future__ import annotations

NS_PER_S = 1_000_000_000


class Bucket:
    """Starts full. `level` is as of `at_ns`; it may be negative: a debt."""

    __slots__ = ("at_ns", "depth", "level", "rate")

    def __init__(self, rate: int, depth_bytes: int, now_ns: int) -> None:
        self.rate = rate
        self.depth = depth_bytes * NS_PER_S
        self.level = self.depth
        self.at_ns = now_ns

    def settle(self, now_ns: int) -> None:
        """Brings the level up to now. A clock that steps back adds nothing twice."""
        elapsed = now_ns - self.at_ns
        if elapsed > 0:
            self.at_ns = now_ns
            self.level = min(self.level + self.rate * elapsed, self.depth)

    def covers(self, size_bytes: int, now_ns: int) -> bool:
        """Whether that many bytes could be spent now. A negative size asks about a debt."""
        self.settle(now_ns)
        return self.level >= size_bytes * NS_PER_S

    def holds(self, now_ns: int) -> int:
        """Whole bytes that could be spent now."""
        self.settle(now_ns)
        return self.level // NS_PER_S

    def spend(self, size_bytes: int, now_ns: int) -> None:
        """Takes them out, into debt if need be."""
        self.settle(now_ns)  # first: a full bucket has let everything since overflow
        self.level -= size_bytes * NS_PER_S

    def when(self, size_bytes: int) -> int:
        """The first nanosecond at which the bucket covers that many bytes (at most its depth).

        In the past, or `at_ns`, if it did when last settled. The rate must not be 0.
        """
        missing = size_bytes * NS_PER_S - self.level
        return self.at_ns if missing <= 0 else self.at_ns - (-missing // self.rate)

    def reshape(self, rate: int, depth_bytes: int, now_ns: int) -> None:
        """A new rate and depth from now on; what was saved or owed until now stays, as far as it fits."""
        self.settle(now_ns)
        self.rate = rate
        self.depth = depth_bytes * NS_PER_S
        self.level = min(self.level, self.depth)
