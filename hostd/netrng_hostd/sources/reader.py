# SPDX-License-Identifier: Apache-2.0
"""One thread per source: reads a little, tests it, hands what passed to the event loop.

The thread owns the source and its health tests; the loop owns all else.  They share two things: the
allowance (how far the thread may read, so that the reservoir can always take what it releases) and the
deliveries, which arrive in the loop in the order of the reads.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from netrng_hostd.core.health import Alarm, HealthTests, Verdict
from netrng_hostd.sources import Source, SourceFailure
from netrng_hostd.sources.pace import CapacityMeter, ReadSize, Retry

MAX_READ = 32768  # bytes in one read at most, so that a fast source leaves the loop room to breathe


@dataclass(frozen=True)
class Delivery:
    """What one read came to.  ``read == len(released) + discarded + (held - held before)``, in bytes."""

    read: int
    released: bytearray = field(repr=False)
    discarded: int
    held: int
    alarm: Alarm | None


@dataclass(frozen=True)
class SourceState:
    """One of the source states of docs/operating.md, with a line for a person."""

    name: str
    detail: str = ""


class SourceReader:
    """Reads ``source`` while ``allow`` permits; all callbacks run in the loop's thread."""

    def __init__(
        self,
        source: Source,
        health: HealthTests,
        loop: asyncio.AbstractEventLoop,
        *,
        deliver: Callable[[Delivery], None],
        state_changed: Callable[[SourceState], None],
        max_read: int = MAX_READ,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._source = source
        self._health = health
        self._loop = loop
        self._deliver = deliver
        self._state_changed = state_changed
        self._clock = clock
        self._size = ReadSize(max_read)
        self._retry = Retry()
        self.capacity = CapacityMeter()
        self._state = SourceState("starting")
        self._permitted = threading.Condition()
        self._allowance = 0
        self._total_read = 0
        self._stopping = False
        # A read that never returns must not keep the process: the thread is a daemon thread.
        self._thread = threading.Thread(target=self._run, name="netrng-source", daemon=True)
        self.read_since_ns: int | None = None  # since when no byte has come although it may

    def start(self) -> None:
        self._thread.start()

    def allow(self, total: int) -> None:
        """The thread may read until ``total`` bytes have been read since the start."""
        with self._permitted:
            if total > self._allowance:
                self._allowance = total
                self._permitted.notify()

    def stop(self, timeout_s: float = 1.0) -> bool:
        """Ends the thread; False when a read that does not return had to be abandoned."""
        with self._permitted:
            self._stopping = True
            self._permitted.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._source.open()
                self._read_until_stopped()
            except SourceFailure as failure:
                self._report(SourceState(failure.state, failure.detail))
                self._forget_held()
            finally:
                self._source.close()
            self._wait(self._retry.delay_ns(self._clock()))

    def _read_until_stopped(self) -> None:
        buffer = bytearray(self._size.maximum)
        while (room := self._room()) > 0:
            want = min(room, self._size.bytes)
            begun_ns = self._clock()
            if self.read_since_ns is None:
                self.read_since_ns = begun_ns
            with memoryview(buffer) as whole, whole[:want] as view:
                count = self._source.read_into(view)
                ended_ns = self._clock()
                if count == 0:
                    continue
                with view[:count] as noise:
                    verdict = self._health.feed(noise)
                    noise[:] = bytes(count)
            self.read_since_ns = None
            self._size.took(count, want, ended_ns - begun_ns)
            self.capacity.add(count, begun_ns, ended_ns)
            self._total_read += count
            self._post(self._deliver, Delivery(count, verdict.released, verdict.discarded,
                                               self._health.held, verdict.alarm))
            self._judge(verdict, ended_ns)

    def _judge(self, verdict: Verdict, now_ns: int) -> None:
        if verdict.alarm is not None:
            detail = f"health test: {verdict.alarm.detail}"
            if self._retry.alarmed(len(verdict.alarms), now_ns):
                raise SourceFailure("failed", detail)
            self._report(SourceState("starting", detail))
        elif verdict.released:
            self._retry.succeeded(now_ns)
            self._report(SourceState("healthy"))

    def _room(self) -> int:
        """How much may be read now, in bytes; waits for it; 0 when stopping."""
        with self._permitted:
            if self._allowance <= self._total_read and not self._stopping:
                self.capacity.waited()
                self._permitted.wait_for(lambda: self._stopping or self._allowance > self._total_read)
            return 0 if self._stopping else self._allowance - self._total_read

    def _wait(self, wait_ns: int) -> None:
        with self._permitted:
            self._permitted.wait_for(lambda: self._stopping, wait_ns / 1e9)

    def _forget_held(self) -> None:
        """A source that is opened again may be another one: what waits for its window is not released."""
        self.read_since_ns = None
        self.capacity.waited()
        discarded = self._health.restart()
        if discarded:
            self._post(self._deliver, Delivery(0, bytearray(), discarded, 0, None))

    def _report(self, state: SourceState) -> None:
        if state != self._state:
            self._state = state
            self._post(self._state_changed, state)

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop has closed: the daemon is gone
            self._stopping = True
