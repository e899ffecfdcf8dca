# SPDX-License-Identifier: Apache-2.0
"""Which reservations can be promised, and how much of them holds when the source gives less than it did.

The whole promise is at most (1 − headroom) · capacity. Claims are looked at in their order (the first
`[[quota]]` that matches, then name, then UUID), and each that fits beside those already promised is promised;
one that does not fit is refused and looked at again each time, so it is admitted as soon as there is room.

Hysteresis, so that a measurement's noise moves nothing:

- What is promised stays so, even if a claim that is earlier in order comes later. A claim that grows keeps
  its promise until the larger one fits.
- A capacity that falls counts at once; one that rises once it is a sixteenth higher, or once it has been
  higher for two and a half minutes: then the least of that time. (Where it is measured once a minute, one
  measurement that is high by chance is not enough.)
- Promises shrink, all in proportion and down to (1 − headroom) · capacity, when the capacity itself falls
  below their sum, and are whole again when they fit beside the headroom.

Rates are whole bytes per second, the headroom is in thousandths.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .bucket import NS_PER_S

RISE = 16  # a rise of one part in so many counts at once
LASTING_NS = 150 * NS_PER_S  # two probes after the first at least: supervision.PROBE_NS

NONE, PENDING, PROMISED, SHRUNK, REFUSED = "none", "pending", "promised", "shrunk", "refused"


class Claim(NamedTuple):
    """A domain's reservation. Claims sort by rank, name and UUID: their order."""

    rank: int
    name: str
    uuid: str
    reservation: int


class Verdict(NamedTuple):
    """`state`: "none" (nothing claimed), "pending" (no capacity known yet), "promised", "shrunk", "refused".

    `reservation` is what holds now. It is not 0 in a refused raise: the former promise.
    """

    state: str
    reservation: int


class Admission:
    """Remembers what is promised to whom."""

    def __init__(self, headroom: int) -> None:
        self.headroom = headroom
        self.capacity: int | None = None  # that counts, see above
        self.promisable = 0  # the sum that may be promised, as of the last decision; 0 without a capacity
        self.shrunk = False
        self._promised: dict[str, int] = {}
        self._higher_ns: int | None = None  # since when it has been measured higher than counts
        self._least = 0  # since then

    @property
    def promised(self) -> int:
        """The sum of all promises, unshrunk."""
        return sum(self._promised.values())

    def learn(self, capacity: int | None, now_ns: int) -> bool:
        """The capacity as it was measured last; whether the one that counts has changed."""
        known = self.capacity
        if capacity is None or capacity == known:
            self._higher_ns = None
            return False
        if known is not None and known < capacity <= known + known // RISE:
            if self._higher_ns is None:
                self._higher_ns, self._least = now_ns, capacity
            self._least = min(self._least, capacity)
            if now_ns - self._higher_ns < LASTING_NS:
                return False
            capacity = self._least
        self.capacity = capacity
        self._higher_ns = None
        return True

    def decide(self, claims: Iterable[Claim]) -> dict[str, Verdict]:
        """The verdicts on all claims there are now, by UUID; a promise to a domain not among them ends.

        Costs O(n log n).
        """
        ordered = sorted(claims)
        wanted = {claim.uuid: claim.reservation for claim in ordered}
        self._promised = {
            uuid: min(promise, wanted[uuid]) for uuid, promise in self._promised.items() if wanted.get(uuid)
        }
        self.promisable = (self.capacity or 0) * (1000 - self.headroom) // 1000
        if self.capacity is not None:
            self._promise(ordered)
        total, promisable = self.promised, self.promisable
        if total <= promisable:
            self.shrunk = False
        elif self.capacity is not None and self.capacity < total:
            self.shrunk = True
        return {claim.uuid: self._verdict(claim, total, promisable) for claim in ordered}

    def _promise(self, ordered: Iterable[Claim]) -> None:
        room = self.promisable - self.promised
        for claim in ordered:
            more = claim.reservation - self._promised.get(claim.uuid, 0)
            if 0 < more <= room:
                self._promised[claim.uuid] = claim.reservation
                room -= more

    def _verdict(self, claim: Claim, total: int, promisable: int) -> Verdict:
        if not claim.reservation:
            return Verdict(NONE, 0)
        if self.capacity is None:
            return Verdict(PENDING, 0)
        promise = self._promised.get(claim.uuid, 0)
        holds = promise * promisable // total if self.shrunk else promise
        if promise < claim.reservation:
            return Verdict(REFUSED, holds)
        return Verdict(SHRUNK if self.shrunk else PROMISED, holds)
