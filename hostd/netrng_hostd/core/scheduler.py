# SPDX-License-Identifier: Apache-2.0
"""Who gets the next sample.

While a domain asks, its rate is clamp(λ · weight, reservation, limit) with one λ for all (mClock, Gulati
et al., OSDI 2010). `pick` decides in this order:

1. **Reservations.** Each domain's is a bucket that says what is owed: entitled minus served by this
   phase. A domain is due when nothing was served ahead, and among the due the earliest deadline is first
   (the instant at which a whole grain is owed): so every grain is in time as long as the reservations
   together fit the source (Liu and Layland, JACM 1973), which first-come order would not give.
   What a domain gets by weight does not count, so a surplus never starves the guarantee afterwards.
   A domain that begins to ask is owed nothing; what the source could not pay is remembered up to
   one second's worth and one sample. Grains are a quarter of a sample, because a grain may come
   anywhere between due and deadline: two grains and the time of one sample are then within one sample.
   A slow source's bytes come a test window at a time, so what all reservations come to in `gap_ns` is left
   in the reservoir by seeds, by weights, and by grains whose deadline is further away than that: it pays
   what must be paid before the next delivery. (With gap_ns = 0 the bound below holds up to a reservation
   of half a source whose bytes come one grain at a time.)
   Bound: while it keeps asking and the source can pay, bytes ≥ reservation · w − one sample, or two grains
   where that is more (samples of less than 64 bytes).
2. **Seeds**, first come first served: the first 64 bytes of a session, out of the domain's own seed
   bucket (64 bytes deep, a byte a second, whatever reconnects). With an empty seed bucket, or when a
   reservation is quicker, seed bytes are served as any others.
3. **Weights**: `fairqueue`. Nobody is more than one sample from the exact share.

**Limit.** Everything sent is charged to a bucket as deep as the burst. A domain whose level does not cover a
grain (at most half the burst, so that a bucket does not overflow while its domain waits for its turn)
takes no part in 1 and 3 until it does, and then starts without back pay. A seed may overdraw the bucket
by one sample. Bound: in any interval w, bytes ≤ burst + limit · w + one sample.

**Work conserving.** While `MIN_SAMPLE` bytes are there beside those left for reservations, and any asking
domain is not blocked by its limit, `pick` returns one. It never passes over the one whose turn it is for
another that would be content with less: so it returns None while fewer than min(`MIN_SAMPLE`, wanted) bytes
are there for it.

Whole numbers only; instants are nanoseconds of a monotonic clock, passed in; O(log n) per call.
"""

from __future__ import annotations

from typing import NamedTuple

from .bucket import NS_PER_S
from .domain import MIN_SAMPLE, SEED_SIZE, Domain
from .fairqueue import FairQueue
from .lazyheap import LazyHeap
from .quota import Quota

MAX_SAMPLE = 65536
MAX_DEPARTED = 8192
MEMORY_NS = 60 * NS_PER_S  # a reboot takes less
_LOOK_AGAIN_NS = NS_PER_S


class Pick(NamedTuple):
    """Give `n_bytes` to `uuid`. `reason` is "reservation", "seed" or "weight"."""

    uuid: str
    n_bytes: int
    reason: str
    from_seed_reserve: bool


