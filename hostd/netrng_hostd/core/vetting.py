# SPDX-License-Identifier: Apache-2.0
"""From noise to vetted bytes: the health tests, and behind them conditioning where noise carries less."""

from __future__ import annotations

from typing import NamedTuple

from .conditioning import Conditioner
from .health import Alarm, HealthTests

FULL = 8.0  # bits of entropy in a byte


class Vetted(NamedTuple):
    """What one feed led to.

    `released`: bytes that carry 8 bits each, the receiver's to spend and wipe; none where there was an alarm.
    `discarded`: how many noise bytes alarms destroyed; `conditioned`: how many were compressed away. Over any
    number of feeds, bytes fed = released + discarded + conditioned + held.
    """

    released: bytearray
    discarded: int
    conditioned: int = 0
    alarms: tuple[Alarm, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Vetted(released={len(self.released)} bytes, discarded={self.discarded}, "
            f"conditioned={self.conditioned}, alarms={self.alarms})"
        )


class Vetting:
    """One source's; `min_entropy`: claimed bits per noise byte. Raises ValueError as HealthTests does."""

    def __init__(self, min_entropy: float = FULL) -> None:
        self._health = HealthTests(min_entropy)
        self._conditioner = Conditioner(min_entropy) if min_entropy < FULL else None
        self._ratio = self._conditioner.ratio if self._conditioner is not None else (1, 1)

    @property
    def held(self) -> int:
        """Noise bytes that were fed and have led to nothing yet."""
        return self._health.held + (self._conditioner.held if self._conditioner is not None else 0)

    @property
    def starting(self) -> bool:
        """Whether the start-up test has still to be passed."""
        return self._health.starting

    def noise_for(self, n_bytes: int) -> int:
        """How many noise bytes it takes for so many vetted ones."""
        out, noise = self._ratio
        return n_bytes * noise // out

    def output_of(self, n_bytes: int) -> int:
        """How many vetted bytes so many noise bytes give."""
        out, noise = self._ratio
        return n_bytes * out // noise

    def feed(self, noise: bytes | bytearray | memoryview) -> Vetted:
        """Tests and conditions the next noise bytes; the caller wipes them."""
        verdict = self._health.feed(noise)
        released = verdict.released
        if verdict.alarms:
            discarded = verdict.discarded + len(released) + self._restart_conditioner()
            released[:] = bytes(len(released))
            return Vetted(bytearray(), discarded, 0, verdict.alarms)
        if self._conditioner is None:
            return Vetted(released, verdict.discarded)
        before = self._conditioner.held + len(released)
        conditioned = self._conditioner.feed(released)
        released[:] = bytes(len(released))
        compressed = before - self._conditioner.held - len(conditioned)
        return Vetted(conditioned, verdict.discarded, compressed)

    def restart(self) -> int:
        """Wipes what is held and begins again at start-up; returns how many noise bytes were discarded."""
        return self._health.restart() + self._restart_conditioner()

    def _restart_conditioner(self) -> int:
        return self._conditioner.restart() if self._conditioner is not None else 0
