# SPDX-License-Identifier: Apache-2.0
"""A source's state as a person sees it: what the reader says, stalls, the kernel's name for the device."""

from __future__ import annotations

import logging
import time

from netrng_hostd.config import SourceConfig
from netrng_hostd.sources.identity import is_virtual
from netrng_hostd.sources.reader import SourceReader, SourceState

log = logging.getLogger("netrng.source")

STALL_NS = 5_000_000_000
PROBE_NS = 60_000_000_000  # a capacity older than that is measured anew


class SourceWatch:
    """Call everything from the event loop; ``reader`` is set once it exists, before it starts.

    Nothing here looks at the device: a kernel that waits for it would hold up all that the loop serves.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self._reader: SourceReader | None = None
        self._reported = SourceState("starting")
        self._stalled = False
        self.since_ns = time.monotonic_ns()
        self.rng_current: str | None = None
        self.virtual = False
        self._ever_named = False

    @property
    def reader(self) -> SourceReader | None:
        return self._reader

    @reader.setter
    def reader(self, reader: SourceReader | None) -> None:
        self._reader = reader
        if reader is not None:
            reader.named = self.named

    @property
    def state(self) -> SourceState:
        """One of the source states of docs/operating.md."""
        if self._stalled:
            return SourceState("stalled", f"no byte from {self.config.path} for {STALL_NS // 10**9} s")
        return self._reported

    @property
    def capacity(self) -> int | None:
        """What the source gives, in bytes per second, as far as it was measured."""
        return self._reader.capacity.rate if self._reader is not None else None

    def describe(self) -> str:
        """One line for the log."""
        label = f", {self._label()}" if self.rng_current else ""
        return f"{self.config.name} ({self.config.kind} {self.config.path}{label})"

    def state_changed(self, state: SourceState) -> None:
        """From the reader."""
        self._reported = state
        self._stalled = False
        self._log_state()

    def named(self, name: str | None) -> None:
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

    def tick(self, now_ns: int) -> None:
        """Notices a read that does not return, and has the capacity measured when its age says so."""
        since_ns = self._reader.read_since_ns if self._reader is not None else None
        stalled = since_ns is not None and now_ns - since_ns > STALL_NS
        if stalled != self._stalled:
            self._stalled = stalled
            self._log_state()
        if self._reader is not None and self._reported.name == "healthy":
            measured_ns = self._reader.capacity.measured_ns
            if measured_ns is None or now_ns - measured_ns > PROBE_NS:
                self._reader.probe()

    def _label(self) -> str:
        virtual = " (virtual: its host's word)" if self.virtual else ""
        return f"{self.rng_current or 'none'}{virtual}"

    def _log_state(self) -> None:
        self.since_ns = time.monotonic_ns()
        state = self.state
        level = logging.INFO if state.name in ("starting", "healthy") else logging.WARNING
        detail = f": {state.detail}" if state.detail else ""
        log.log(level, "source %s: %s%s", self.config.name, state.name, detail)