class Scheduler:
    """`sample_size` (bytes, 32..65536) is a maximum and may be changed at any time, at a cost of O(n log n).

    `gap_ns`: the time between two deliveries of the source that reservations are paid over.
    `reserved`: the sum of all domains' reservations, bytes per second.
    `want` and `forget` raise KeyError for a domain that has no quota.
    """

    def __init__(self, sample_size: int = 512) -> None:
        self._domains: dict[str, Domain] = {}
        self._departed: dict[str, Domain] = {}
        self._asking: set[Domain] = set()
        self._queue: FairQueue[Domain] = FairQueue(sample_size)
        self._blocked: LazyHeap[Domain] = LazyHeap()  # by the instant at which limit or seed bucket will pay
        self._waiting: LazyHeap[Domain] = LazyHeap()  # by the instant at which the reservation will be due
        self._due: LazyHeap[Domain] = LazyHeap()  # by deadline
        self._seeds: LazyHeap[Domain] = LazyHeap()  # by arrival
        self._fading: LazyHeap[Domain] = LazyHeap()  # departed, by the instant at which they may be fresh
        self._arrivals = 0
        self.sample_size = sample_size
        self.gap_ns = 0
        self.reserved = 0

    @property
    def sample_size(self) -> int:
        return self._queue.sample_size

    @sample_size.setter
    def sample_size(self, size_bytes: int) -> None:
        if not MIN_SAMPLE <= size_bytes <= MAX_SAMPLE:
            raise ValueError(f"sample_size {size_bytes}; allowed: {MIN_SAMPLE} to {MAX_SAMPLE}")
        self._queue.sample_size = size_bytes
        self._grain = max(MIN_SAMPLE, size_bytes // 4)
        for domain in self._domains.values():
            domain.remember(size_bytes, domain.owed.at_ns)
            self._place(domain, domain.owed.at_ns)  # what it should be given next has changed

    @property
    def kept(self) -> int:
        """Bytes of the general part that are left in it for reservations.

        A seed more than they come to, because the seed reserve takes a whole one out of a delivery at times.
        """
        due = self.reserved * self.gap_ns // NS_PER_S
        return due + SEED_SIZE if due else 0

    @property
    def operations(self) -> int:
        """Heap pushes, pops and levels so far: the cost, counted."""
        heaps = (self._blocked, self._waiting, self._due, self._seeds, self._fading)
        return self._queue.operations + sum(heap.operations for heap in heaps)

    @property
    def askers(self) -> int:
        """How many domains ask, those that their limit blocks included; O(1)."""
        return len(self._asking)

    @property
    def departed(self) -> int:
        """How many forgotten domains are still remembered."""
        return len(self._departed)

    def set_quota(self, uuid: str, quota: Quota, now_ns: int) -> None:
        """A new domain, one that is back, or a new quota for one that is here: in force at once.

        What was saved in its buckets or was owed by it stays, as far as the new burst holds it.
        """
        domain = self._domains.get(uuid) or self._departed.pop(uuid, None) or Domain(uuid, quota, now_ns)
        if uuid in self._domains:
            self.reserved -= domain.quota.reservation
        self.reserved += quota.reservation
        self._domains[uuid] = domain
        self._fading.discard(domain)
        domain.apply(quota, self.sample_size, now_ns)
        self._queue.reweigh(domain, quota.weight)
        self._place(domain, now_ns)

    def want(self, uuid: str, seed: int, body: int, now_ns: int) -> None:
        """How much was granted and is not sent: below (`seed`) and beyond offset 64 of the session.

        Absolute, in bytes; 0, 0 is not asking. `pick` subtracts what it gives.
        """
        if not 0 <= seed <= SEED_SIZE or body < 0:
            raise ValueError(f"seed {seed}, body {body}; allowed: seed 0 to {SEED_SIZE}, body 0 or more")
        domain = self._domains[uuid]
        unchanged = seed == domain.seed and (
            body == domain.body or min(body, domain.body) >= self._queue.sample_size
        )
        began = not domain.wanted
        domain.seed, domain.body = seed, body
        if unchanged:
            return
        if began:
            domain.begin(now_ns)
            self._queue.arrive(domain)
        elif not domain.wanted:
            self._queue.leave(domain, satisfied=False)
        self._place(domain, now_ns)

    def forget(self, uuid: str, now_ns: int) -> None:
        """The domain is gone. Its state is kept for a minute, and until it is that of a fresh one."""
        self.want(uuid, 0, 0, now_ns)
        domain = self._departed[uuid] = self._domains.pop(uuid)
        self.reserved -= domain.quota.reservation
        self._fading.put(domain, max(domain.fresh_ns(), now_ns + MEMORY_NS))
        if len(self._departed) > MAX_DEPARTED and self._fading.top():
            del self._departed[self._fading.pop().uuid]  # whose state would be fresh soonest

    def pick(self, now_ns: int, available: int, seed_available: int) -> Pick | None:
        """Decides who gets the next sample and charges it, or None.

        `available` and `seed_available` are the bytes in the reservoir's general part and seed reserve.
        """
        self._advance(now_ns)
        due = self._due.top()
        spare = max(0, available - self.kept)
        if due is not None:
            deadline_ns, _, domain = due
            if domain in self._seeds and seed_available >= domain.seed:
                return self._pick_seed(domain, 0, seed_available, now_ns)
            urgent = deadline_ns <= now_ns + self.gap_ns
            size = self._size(domain, self._grain, available if urgent else spare, now_ns)
            if size:
                domain.owed.spend(size, now_ns)
                self._queue.push(domain, size)
                return self._charge(domain, size, "reservation", now_ns)
            spare = 0  # it is saved up for this one; the seed reserve is of no use to it
        first = self._seeds.top()
        if first is not None:
            return self._pick_seed(first[2], spare, seed_available, now_ns)
        rival = self._queue.first()
        if rival is not None:
            size = self._size(rival, self._queue.sample_size, spare, now_ns)
            if size:
                self._queue.serve(rival, size)
                return self._charge(rival, size, "weight", now_ns)
        return None

    def next_ns(self, now_ns: int) -> int | None:
        """When time alone will let somebody be served who cannot be now; None if nobody waits for time."""
        tops = [top[0] for top in (self._blocked.top(), self._waiting.top()) if top is not None]
        due = self._due.top()
        if due is not None and due[0] > now_ns + self.gap_ns:
            tops.append(due[0] - self.gap_ns)  # then what is kept pays it
        return max(min(tops), now_ns) if tops else None

    def _pick_seed(self, domain: Domain, available: int, seed_available: int, now_ns: int) -> Pick | None:
        """The reserve pays if it can in full, else the general part, else whichever holds more.

        Less than the whole only if no more is there; the domain then stays at the head of the line.
        """
        reserve = seed_available >= min(domain.seed, available + 1)
        have = seed_available if reserve else available
        if have < min(MIN_SAMPLE, domain.seed):
            return None
        size = min(domain.seed, have)
        domain.seeds.spend(size, now_ns)
        return self._charge(domain, size, "seed", now_ns, from_seed_reserve=reserve)

    def _size(self, domain: Domain, most: int, available: int, now_ns: int) -> int:
        """What the one whose turn it is gets now; 0 if it should wait for more bytes."""
        wanted = domain.seed or domain.body
        if available < MIN_SAMPLE and available < wanted:
            return 0
        if domain.limit is not None:
            most = min(most, domain.limit.holds(now_ns))
        return min(most, wanted, available)

    def _charge(
        self, domain: Domain, size: int, reason: str, now_ns: int, from_seed_reserve: bool = False
    ) -> Pick:
        if domain.limit is not None:
            domain.limit.spend(size, now_ns)
        if domain.seed:
            domain.seed -= size
            self._place(domain, now_ns)
        else:
            domain.body -= size
            plain = domain.limit is None and not domain.quota.reservation
            if not plain or domain.body < self._queue.sample_size:
                self._place(domain, now_ns)
        return Pick(domain.uuid, size, reason, from_seed_reserve)

    def _place(self, domain: Domain, now_ns: int) -> None:
        """Puts a domain where its wants and its buckets say it belongs."""
        sample_size, wanted = self._queue.sample_size, domain.wanted
        request = domain.next_bytes(sample_size, self._grain)
        unblocked_ns = domain.unblocked_ns(request, now_ns) if wanted else 0
        seeded_ns = domain.seeded_ns(sample_size, now_ns) if domain.seed else 0
        if not wanted:
            self._asking.discard(domain)
            self._queue.leave(domain)
        else:
            self._asking.add(domain)
            if unblocked_ns:
                self._queue.halt(domain)
            else:
                self._queue.enter(domain, request)
        self._place_reservation(domain, now_ns)
        if not domain.seed or seeded_ns:
            self._seeds.discard(domain)
        elif domain not in self._seeds:
            self._arrivals += 1
            self._seeds.put(domain, self._arrivals)
        if unblocked_ns or seeded_ns:
            self._blocked.put(domain, min(unblocked_ns or seeded_ns, seeded_ns or unblocked_ns))
        else:
            self._blocked.discard(domain)

    def _place_reservation(self, domain: Domain, now_ns: int) -> None:
        if not domain.quota.reservation or not self._queue.serves(domain):
            self._waiting.discard(domain)
            self._due.discard(domain)
        elif domain.owed.covers(0, now_ns):
            self._waiting.discard(domain)
            self._due.put(domain, domain.deadline_ns(self._grain, now_ns))
        else:
            self._due.discard(domain)
            self._waiting.put(domain, domain.owed.when(0))

    def _advance(self, now_ns: int) -> None:
        """What time alone has changed."""
        for heap, place in ((self._blocked, self._place), (self._waiting, self._place_reservation)):
            top = heap.top()
            while top is not None and top[0] <= now_ns:
                place(heap.pop(), now_ns)
                top = heap.top()
        if self._departed:
            self._sweep(now_ns)

    def _sweep(self, now_ns: int) -> None:
        """Looks at one departed domain; MAX_DEPARTED bounds them however fast they come and go."""
        top = self._fading.top()
        if top is not None and top[0] <= now_ns:
            domain = self._fading.pop()
            if self._queue.is_fresh(domain):
                del self._departed[domain.uuid]
            else:
                self._fading.put(domain, now_ns + _LOOK_AGAIN_NS)
