# SPDX-License-Identifier: Apache-2.0
"""Proportional shares in virtual time: earliest eligible virtual deadline first, exactly.

After Stoica and Abdel-Wahab (EEVDF, 1995) and Bennett and Zhang (WF²Q+, 1996). Each rival has a tag:
what it was served divided by its weight. Virtual time is the mean of the tags of all who count, weighted by
their weights: what each would have been served per unit of weight if bytes could be shared out one by
one. A rival is eligible while its tag is not ahead of virtual time, and among the eligible the one whose
request would be finished first, tag + request / weight, is served (so a modest request is not kept
waiting for a greedy one's whole sample, and gains nothing but that). Nobody is ever more than one sample
ahead of or behind its exact share.

Served bytes are kept as whole numbers (`served` = tag · weight), and so is their sum, so the mean is
exact and nothing drifts. Only the keys that order the heaps are rounded, to 2⁻³² of a byte per weight.

- Who begins to ask starts at its own tag or at virtual time, whichever is later: absence earns nothing,
  and leaving does not wipe out a lead.
- Who leaves while it still asks (a VM that reboots, a connection that breaks) goes on where it was against
  those who stayed, at most one sample ahead or behind: what it had too much is missing to them, and many who
  come and go would take a sample with them each time. (One that is heavier than all others together and
  behind may lose most of a sample so; they lose nothing.)
- Who is halted while it goes on asking (by its limit) still counts until it is one sample behind, so that
  a bucket that is briefly empty costs its domain nothing and gives nobody else its share. Then its limit
  is what binds it: it does not count, and is owed one sample at most when it returns. Until it has caught
  up, that `debt` counts as served, or many debts would hold virtual time back for all the others.
- Who is served outside the queue (by its reservation) has its tag pushed, so that what it gets in all is
  the larger of the two and not their sum. While it is ahead it does not count, or it would drag the
  mean away from the others. Its lead is capped, so that past service is no punishment later: one sample
  for its last proportional one, one for what comes until virtual time has caught up, and as far as one
  sample of anybody else's takes virtual time. A smaller cap would make a domain whose proportional share
  is just above its reservation lose count of what it got.
- When nobody asks any more, there was enough for all, and every lead is forgiven.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from .lazyheap import LazyHeap

_SCALE = 32


class Rival:
    """One who competes. `served` counts bytes from the queue's own beginning, `request` the next sample's.

    `place` is the heap it is in; `counts` says whether it is part of the mean. `lag`: the bytes that it was
    behind its exact share when it left while it asked, in the `era` of that moment.
    """

    __slots__ = ("counts", "debt", "era", "lag", "place", "request", "served", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.served = 0
        self.debt = 0
        self.lag = 0
        self.era = 0
        self.request = 0
        self.counts = False
        self.place: LazyHeap[Any] | None = None


AnyRival = TypeVar("AnyRival", bound=Rival)


class FairQueue(Generic[AnyRival]):
    """`sample_size` in bytes may be changed at any time."""

    def __init__(self, sample_size: int) -> None:
        self.sample_size = sample_size
        self._eligible: LazyHeap[AnyRival] = LazyHeap()  # not ahead of virtual time; by virtual finish
        self._pending: LazyHeap[AnyRival] = LazyHeap()  # ahead of it, and counts; by tag
        self._ahead: LazyHeap[AnyRival] = LazyHeap()  # ahead of it, and does not count until its time; by tag
        self._halted: LazyHeap[AnyRival] = LazyHeap()  # may not be served, but counts; by when it ceases to
        self._served = 0  # Σ (served + debt) and Σ weight of those who count
        self._weight = 0
        self._idle_time = 0  # virtual time while nobody counts
        self._horizon = 0  # no tag that ever left is above this
        self._era = 0  # how often nobody asked: then nobody is behind or ahead any more

    @property
    def operations(self) -> int:
        """Heap pushes, pops and levels so far."""
        heaps = (self._eligible, self._pending, self._ahead, self._halted)
        return sum(heap.operations for heap in heaps)

    @property
    def virtual_time(self) -> int:
        """In 2⁻³² bytes per unit of weight."""
        if self._weight:
            return (self._served << _SCALE) // self._weight
        return self._idle_time

    def arrive(self, rival: AnyRival) -> None:
        """One who is not in the queue begins to ask: owed nothing for the time before."""
        lag = rival.lag if rival.era == self._era else 0
        rival.served = max(rival.served, _bytes_at(self.virtual_time, rival.weight) - lag)
        rival.lag = 0

    def enter(self, rival: AnyRival, request: int) -> None:
        """The rival asks for so many bytes and may be served. If it is in the queue, the request changes."""
        known, rival.request = rival.request, request
        if rival.place is None:
            due = _bytes_at(self.virtual_time, rival.weight)
            rival.served = max(rival.served, due - self.sample_size)
            rival.debt = max(0, due - rival.served)
            self._put(rival, self._ahead)
        elif rival.place is self._halted:
            self._put(rival, self._pending)
        elif rival.place is self._eligible and known != request:
            self._put(rival, self._eligible)

    def halt(self, rival: AnyRival) -> None:
        """The rival asks and may not be served."""
        if rival.counts:
            self._put(rival, self._halted)
        elif rival.place is not None:
            self._remove(rival)

    def leave(self, rival: AnyRival, satisfied: bool = True) -> None:
        """The rival does not ask any more: because it got what it asked for, or before that."""
        self._horizon = max(self._horizon, _tag(rival) + 1)
        if rival.place is not None:
            self._remove(rival)
            if not satisfied:
                # Against the mean of those who stay: they have what it lacks, or lack what it has.
                lag = _bytes_at(self.virtual_time, rival.weight) - rival.served
                rival.lag, rival.era = max(-self.sample_size, min(lag, self.sample_size)), self._era
        if not self._weight and not self._ahead:
            self._idle_time = self._horizon
            self._era += 1

    def serves(self, rival: AnyRival) -> bool:
        """Whether the rival is in the queue and may be served."""
        return rival.place is not None and rival.place is not self._halted

    def first(self) -> AnyRival | None:
        """Whose turn it is."""
        self._promote()
        top = self._eligible.top()
        if top is None:  # whose turn it would be is halted: the least tag of the others is next
            pending, ahead = self._pending.top(), self._ahead.top()
            if ahead is not None and (pending is None or ahead[0] < pending[0]):
                self._count(ahead[2])
                self._promote()  # those who begin together are equals
            elif pending is not None:
                self._put(pending[2], self._eligible)
            top = self._eligible.top()
        return None if top is None else top[2]

    def serve(self, rival: AnyRival, size_bytes: int) -> None:
        """Charges a proportional sample to the one that `first` has just named."""
        rival.served += size_bytes
        self._served += size_bytes
        if rival.debt and _tag(rival) >= self.virtual_time:
            self._served -= rival.debt
            rival.debt = 0
        self._put(rival, self._pending)

    def push(self, rival: AnyRival, size_bytes: int) -> None:
        """Charges what a rival in the queue was served outside it."""
        due, debt = _bytes_at(self.virtual_time, rival.weight), rival.debt
        self._remove(rival)
        lead = 2 + (rival.weight // self._weight if self._weight else 0)
        most = due + lead * self.sample_size
        rival.served = max(rival.served, min(rival.served + size_bytes, most))
        rival.debt = max(0, min(debt, due - rival.served))
        self._put(rival, self._ahead)

    def reweigh(self, rival: AnyRival, weight: int) -> None:
        """A new weight; how many bytes the rival is ahead or behind stays."""
        place, counted, debt, time = rival.place, rival.counts, rival.debt, self.virtual_time
        if place is not None:
            self._remove(rival)
        rival.served += _bytes_at(time, weight) - _bytes_at(time, rival.weight)
        rival.weight = weight
        rival.debt = debt
        if counted:
            self._count(rival)
        if place is not None:
            self._put(rival, place)

    def is_fresh(self, rival: AnyRival) -> bool:
        """Whether one who is not in the queue would begin like one who was never seen."""
        return _tag(rival) <= self.virtual_time

    def _promote(self) -> None:
        """Virtual time has moved on."""
        now = self.virtual_time
        top = self._halted.top()
        while top is not None and top[0] <= now:
            self._remove(top[2])
            now = self.virtual_time
            top = self._halted.top()
        # With its own tag and not at virtual time: it has been asking all the while.
        top = self._ahead.top()
        while top is not None and top[0] <= now:
            self._count(top[2])
            now = self.virtual_time
            top = self._ahead.top()
        top = self._pending.top()
        while top is not None and top[0] <= now:
            self._put(top[2], self._eligible)
            top = self._pending.top()

    def _count(self, rival: AnyRival) -> None:
        self._served += rival.served + rival.debt
        self._weight += rival.weight
        rival.counts = True
        self._put(rival, self._eligible)

    def _put(self, rival: AnyRival, place: LazyHeap[AnyRival]) -> None:
        if rival.place is not None and rival.place is not place:
            rival.place.discard(rival)
        rival.place = place
        most = rival.served
        if place is self._eligible:
            most += rival.request
        elif place is self._halted:
            most += self.sample_size
        place.put(rival, (most << _SCALE) // rival.weight)

    def _remove(self, rival: AnyRival) -> None:
        assert rival.place is not None
        rival.place.discard(rival)
        rival.place = None
        if rival.counts:
            if self._weight == rival.weight:
                self._idle_time = self.virtual_time
            self._served -= rival.served + rival.debt
            self._weight -= rival.weight
            rival.counts = False
        rival.debt = 0


def _tag(rival: Rival) -> int:
    return (rival.served << _SCALE) // rival.weight


def _bytes_at(time: int, weight: int) -> int:
    """What a rival of that weight has been served at that virtual time, rounded up to a whole byte."""
    return -(-time * weight >> _SCALE)
