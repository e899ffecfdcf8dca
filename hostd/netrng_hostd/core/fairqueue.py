# SPDX-License-Identifier: Apache-2.0
"""Proportional shares in virtual time: earliest eligible virtual deadline first, exactly.

After Stoica and Abdel-Wahab (EEVDF, 1995) and Bennett and Zhang (WF²Q+, 1996). Each rival has a tag:
what it was served divided by its weight. Virtual time is the mean of the tags of all who compete,
weighted by their weights: what each would have been served per unit of weight if bytes could be shared
out one by one. A rival is eligible while its tag is not ahead of virtual time, and among the eligible
the one whose request would be finished first, tag + request / weight, is served (so a modest request
is not kept waiting for a greedy one's whole sample, and gains nothing but that). Nobody is ever more
than one sample ahead of or behind its exact share.

Served bytes are kept as whole numbers (`served` = tag · weight), and so is their sum, so the mean is
exact and nothing drifts. Only the keys that order the heaps are rounded, to 2⁻³² of a byte per weight.
At least one rival is always eligible, because the least tag is never above the mean.

- Who begins to ask starts at its own tag or at virtual time, whichever is later: absence earns nothing,
  and leaving does not wipe out a lead.
- Who was kept out while it went on asking (by its limit) is owed at most one sample when it returns:
  more would be back pay, and less would cost a domain its share whenever a small bucket is briefly empty.
- Who is served outside the queue (by its reservation) has its tag pushed, so that what it gets in all is
  the larger of the two and not their sum, but at most to `LEAD` samples ahead: past service is no
  punishment later. While it is ahead it does not compete, or it would drag the mean away from the others.
  Two samples are the smallest lead that a rival whose proportional share exceeds its reservation
  never hits: one from its last proportional sample, and less than one until virtual time has caught up.
- When nobody competes, there is more than enough for all, and every lead is forgiven.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from .lazyheap import LazyHeap

LEAD = 2
_SCALE = 32


class Rival:
    """One who competes, in the heap `place`. `served` counts bytes from the queue's own beginning."""

    __slots__ = ("place", "request", "served", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.served = 0
        self.request = 0
        self.place: LazyHeap[Any] | None = None


AnyRival = TypeVar("AnyRival", bound=Rival)


class FairQueue(Generic[AnyRival]):
    """`sample_size` in bytes may be changed at any time."""

    def __init__(self, sample_size: int) -> None:
        self.sample_size = sample_size
        self._eligible: LazyHeap[AnyRival] = LazyHeap()  # by virtual finish
        self._pending: LazyHeap[AnyRival] = LazyHeap()  # by tag: competes, ahead of virtual time
        self._ahead: LazyHeap[AnyRival] = LazyHeap()  # by tag: asks, but does not compete until its time
        self._served = 0  # Σ served and Σ weight of those who compete
        self._weight = 0
        self._idle_time = 0  # virtual time while nobody competes
        self._horizon = 0  # no tag that ever left is above this

    @property
    def operations(self) -> int:
        """Heap pushes, pops and levels so far."""
        return self._eligible.operations + self._pending.operations + self._ahead.operations

    @property
    def virtual_time(self) -> int:
        """In 2⁻³² bytes per unit of weight."""
        if self._weight:
            return (self._served << _SCALE) // self._weight
        return self._idle_time

    def arrive(self, rival: AnyRival) -> None:
        """One who is not in the queue begins to ask: owed nothing for the time before."""
        rival.served = max(rival.served, _bytes_at(self.virtual_time, rival.weight))

    def enter(self, rival: AnyRival, request: int) -> None:
        """The rival asks for so many bytes and may be served. If it is in the queue, the request changes."""
        if rival.place is None:
            rival.request = request
            least = _bytes_at(self.virtual_time, rival.weight) - self.sample_size
            rival.served = max(rival.served, least)
            self._compete(rival, self._pending, _tag(rival))
        elif rival.request != request:
            rival.request = request
            if rival.place is self._eligible:
                self._eligible.put(rival, self._finish(rival))

    def leave(self, rival: AnyRival) -> None:
        """The rival does not ask any more, or may not be served. No effect if it is not in the queue."""
        if rival.place is None:
            return
        self._horizon = max(self._horizon, _tag(rival) + 1)
        self._remove(rival)
        if not self._weight and not self._ahead:
            self._idle_time = self._horizon

    def first(self) -> AnyRival | None:
        """Whose turn it is."""
        if not self._weight:
            if self._ahead.top() is None:
                return None
            rival = self._ahead.pop()
            self._compete(rival, self._eligible, self._finish(rival))
        self._promote()
        top = self._eligible.top()
        assert top is not None  # the least tag is never above the mean
        return top[2]

    def serve(self, rival: AnyRival, size_bytes: int) -> None:
        """Charges a proportional sample to the one that `first` has just named."""
        rival.served += size_bytes
        self._served += size_bytes
        self._eligible.discard(rival)
        rival.place = self._pending
        self._pending.put(rival, _tag(rival))

    def push(self, rival: AnyRival, size_bytes: int) -> None:
        """Charges what a rival in the queue was served outside it."""
        most = _bytes_at(self.virtual_time, rival.weight) + LEAD * self.sample_size
        self._remove(rival)
        rival.served = max(rival.served, min(rival.served + size_bytes, most))
        rival.place = self._ahead
        self._ahead.put(rival, _tag(rival))

    def reweigh(self, rival: AnyRival, weight: int) -> None:
        """A new weight; how many bytes the rival is ahead or behind stays."""
        place, time = rival.place, self.virtual_time
        if place is not None:
            self._remove(rival)
        rival.served += _bytes_at(time, weight) - _bytes_at(time, rival.weight)
        rival.weight = weight
        if place is self._ahead:
            rival.place = place
            place.put(rival, _tag(rival))
        elif place is not None:
            self._compete(rival, self._pending, _tag(rival))

    def is_fresh(self, rival: AnyRival) -> bool:
        """Whether one who is not in the queue would begin like one who was never seen."""
        return _tag(rival) <= self.virtual_time

    def _promote(self) -> None:
        """Virtual time has moved on: who is not ahead of it any more is eligible."""
        now = self.virtual_time
        # With its own tag and not at virtual time: it has been asking all the while.
        for waiting in (self._ahead, self._pending):
            while True:
                top = waiting.top()
                if top is None or top[0] > now:
                    break
                rival = waiting.pop()
                if waiting is self._ahead:
                    self._compete(rival, self._eligible, self._finish(rival))
                    now = self.virtual_time
                else:
                    rival.place = self._eligible
                    self._eligible.put(rival, self._finish(rival))

    def _compete(self, rival: AnyRival, place: LazyHeap[AnyRival], key: int) -> None:
        self._served += rival.served
        self._weight += rival.weight
        rival.place = place
        place.put(rival, key)

    def _remove(self, rival: AnyRival) -> None:
        assert rival.place is not None
        if rival.place is not self._ahead:
            if self._weight == rival.weight:
                self._idle_time = self.virtual_time
            self._served -= rival.served
            self._weight -= rival.weight
        rival.place.discard(rival)
        rival.place = None

    @staticmethod
    def _finish(rival: AnyRival) -> int:
        return ((rival.served + rival.request) << _SCALE) // rival.weight


def _tag(rival: Rival) -> int:
    return (rival.served << _SCALE) // rival.weight


def _bytes_at(time: int, weight: int) -> int:
    """What a rival of that weight has been served at that virtual time, rounded up to a whole byte."""
    return -(-time * weight >> _SCALE)
