# SPDX-License-Identifier: Apache-2.0
"""A source's state as a person sees it: what the reader says, stalls, the kernel's name for the device."""

from __future__ import annotations

import logging
import time

from netrng_hostd.config import SourceConfig
from netrng_hostd.sources.identity import is_hwrng, is_virtual, rng_current
from netrng_hostd.sources.reader import SourceReader, SourceState

log = logging.getLogger("netrng.source")

STALL_NS = 5_000_000_000


class SourceWatch:
    """Call everything from the event loop; ``reader`` is set once it exists."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.reader: SourceReader | None = None
        self._reported = SourceState("starting")
        self._stalled = False
        self.since_ns = time.monotonic_ns()
        self.rng_current = self._kernel_name()
        self.virtual = is_virtual(self.rng_current)

    @property
    def state(self) -> SourceState:
        """One of the source states of docs/operating.md."""
        if self._stalled:
            return SourceState("stalled", f"no byte from {self.config.path} for {STALL_NS // 10**9} s")
        return self._reported

    def describe(self) -> str:
        """One line for the log."""
        label = f", {self.rng_current}" if self.rng_current else ""
        virtual = " (virtual: its host's word)" if self.virtual else ""
        return f"{self.config.name} ({self.config.kind} {self.config.path}{label}{virtual})"

    def state_changed(self, state: SourceState) -> None:
        """From the reader."""
        self._reported = state
        self._stalled = False
        self._log_state()

    def tick(self, now_ns: int) -> None:
        """Notices a read that does not return and a device that the kernel replaced by another."""
        since_ns = self.reader.read_since_ns if self.reader is not None else None
        stalled = since_ns is not None and now_ns - since_ns > STALL_NS
        if stalled != self._stalled:
            self._stalled = stalled
            self._log_state()
        current = self._kernel_name()
        if current != self.rng_current:
            log.warning(
                "source %s: the kernel's hardware RNG changed from %s to %s",
                self.config.name, self.rng_current or "none", current or "none",
            )  # fmt: skip
            self.rng_current, self.virtual = current, is_virtual(current)

    def _kernel_name(self) -> str | None:
        # Other devices than this one are not behind the kernel's hw_random framework.
        return rng_current() if is_hwrng(self.config.path) else None

    def _log_state(self) -> None:
        self.since_ns = time.monotonic_ns()
        state = self.state
        level = logging.INFO if state.name in ("starting", "healthy") else logging.WARNING
        detail = f": {state.detail}" if state.detail else ""
        log.log(level, "source %s: %s%s", self.config.name, state.name, detail)
