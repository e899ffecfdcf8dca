# SPDX-License-Identifier: Apache-2.0
"""A source's reader, replaced when it hangs, and the source's state as a person sees it."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable

from netrng_hostd.config import SourceConfig
from netrng_hostd.core.policy import Standing
from netrng_hostd.core.vetting import Vetting
from netrng_hostd.sources import Source, make_source
from netrng_hostd.sources.identity import is_virtual
from netrng_hostd.sources.pace import CapacityMeter, Retry
from netrng_hostd.sources.reader import SourceReader, SourceState
from netrng_hostd.supply import Supply

log = logging.getLogger("netrng.source")

PROBE_NS = 60_000_000_000  # a capacity older than that is measured anew
LATE_NS = 1_500_000_000  # between two ticks, which come twice a second: the process stood still
TRICKLE = 12  # times stall_timeout for a test's window to fill; 8.5 bytes per second by default
MEMORY_NS = 3_600_000_000_000  # in which a source that fails again is trusted later and later
FIRST_HOLD_NS, LAST_HOLD_NS = 2_000_000_000, 60_000_000_000
MAX_ABANDONED = 3  # threads of one source that hang in a read; each keeps a descriptor and a stack


class SourceWatch:
    """Call everything from the event loop. ``changed`` is told that the standing may be another one.

    Nothing here looks at the device: a kernel that waits for it would hold up all that the loop serves.
    """

    def __init__(
        self,
        config: SourceConfig,
        supply: Supply,
        *,
        changed: Callable[[], None],
        failed: Callable[[BaseException], None],
        max_read: int,
        make: Callable[[SourceConfig], Source] = make_source,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.config = config
        self._supply = supply
        self._changed = changed
        self._failed = failed
        self._max_read = max_read
        self._make = make
        self._clock = clock
        self._retry = Retry()
        self.capacity = CapacityMeter()
        self.reader: SourceReader | None = None  # None: too many threads hang
        self._abandoned: list[SourceReader] = []
        self._reported = SourceState("starting")
        self._silence = ""  # what a person is told of a source that gives nothing, or too little
        self._troubles = 0  # how many times it was healthy and was no more, each within an hour of the last
        self._ticked_ns = self._went_on_ns = clock()
        self._troubled_ns = self.since_ns = clock()
        self._was_healthy = False
        self.rng_current: str | None = None
        self.virtual = False
        self._ever_named = False

    @property
    def state(self) -> SourceState:
        """One of the source states of docs/operating.md."""
        if self._silence and self._reported.name in ("starting", "healthy"):
            return SourceState("stalled", self._silence)
        return self._reported

    @property
    def standing(self) -> Standing:
        """For the policy."""
        name, measured_ns = self.state.name, self.capacity.measured_ns
        measured = measured_ns is not None and measured_ns > self._troubled_ns
        return Standing(
            self.config.name,
            healthy=name == "healthy",
            proved=measured and self._clock() - self.since_ns >= self._hold_ns,
            starting=name == "starting",
            credit=self.config.credit,
            prng=self.config.kind == "prng",
        )

    def describe(self) -> str:
        """One line for the log."""
        label = f", {self._label()}" if self.rng_current else ""
        if self.config.upstream:
            label = f", upstream: {self.config.origin or 'origin unknown'}, unverified"
        return f"{self.config.name} ({self.config.kind} {self.config.place}{label})"

    def start(self, delay_ns: int = 0) -> None:
        """Reads the source from now on."""
        # What an abandoned thread still does to its own meter is no longer anybody's.
        self.capacity = CapacityMeter(self.capacity.rate, self.capacity.measured_ns)
        self.reader = SourceReader(
            self._make(self.config),
            Vetting(self.config.min_entropy),
            asyncio.get_running_loop(),
            deliver=functools.partial(self._supply.deliver, self.config.name),
            state_changed=self._state_changed,
            named=self._named,
            failed=self._failed,
            max_read=self._max_read,
            retry=self._retry,
            capacity=self.capacity,
            delay_ns=delay_ns,
            clock=self._clock,
        )
        self._supply.attach(self.config.name, self.reader)
        self.reader.probe()  # nothing is known of this source yet
        self.reader.start()

    def end(self) -> None:
        """Tells the reader to end, and does not wait for it."""
        if self.reader is not None:
            self.reader.end()

    def stop(self, timeout_s: float) -> None:
        """Ends the reader; one that is in a read that does not return is left behind."""
        returned = self.reader is None or self.reader.stop(timeout_s)
        if not returned or any(old.alive for old in self._abandoned):
            log.warning("a read of %s does not return; it is left behind", self.config.place)

    def tick(self, now_ns: int) -> None:
        """Notices a source that has gone silent, and has the capacity measured when its age says so."""
        if now_ns - self._ticked_ns > LATE_NS:
            self._went_on_ns = now_ns  # what stood still with us has had no time to return
        self._ticked_ns = now_ns
        self._abandoned = [old for old in self._abandoned if old.alive]
        reader = self.reader
        if reader is None:
            if len(self._abandoned) < MAX_ABANDONED:
                self.start()
        elif self._too_long(reader.busy_since_ns, now_ns):
            self._abandon(reader, now_ns)
        else:
            self._look_at(reader, now_ns)

    def _look_at(self, reader: SourceReader, now_ns: int) -> None:
        silence = self._silence_of(reader, now_ns)
        if silence != self._silence:
            before, self._silence = self.state, silence
            if self.state != before:
                self._tell_state()
            if silence:
                reader.probe()  # so that it is read on, although others serve now
        if self.state.name == "healthy":
            measured_ns = reader.capacity.measured_ns
            if measured_ns is None or now_ns - measured_ns > PROBE_NS:
                reader.probe()

    def _silence_of(self, reader: SourceReader, now_ns: int) -> str:
        if self._too_long(reader.read_since_ns, now_ns):
            return f"no byte from {self.config.place} for {self._patience}"
        if self._too_long(reader.passed_since_ns, now_ns, TRICKLE):
            patience = f"{TRICKLE * self.config.stall_timeout:g} s"
            return f"no window of the health tests from {self.config.place} in {patience}"
        return ""

    def _abandon(self, reader: SourceReader, now_ns: int) -> None:
        """Its thread is in a call that nothing can interrupt."""
        reader.stop(0.0)
        self._supply.detach(self.config.name)
        self._abandoned.append(reader)
        self.reader = None
        detail = f"a read of {self.config.place} has not returned for {self._patience}; it is left behind"
        if self._reported.name != "stalled":
            self._state_changed(SourceState("stalled", detail))
        if len(self._abandoned) < MAX_ABANDONED:
            self.start(self._retry.delay_ns(now_ns))

    def _state_changed(self, state: SourceState) -> None:
        """From the reader."""
        self._reported = state
        self._silence = ""
        self._tell_state()

    def _named(self, name: str | None) -> None:
        """From the reader: the kernel's name for the device, when it is known and when it changes."""
        if name == self.rng_current:
            return
        before = self._label()
        self.rng_current, self.virtual = name, is_virtual(name)
        if self._ever_named:
            log.warning(
                "source %s: the kernel's hardware RNG changed from %s to %s",
                self.config.name, before, self._label(),
            )  # fmt: skip
        else:
            self._ever_named = True
            log.info("source %s: the kernel's hardware RNG is %s", self.config.name, self._label())

    def _label(self) -> str:
        virtual = " (virtual: its host's word)" if self.virtual else ""
        return f"{self.rng_current or 'none'}{virtual}"

    @property
    def _patience(self) -> str:
        return f"{self.config.stall_timeout:g} s"

    @property
    def _hold_ns(self) -> int:
        """One that comes and goes would take the others' place, and leave it, again and again."""
        return min(LAST_HOLD_NS, FIRST_HOLD_NS << min(self._troubles - 2, 10)) if self._troubles > 1 else 0

    def _too_long(self, since_ns: int | None, now_ns: int, times: int = 1) -> bool:
        if since_ns is None:
            return False
        return now_ns - max(since_ns, self._went_on_ns) > times * self.config.stall_timeout * 1e9

    def _tell_state(self) -> None:
        self.since_ns = self._clock()
        state = self.state
        if state.name != "healthy":
            if self._was_healthy:
                again = self.since_ns - self._troubled_ns < MEMORY_NS
                self._troubles = self._troubles + 1 if again else 1
            self._troubled_ns = self.since_ns
        self._was_healthy = state.name == "healthy"
        level = logging.INFO if state.name in ("starting", "healthy") else logging.WARNING
        detail = f": {state.detail}" if state.detail else ""
        log.log(level, "source %s: %s%s", self.config.name, state.name, detail)
        self._changed()
