# SPDX-License-Identifier: Apache-2.0
"""One thread per source: reads a little, vets it, hands what passed to the event loop.

The thread owns the source and its vetting; the loop owns all else.  They share two things: the
allowance (how far the thread may read, so that the reservoir can always take what it releases) and the
deliveries, which arrive in the loop in the order of the reads.

The source's capacity shows only while the thread does not wait for space.  So there are probes: until a
second of reading on end has been measured, and the start-up test has been passed, the thread reads on
although the reservoir is full.  What it reads replaces the reservoir's oldest bytes, and what the loop is too
slow to take is tested and thrown away.  So is what a source gives in a probe while others serve.

A read that does not return cannot be interrupted. The reader is then stopped, which closes its outbox, and
another one takes its place: what the abandoned thread's read brings one day is wiped and goes nowhere.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from netrng_hostd.core.vetting import Vetted, Vetting
from netrng_hostd.sources import Source, SourceFailure
from netrng_hostd.sources.delivery import Delivery, Outbox, SourceState
from netrng_hostd.sources.pace import CapacityMeter, ReadSize, Retry

T = TypeVar("T")

LOOK_NS = 1_000_000_000  # between two looks at what the kernel has behind the device
WAKE_S = 1.0  # while there is no room: to look, and to fill up what has room for a part of a read
MAX_READ = 65536  # bytes in one read at most, so that a fast source leaves the loop room to breathe
SOON_NS = 500_000_000


class SourceReader:
    """Reads ``source`` while ``allow`` permits; all callbacks run in the loop's thread.

    ``named`` is told the kernel's name for the device (identity.rng_current) when it is known and when it
    changes, ``failed`` of a mistake of ours, after which nothing is read any more. ``retry`` and ``capacity``
    are what is known of the source from before; the first attempt comes after ``delay_ns``.
    """

    def __init__(
        self,
        source: Source,
        vetting: Vetting,
        loop: asyncio.AbstractEventLoop,
        *,
        deliver: Callable[[Delivery], None],
        state_changed: Callable[[SourceState], None],
        named: Callable[[str | None], None] | None = None,
        failed: Callable[[BaseException], None] | None = None,
        max_read: int = MAX_READ,
        retry: Retry | None = None,
        capacity: CapacityMeter | None = None,
        delay_ns: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._source = source
        self._vetting = vetting
        self._outbox = Outbox(loop, deliver)
        self._state_changed = state_changed
        self._failed = failed
        self._clock = clock
        self._size = ReadSize(max_read)
        self._retry = retry or Retry()
        self.capacity = capacity or CapacityMeter()
        self._delay_ns = delay_ns
        self._state = SourceState("starting")
        self._permitted = threading.Condition()
        self._allowance = 0
        self._replaceable = 0  # bytes beyond the allowance that may take the place of older ones in a probe
        self._total_read = 0
        self._probing = False
        self._stopping = False
        self._keeping = threading.Lock()  # for the bytes held in the vetting and those on their way
        # A read that never returns must not keep the process: the thread is a daemon thread.
        self._thread = threading.Thread(target=self._run, name="netrng-source", daemon=True)
        self.alarms = 0  # reads that raised an alarm; known here before their deliveries reach the loop
        self.read_since_ns: int | None = None  # since when no byte has come although it may
        self.passed_since_ns: int | None = None  # the same of bytes that have passed the vetting
        self.busy_since_ns: int | None = None  # since when a call that may never return has not returned
        self._named = named
        self._name: str | None = None
        self._looked_ns: int | None = None  # None: the device was just opened
        self._came = False  # whether a byte has come since it was opened

    @property
    def read_size(self) -> int:
        """How much one read brings at present, in bytes."""
        return self._size.bytes

    def start(self) -> None:
        self._thread.start()

    def allow(self, total: int, replaceable: int = 0) -> None:
        """The thread may read until ``total`` bytes have been read since the start.

        In a probe it may read ``replaceable`` more, for which the loop will make room. ``total`` may be less
        than the last one, but what is just being read comes all the same.
        """
        with self._permitted:
            self._replaceable = replaceable
            more = total > self._allowance
            self._allowance = total
            if more and self._is_worth_it():
                self._permitted.notify()

    def probe(self) -> None:
        """Measures the capacity from now on, whether there is room or not; ends by itself."""
        with self._permitted:
            self._probing = True
            self._permitted.notify()

    @property
    def vetting(self) -> Vetting:
        """For what it knows of rates; the rest is the thread's."""
        return self._vetting

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def end(self) -> None:
        """Tells the thread to end, and does not wait for it."""
        with self._permitted:
            self._stopping = True
            self._permitted.notify()

    def stop(self, timeout_s: float = 1.0) -> bool:
        """Ends the thread; False when a read that does not return had to be abandoned.

        Nothing is delivered or told afterwards: what is still on its way is wiped.
        """
        self.end()
        self._thread.join(timeout_s)
        with self._keeping:
            self._vetting.restart()
            self._outbox.close()
        return not self.alive

    def _run(self) -> None:
        try:
            self._wait(self._delay_ns)
            while not self._stopping:
                soon = self._read_until_failure()
                if not self._stopping:
                    self._wait(SOON_NS if soon else self._retry.delay_ns(self._clock()))
        except BaseException as error:  # a mistake of ours, which would otherwise look like a silent source
            detail = f"internal error: {type(error).__name__}; please report it"
            self._report(SourceState("error", detail))
            if self._failed is not None:
                self._post(self._failed, error)
        finally:
            self._forget_held()

    def _read_until_failure(self) -> bool:
        """Whether the failure asks for another look soon, of what was not there to be looked at.

        One that comes and goes would fill the log, and is waited for longer and longer.
        """
        try:
            self._open()
            self._read_until_stopped()
        except SourceFailure as failure:
            self._report(SourceState(failure.state, failure.detail))
            self._forget_held()
            return failure.soon and not self._came
        finally:
            self._call(self._source.close)
        return False

    def _call(self, function: Callable[[], T]) -> T:
        """Calls what may never return."""
        self.busy_since_ns = self._clock()
        try:
            return function()
        finally:
            self.busy_since_ns = None

    def _open(self) -> None:
        self._looked_ns = None
        self._came = False
        try:
            self._call(self._source.open)
        except SourceFailure as failure:
            if failure.state == "absent":
                self._report_name(None)
            raise

    def _read_until_stopped(self) -> None:
        with memoryview(bytearray(self._size.maximum)) as buffer:
            while (room := self._room()) is not None:
                want = min(room, self._size.bytes) if room > 0 else self._size.bytes
                with buffer[:want] as view:
                    try:
                        vetted = self._read(view, wanted=room > 0)
                    finally:
                        view[:] = bytes(want)
                if vetted is not None:
                    self._judge(vetted)

    def _read(self, view: memoryview, wanted: bool) -> Vetted | None:
        """One read and its test; None when nothing came, or when it came too late.

        Unless it is ``wanted`` nobody has room for it: what passes the test is thrown away.
        """
        begun_ns = self._clock()
        if self.read_since_ns is None:
            self.read_since_ns = begun_ns
        if self.passed_since_ns is None:
            self.passed_since_ns = begun_ns
        count = self._call(lambda: self._source.read_into(view))
        ended_ns = self._clock()
        if count == 0:
            return None
        self.read_since_ns = None
        self._came = True
        self._size.took(count, len(view), ended_ns - begun_ns)
        measured = self.capacity.add(count, ended_ns)
        self._total_read += count
        with self._keeping, view[:count] as noise:
            if self._stopping:
                return None
            vetted = self._vetting.feed(noise)
            if measured and not self._vetting.starting:  # else one that is slow would wait for ever to begin
                self._probing = False
            released, discarded = vetted.released, vetted.discarded
            if released:
                self.passed_since_ns = None
            if not wanted:
                discarded += len(released)
                released[:] = bytes(len(released))
                released = bytearray()
            self.alarms += bool(vetted.alarms)
            alarm = vetted.alarms[0] if vetted.alarms else None
            self._hand_over(
                Delivery(count, released, discarded, self._vetting.held, alarm, vetted.conditioned)
            )
        return vetted

    def _judge(self, vetted: Vetted) -> None:
        now_ns = self._clock()
        if vetted.alarms:
            alarm = vetted.alarms[0]
            detail = f"health test: {alarm.test}: {alarm.detail}"
            if self._retry.alarmed(len(vetted.alarms), now_ns):
                raise SourceFailure("failed", detail)
            self._probing = True  # so that it gets the bytes of its start-up, whether it may serve or not
            self._report(SourceState("starting", detail))
        elif vetted.released:
            self._retry.succeeded(now_ns)
            self._report(SourceState("healthy"))

    def _is_worth_it(self) -> bool:
        """Whether there is room for a whole read: where a source is fast each costs more than its bytes."""
        return self._allowance - self._total_read >= self._size.bytes

    def _room(self) -> int | None:
        """How much may be read now, in bytes; waits for it. 0: in a probe, in vain; None: stopping.

        What is too little for a whole read is filled up when it has been so for a while.
        """
        waited = False
        while True:
            if not self._stopping:
                self._look()
            with self._permitted:
                if self._stopping:
                    return None
                room = self._allowance - self._total_read
                if self._probing:
                    return max(0, room + self._replaceable)
                # What was begun goes on: else a source that fell silent would never have been so for long.
                begun = self.passed_since_ns is not None
                if self._is_worth_it() or (room > 0 and (waited or begun)):
                    return room
                self.capacity.waited()
                # It was allowed less while nothing came: now no byte may come.
                self.read_since_ns = self.passed_since_ns = None
                waited = not self._permitted.wait(WAKE_S)

    def _look(self) -> None:
        """The kernel's answer may wait for a device that hangs (rng_mutex), so the loop must not ask."""
        now_ns = self._clock()
        if self._looked_ns is not None and now_ns - self._looked_ns < LOOK_NS:
            return
        before, just_opened = self._name, self._looked_ns is None
        self._report_name(self._call(self._source.kernel_name))
        self._looked_ns = self._clock()
        if self._name != before and not just_opened:
            raise SourceFailure("starting", "", soon=True)  # what follows is another device's

    def _wait(self, wait_ns: int) -> None:
        with self._permitted:
            self._permitted.wait_for(lambda: self._stopping, wait_ns / 1e9)

    def _forget_held(self) -> None:
        """A source that is opened again may be another one: what waits for its window is not released."""
        self.read_since_ns = self.passed_since_ns = None
        self.capacity.failed()
        self._probing = True  # also so that it gets the bytes of its start-up, whether it may serve or not
        with self._keeping:
            discarded = self._vetting.restart()
            if discarded and not self._stopping:
                self._hand_over(Delivery(0, bytearray(), discarded, 0))

    def _hand_over(self, delivery: Delivery) -> None:
        if not self._outbox.send(delivery):
            self._stopping = True

    def _report(self, state: SourceState) -> None:
        if state != self._state:
            self._state = state
            self._post(self._state_changed, state)

    def _report_name(self, name: str | None) -> None:
        if name != self._name:
            self._name = name
            if self._named is not None:
                self._post(self._named, name)

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        if not self._outbox.post(callback, *args):
            self._stopping = True  # the daemon is gone


__all__ = ["Delivery", "SourceReader", "SourceState"]
