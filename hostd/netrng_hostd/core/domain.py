# SPDX-License-Identifier: Apache-2.0
"""What the scheduler knows of one domain: its quota, what it wants, and its three buckets.

- `limit` (None without one): everything sent is charged; as deep as the burst.
- `owed`: the reservation; entitled minus served by reservation, so that 0 and more is due.
- `seeds`: one seed deep, filled again at a byte a second, whatever reconnects or reboots.

Bytes, nanoseconds of a monotonic clock. A method that says when returns 0 for now.
"""

from __future__ import annotations

from .bucket import NS_PER_S, Bucket
from .fairqueue import Rival
from .quota import Quota

SEED_SIZE = 64
SEED_REFILL = 1  # bytes per second: a whole seed about once a minute
MIN_SAMPLE = 32
LAG_S = 1  # what a starved source could not pay is remembered for this long


class Domain(Rival):
    """`seed` and `body` are the bytes granted and unsent below and beyond offset 64 of the session."""

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

    @property
    def wanted(self) -> int:
        """What one sample may hold: never bytes of both sides of offset 64."""
        return self.seed or self.body

    def apply(self, quota: Quota, sample_size: int, now_ns: int) -> None:
        """A new quota (the weight is the queue's affair). Levels and debts stay, as far as they fit."""
        if quota.limit is None:
            self.limit = None
        elif self.limit is None:
            self.limit = Bucket(quota.limit, quota.burst, now_ns)
        else:
            self.limit.reshape(quota.limit, quota.burst, now_ns)
        self.quota = quota
        self.remember(sample_size, now_ns)

    def remember(self, sample_size: int, now_ns: int) -> None:
        """Caps what a starved source owes: a sample more, because a grain may be as late as its deadline."""
        rate = self.quota.reservation
        self.owed.reshape(rate, rate * LAG_S + sample_size if rate else 0, now_ns)

    def begin(self, now_ns: int) -> None:
        """It begins to ask: nothing is owed to it for the time before; what it owes stays."""
        self.owed.settle(now_ns)
        self.owed.level = min(self.owed.level, 0)

    def next_bytes(self, sample_size: int, grain: int) -> int:
        """The bytes that it should be given next: a sample, or what a limit had better cover first.

        That is a grain if it has a reservation, and at most half the burst, or the bucket would overflow
        while its domain waits for its turn and less than the limit would be delivered.
        """
        quota = self.quota
        if self.limit is not None:
            sample_size = max(MIN_SAMPLE, min(grain if quota.reservation else sample_size, quota.burst // 2))
        return min(self.wanted, sample_size)

    def unblocked_ns(self, request: int, now_ns: int) -> int:
        """When the limit lets so many bytes be served."""
        limit = self.limit
        return 0 if limit is None or limit.covers(request, now_ns) else limit.when(request)

    def seeded_ns(self, sample_size: int, now_ns: int) -> int:
        """When its seed is paid for: by the seed bucket, and by the limit overdrawn by at most a sample."""
        seeds, limit, overdraft = self.seeds, self.limit, self.seed - sample_size
        paid = seeds.covers(self.seed, now_ns)
        if limit is None:
            return 0 if paid else seeds.when(self.seed)
        if limit.covers(overdraft, now_ns) and paid:
            return 0
        return max(seeds.when(self.seed), limit.when(overdraft))

    def deadline_ns(self, grain: int, now_ns: int) -> int:
        """When a whole grain of the reservation will be owed. `owed` is settled."""
        return now_ns + (grain * NS_PER_S - self.owed.level) // self.quota.reservation

    def fresh_ns(self) -> int:
        """When its buckets will be those of a domain never seen before."""
        owed_ns = self.owed.when(0) if self.quota.reservation else 0
        limit_ns = self.limit.when(self.quota.burst) if self.limit is not None else 0
        return max(owed_ns, limit_ns, self.seeds.when(SEED_SIZE))
