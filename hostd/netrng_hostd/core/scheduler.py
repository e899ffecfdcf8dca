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
   `LAG_S` seconds' worth and one sample. Grains are a quarter of a sample, because a grain may come
   anywhere between due and deadline: two grains and the time of one sample are then within one sample
   (up to a reservation of half the source).
   Bound: while it keeps asking and the source can pay, bytes ≥ reservation · w − one sample.
2. **Seeds**, first come first served: the first 64 bytes of a session, out of the domain's own seed
   bucket (64 bytes deep, a byte a second, whatever reconnects). With an empty seed bucket, or when a
   reservation is quicker, seed bytes are served as any others.
3. **Weights**: `fairqueue`. Nobody is more than one sample from the exact share.

**Limit.** Everything sent is charged to a bucket as deep as the burst. A domain whose level does not cover a
grain (at most half the burst, so that a bucket does not overflow while its domain waits for its turn)
takes no part in 1 and 3 until it does, and then starts without back pay. A seed may overdraw the bucket
by one sample. Bound: in any interval w, bytes ≤ burst + limit · w + one sample.

**Work conserving.** While `MIN_SAMPLE` bytes are there and any asking domain is not blocked by its limit,
`pick` returns one. It never passes over the one whose turn it is for another that would be content
with less: so it returns None while fewer than min(`MIN_SAMPLE`, wanted) bytes are there for it.

Whole numbers only; instants are nanoseconds of a monotonic clock, passed in; O(log n) per call.
"""

from __future__ import annotations

from typing import NamedTuple

from .bucket import NS_PER_S, Bucket
from .fairqueue import FairQueue, Rival
from .lazyheap import LazyHeap
from .quota import Quota

SEED_SIZE = 64
SEED_REFILL = 1  # bytes per second: a whole seed about once a minute
MIN_SAMPLE = 32
MAX_SAMPLE = 65536
LAG_S = 1
MAX_FORGOTTEN = 8192
_RETRY_NS = NS_PER_S


class Pick(NamedTuple):
    """Give `n_bytes` to `uuid`. `reason` is "reservation", "seed" or "weight"."""

    uuid: str
    n_bytes: int
    reason: str
    from_seed_reserve: bool


class _Domain(Rival):
    """`limit` is None without one. `owed` is the reservation's bucket, `seeds` the seed bucket."""

    __slots__ = ("body", "limit", "owed", "quota", "seed", "seeds", "uuid")

    def __init__(self, uuid: str, quota: Quota, now_ns: int) -> None:
        super().__init__(quota.weight)
        self.uuid = uuid
        self.quota = quota
        self.seed = 0
        self.body = 0
        self.limit: Bucket | None = None
        self.owed = Bucket(0, 0, now_ns)
        self.seeds = Bucket(SEED_REFILL, SEED_SIZE, now_ns)


