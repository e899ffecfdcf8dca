# SPDX-License-Identifier: Apache-2.0
"""Noise that is tested and thrown away: what a check reads of a source."""

from __future__ import annotations

import time
from typing import NamedTuple

from netrng_hostd.config import SourceConfig
from netrng_hostd.core.health import APT_BITS, APT_BYTES, BLOCK, RCT, STARTUP, Alarm, HealthTests
from netrng_hostd.sources import Source
from netrng_hostd.sources.pace import ReadSize

DISTRUST = "distrust it: cable, driver, age"
MAX_READ = 4096  # bytes at once
TESTS = (RCT, APT_BYTES, APT_BITS, BLOCK)


class Trial:
    """The daemon's own health tests over what one thread reads; another may look at it meanwhile.

    ``over``: to be set by the one who looks, for the one who reads: no more is wanted.
    """

    def __init__(self, min_entropy: float) -> None:
        self._tests = HealthTests(min_entropy)
        self.n_bytes = 0  # that came, after an alarm as well
        self.alarm: Alarm | None = None  # the first
        self.over = False

    @property
    def started_up(self) -> bool:
        """Whether the bytes of the start-up test (SP 800-90B 4.3) have come."""
        return self.n_bytes >= STARTUP

    def feed(self, noise: memoryview) -> None:
        """Tests the next bytes; the caller wipes them, and nothing of them is left here but the tests'."""
        verdict = self._tests.feed(noise)
        verdict.released[:] = bytes(len(verdict.released))
        self.n_bytes += len(noise)
        self.alarm = self.alarm or verdict.alarm

    def wipe(self) -> None:
        """What the tests hold; by the one who reads, at its end."""
        self._tests.restart()


class Limits(NamedTuple):
    """When a test is over: at ``most`` bytes, or after ``test_s`` seconds if those of the start-up test came.

    If they did not: when nothing has come for ``silent_s`` seconds, at last after ``trickle_s``.
    """

    most: int = 65536
    test_s: float = 10.0
    silent_s: float = 10.0
    trickle_s: float = 60.0


class Reading:
    """A test of ``source`` up to ``most`` bytes: what one thread reads, while another looks at it."""

    def __init__(self, source: Source, min_entropy: float, most: int) -> None:
        self.trial = Trial(min_entropy)
        self._source = source
        self._most = most
        self._begun_s = self._last_s = time.monotonic()  # when bytes came last

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begun_s

    @property
    def silent_s(self) -> float:
        """Since when nothing has come."""
        return time.monotonic() - self._last_s

    @property
    def rate(self) -> int:
        """Bytes per second, up to the last that came."""
        return int(self.trial.n_bytes / max(self._last_s - self._begun_s, 1e-3))

    def run(self) -> None:
        """In a thread of its own. Raises SourceFailure."""
        trial, sizes = self.trial, ReadSize(MAX_READ)
        try:
            self._source.open()
            with memoryview(bytearray(MAX_READ)) as buffer:
                while not (trial.over or trial.alarm or trial.n_bytes >= self._most):
                    self._read(buffer, sizes)
        finally:
            trial.wipe()
            self._source.close()

    def _read(self, buffer: memoryview, sizes: ReadSize) -> None:
        want = min(sizes.bytes, self._most - self.trial.n_bytes)
        begun_ns = time.monotonic_ns()
        with buffer[:want] as view:
            try:
                count = self._source.read_into(view)
                sizes.took(count, want, time.monotonic_ns() - begun_ns)
                if count:
                    self.trial.feed(view[:count])
                    self._last_s = time.monotonic()
            finally:
                view[:] = bytes(want)

    def is_over(self, limits: Limits) -> bool:
        if self.trial.started_up:
            return self.elapsed_s >= limits.test_s
        return self.silent_s >= limits.silent_s or self.elapsed_s >= limits.trickle_s


def alarm_trouble(trial: Trial, source: SourceConfig) -> str | None:
    """What is wrong with the few bytes that a check has read, and what to do; None if nothing is."""
    if trial.alarm is None:
        return None
    longer = f"netrng-hostd check --source {source.name} tests more of it"
    return f"{alarm_text(trial.alarm)}; {DISTRUST}; {longer}"


def alarm_text(alarm: Alarm) -> str:
    """Which test failed, after how many bytes, on what count."""
    return f"health test alarm ({alarm.test}) after {alarm.offset} bytes: {alarm.detail}"