class Scheduler:
    """`sample_size` (bytes, 32..65536) is a maximum and may be changed at any time.

    `want` and `forget` raise KeyError for a domain that has no quota.
    """

    def __init__(self, sample_size: int = 512) -> None:
        self._queue = FairQueue(sample_size)
        self._domains: dict[str, _Domain] = {}
        self._departed: dict[str, _Domain] = {}
        self._blocked: LazyHeap[_Domain] = LazyHeap()  # by the instant at which a limit or seed bucket pays
        self._waiting: LazyHeap[_Domain] = LazyHeap()  # by the instant at which a reservation is due
        self._due: LazyHeap[_Domain] = LazyHeap()  # by deadline
        self._seeds: LazyHeap[_Domain] = LazyHeap()  # by arrival
        self._fresh: LazyHeap[_Domain] = (
            LazyHeap()
        )  # departed, by the instant at which nothing is left of them
        self._arrivals = 0
        self.sample_size = sample_size

    @property
    def sample_size(self) -> int:
        return self._queue.sample_size

    @sample_size.setter
    def sample_size(self, size_bytes: int) -> None:
        if not MIN_SAMPLE <= size_bytes <= MAX_SAMPLE:
            raise ValueError(f"sample_size {size_bytes}; allowed: {MIN_SAMPLE} to {MAX_SAMPLE}")
        self._queue.sample_size = size_bytes
        self._grain = max(MIN_SAMPLE, size_bytes // 4)

    @property
    def operations(self) -> int:
        """Levels of heaps walked so far: the cost, counted."""
        heaps = (self._blocked, self._waiting, self._due, self._seeds, self._fresh)
        return self._queue.operations + sum(heap.operations for heap in heaps)

    @property
    def departed(self) -> int:
        """How many forgotten domains are still remembered."""
        return len(self._departed)

    def set_quota(self, uuid: str, quota: Quota, now_ns: int) -> None:
        """A new domain, one that is back, or a new quota for one that is here: in force at once.

        What was saved in its buckets or was owed to or by it stays, as far as the new burst holds it.
        """
        domain = self._domains.get(uuid) or self._departed.pop(uuid, None)
        if domain is None:
            domain = _Domain(uuid, quota, now_ns)
        self._domains[uuid] = domain
        self._fresh.discard(domain)
        if quota.limit is None:
            domain.limit = None
        elif domain.limit is None:
            domain.limit = Bucket(quota.limit, quota.burst, now_ns)
        else:
            domain.limit.reshape(quota.limit, quota.burst, now_ns)
        domain.owed.reshape(quota.reservation, quota.reservation * LAG_S + self.sample_size, now_ns)
        self._queue.reweigh(domain, quota.weight)
        domain.quota = quota
        self._place(domain, now_ns)

    def want(self, uuid: str, seed: int, body: int, now_ns: int) -> None:
        """How much was granted and is not sent: below (`seed`) and beyond offset 64 of the session.

        Absolute, in bytes; 0, 0 is not asking. `pick` subtracts what it gives.
        """
        domain = self._domains[uuid]
        unchanged = seed == domain.seed and (
            seed or body == domain.body or min(body, domain.body) >= self._queue.sample_size
        )
        began = not domain.seed and not domain.body
        domain.seed, domain.body = seed, body
        if unchanged:
            return
        if began:
            domain.owed.settle(now_ns)
            domain.owed.level = min(domain.owed.level, 0)
        self._place(domain, now_ns)

    def forget(self, uuid: str, now_ns: int) -> None:
        """The domain is gone. Its state is kept until it is that of a fresh one."""
        self.want(uuid, 0, 0, now_ns)
        domain = self._domains.pop(uuid)
        self._departed[uuid] = domain
        self._fresh.put(domain, self._fresh_ns(domain))
        if len(self._departed) > MAX_FORGOTTEN and self._fresh.top():
            del self._departed[self._fresh.pop().uuid]  # the one with the least left to remember

    def pick(self, now_ns: int, available: int, seed_available: int) -> Pick | None:
        """Decides who gets the next sample and charges it, or None.

        `available` and `seed_available` are the bytes in the reservoir's general part and seed reserve.
        """
        self._advance(now_ns)
        due = self._due.top()
        if due is not None:
            domain = due[2]
            size = self._size(domain, self._grain, available)
            if size:
                domain.owed.settle(now_ns)
                domain.owed.spend(size)
                self._queue.push(domain, size)
                return self._charge(domain, size, "reservation", now_ns)
            return None
        first = self._seeds.top()
        if first is not None:
            return self._pick_seed(first[2], available, seed_available, now_ns)
        rival = self._queue.first()
        if rival is None:
            return None
        assert isinstance(rival, _Domain)
        size = self._size(rival, self._queue.sample_size, available)
        if not size:
            return None
        self._queue.serve(rival, size)
        return self._charge(rival, size, "weight", now_ns)

    def next_ns(self, now_ns: int) -> int | None:
        """When time alone will unblock a domain; None if none is blocked by time."""
        top = self._blocked.top()
        return None if top is None else max(top[0], now_ns)

    def _pick_seed(self, domain: _Domain, available: int, seed_available: int, now_ns: int) -> Pick | None:
        """The reserve pays if it can pay in full, else the general part, else whichever holds more.

        Less than the whole only if no more is there; the domain then stays at the head of the line.
        """
        reserve = seed_available >= domain.seed or seed_available > available
        have = seed_available if reserve else available
        if have < min(MIN_SAMPLE, domain.seed):
            return None
        size = min(domain.seed, have)
        domain.seeds.spend(size)
        return self._charge(domain, size, "seed", now_ns, from_seed_reserve=reserve)

    def _size(self, domain: _Domain, most: int, available: int) -> int:
        """What the one whose turn it is gets now; 0 if it should wait for more bytes."""
        wanted = domain.seed or domain.body
        if available < MIN_SAMPLE and available < wanted:
            return 0
        if domain.limit is not None:
            most = min(most, domain.limit.level // NS_PER_S)
        return min(most, wanted, available)

    def _charge(
        self, domain: _Domain, size: int, reason: str, now_ns: int, from_seed_reserve: bool = False
    ) -> Pick:
        limit = domain.limit
        if limit is not None:
            limit.spend(size)
        if domain.seed:
            domain.seed -= size
            self._place(domain, now_ns)
        else:
            domain.body -= size
            if not domain.body or limit is not None or domain.quota.reservation:
                self._place(domain, now_ns)
        return Pick(domain.uuid, size, reason, from_seed_reserve)

    def _place(self, domain: _Domain, now_ns: int) -> None:
        """Puts a domain where its wants and its buckets say it belongs."""
        wanted = domain.seed or domain.body
        wakes: list[int] = []
        if wanted and self._may_be_served(domain, wanted, now_ns, wakes):
            self._queue.enter(domain)
        else:
            self._queue.leave(domain)
        self._place_reservation(domain, now_ns)
        if domain.seed and self._may_be_seeded(domain, now_ns, wakes):
            if domain not in self._seeds:
                self._arrivals += 1
                self._seeds.put(domain, self._arrivals)
        else:
            self._seeds.discard(domain)
        if wakes:
            self._blocked.put(domain, min(wakes))
        else:
            self._blocked.discard(domain)

    def _may_be_served(self, domain: _Domain, wanted: int, now_ns: int, wakes: list[int]) -> bool:
        limit, quota = domain.limit, domain.quota
        if limit is None:
            return True
        grain = self._grain if quota.reservation else self._queue.sample_size
        need = min(wanted, max(MIN_SAMPLE, min(grain, quota.burst // 2)))
        if limit.covers(need, now_ns):
            return True
        wakes.append(limit.when(need))
        return False

    def _may_be_seeded(self, domain: _Domain, now_ns: int, wakes: list[int]) -> bool:
        seeds, limit = domain.seeds, domain.limit
        if domain.seed > SEED_SIZE:
            return False
        overdraft = domain.seed - self._queue.sample_size
        paid = seeds.covers(domain.seed, now_ns)
        if limit is None:
            if not paid:
                wakes.append(seeds.when(domain.seed))
            return paid
        if limit.covers(overdraft, now_ns) and paid:
            return True
        wakes.append(max(seeds.when(domain.seed), limit.when(overdraft)))
        return False

    def _place_reservation(self, domain: _Domain, now_ns: int) -> None:
        rate, owed = domain.quota.reservation, domain.owed
        if not rate or domain.place is None:
            self._waiting.discard(domain)
            self._due.discard(domain)
        elif owed.covers(0, now_ns):
            self._waiting.discard(domain)
            self._due.put(domain, now_ns + (self._grain * NS_PER_S - owed.level) // rate)
        else:
            self._due.discard(domain)
            self._waiting.put(domain, owed.when(0))

    def _advance(self, now_ns: int) -> None:
        """What time alone has changed."""
        while True:
            top = self._blocked.top()
            if top is None or top[0] > now_ns:
                break
            self._place(self._blocked.pop(), now_ns)
        while True:
            top = self._waiting.top()
            if top is None or top[0] > now_ns:
                break
            self._place_reservation(self._waiting.pop(), now_ns)
        if self._departed:
            self._sweep(now_ns)

    def _sweep(self, now_ns: int) -> None:
        """Looks at one departed domain: churn adds one per call of `forget`, so none pile up."""
        top = self._fresh.top()
        if top is not None and top[0] <= now_ns:
            domain = self._fresh.pop()
            if self._queue.is_fresh(domain):
                del self._departed[domain.uuid]
            else:
                self._fresh.put(domain, now_ns + _RETRY_NS)

    def _fresh_ns(self, domain: _Domain) -> int:
        limit, owed = domain.limit, domain.owed
        return max(
            domain.seeds.when(SEED_SIZE),
            owed.when(0) if owed.rate else 0,
            limit.when(domain.quota.burst) if limit is not None else 0,
        )
