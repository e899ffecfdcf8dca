# SPDX-License-Identifier: Apache-2.0
"""The fairness specification.

While a domain asks, its rate is clamp(λ · weight, reservation, limit) with one λ for all. What follows
holds for any arrivals from the source, whatever the other domains do. `Host` is a virtual clock, a source
of a steady rate that delivers in chunks, a reservoir, and domains that ask for as much as they may unless
a test says otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from math import log2
from random import Random

import pytest
from bench.exact import exact_shares
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from netrng_hostd.core.quota import DEFAULT_QUOTA, Quota
from netrng_hostd.core.scheduler import MAX_DEPARTED, Pick, Scheduler

NS = 1_000_000_000
SAMPLE = 512
WINDOW = 4096
Given = tuple[int, int]  # now_ns, bytes


class Host:
    def __init__(
        self,
        quotas: dict[str, Quota],
        rate: int = 10_000,
        chunk: int = 64,
        sample: int = SAMPLE,
        size: int = 65536,
        gap_ns: int = 0,
    ) -> None:
        self.scheduler = Scheduler(sample)
        self.scheduler.gap_ns = gap_ns
        self.rate, self.chunk, self.size = rate, chunk, size
        self.now = self.start = NS
        self.arrivals = self.available = self.seeds = 0
        self.given: dict[str, list[Given]] = {}
        self.totals: dict[str, int] = {}
        self.picks: list[Pick] = []
        self.greedy: set[str] = set()
        for uuid, quota in quotas.items():
            self.add(uuid, quota)

    def add(self, uuid: str, quota: Quota) -> None:
        self.scheduler.set_quota(uuid, quota, self.now)
        self.given.setdefault(uuid, [])
        self.totals.setdefault(uuid, 0)
        self.greedy.add(uuid)
        self.scheduler.want(uuid, 0, WINDOW, self.now)

    def run(self, seconds: float, before: Callable[[], object] = lambda: None) -> None:
        """Time passes from one arrival or unblocking to the next; `before` is called at each."""
        end = self.now + int(seconds * NS)
        while True:
            arrival = self.start + (self.arrivals + 1) * self.chunk * NS // self.rate
            unblocked = self.scheduler.next_ns(self.now)
            if unblocked is not None and unblocked < arrival:
                self.now = max(unblocked, self.now + 1)
            else:
                self.now = arrival
                self.arrivals += 1
                self.available = min(self.available + self.chunk, self.size)
            if self.now > end:
                return
            before()
            self.give()

    def give(self, most: int = sys.maxsize) -> list[Pick]:
        first = len(self.picks)
        while len(self.picks) - first < most:
            pick = self.scheduler.pick(self.now, self.available, self.seeds)
            if pick is None:
                break
            assert 0 < pick.n_bytes <= (self.seeds if pick.from_seed_reserve else self.available)
            if pick.from_seed_reserve:
                self.seeds -= pick.n_bytes
            else:
                self.available -= pick.n_bytes
            self.picks.append(pick)
            self.given[pick.uuid].append((self.now, pick.n_bytes))
            self.totals[pick.uuid] += pick.n_bytes
            if pick.uuid in self.greedy:
                self.scheduler.want(pick.uuid, 0, WINDOW, self.now)
        return self.picks[first:]

    def got(self, uuid: str, since: int = 0) -> int:
        return sum(size for now, size in self.given[uuid] if now > since) if since else self.totals[uuid]

    def total(self) -> int:
        return sum(self.totals.values())


def worst_shortfall(given: Iterable[Given], rate: int, start: int, end: int) -> Fraction:
    """The largest rate · w − bytes over all intervals."""
    got, highest, worst = 0, 0, 0
    for now, size in [*given, (end, 0)]:
        ahead = got * NS - rate * (now - start)
        worst = max(worst, highest - ahead)
        got += size
        highest = max(highest, ahead + size * NS)
    return Fraction(worst, NS)


def worst_excess(given: Iterable[Given], rate: int, start: int) -> Fraction:
    """The largest bytes − rate · w over all intervals, their ends included."""
    got, lowest, worst = 0, 0, 0
    for now, size in given:
        lowest = min(lowest, got * NS - rate * (now - start))
        got += size
        worst = max(worst, got * NS - rate * (now - start) - lowest)
    return Fraction(worst, NS)


# --- weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [64, 512])
@pytest.mark.parametrize("domains", [16, 256, 1000])
def test_equal_weights_are_within_one_sample_of_exact_at_every_size(domains: int, chunk: int) -> None:
    host = Host({f"vm{i}": Quota() for i in range(domains)}, chunk=chunk)
    for _ in range(7):  # looked at in mid-round, too
        host.run(domains * SAMPLE * 0.7 / host.rate)
        exact = host.total() / domains
        assert max(abs(host.got(uuid) - exact) for uuid in host.given) <= SAMPLE


def test_jain_is_at_least_0_999_where_each_is_due_16_samples() -> None:
    host = Host({f"vm{i}": Quota() for i in range(100)})
    host.run(100 * SAMPLE * 16.5 / host.rate)
    got = [host.got(uuid) for uuid in host.given]
    assert sum(got) ** 2 / (len(got) * sum(x * x for x in got)) >= 0.999


@pytest.mark.parametrize("chunk", [64, 512, 2048])
def test_weights_1_2_4_8_are_within_one_sample_whatever_the_others_do(chunk: int) -> None:
    random = Random(1)
    host = Host({f"vm{2**i}": Quota(weight=100 * 2**i) for i in range(4)}, chunk=chunk)
    for i in range(20):
        host.add(f"fickle{i}", Quota(weight=random.choice([1, 300, 5000])))
    host.greedy = {"vm1", "vm2", "vm4", "vm8"}

    def others_and_look() -> None:
        fickle = f"fickle{random.randrange(20)}"
        host.scheduler.want(fickle, 0, random.choice([0, 1, 40, 600, WINDOW]), host.now)
        for weight in (2, 4, 8):
            off = [host.got(f"vm{weight}") - weight * host.got("vm1")]
            assert abs(off[0]) <= (weight + 1) * SAMPLE  # a sample of its own, a sample of vm1's

    host.run(60, others_and_look)
    since = host.now
    host.run(400)
    unit = sum(host.got(uuid, since) for uuid in host.greedy) / 15
    for weight in (1, 2, 4, 8):
        assert abs(host.got(f"vm{weight}", since) - weight * unit) <= max(SAMPLE, weight * unit / 100)


def test_with_weights_alone_every_instant_is_within_one_sample_of_exact() -> None:
    weights = {f"vm{i}": 100 * 2 ** (i % 4) for i in range(16)}
    host = Host({uuid: Quota(weight=weight) for uuid, weight in weights.items()})
    got = dict.fromkeys(weights, 0)
    for _ in range(2000):
        host.run(0.0064)
        for pick in host.picks:
            got[pick.uuid] += pick.n_bytes
        host.picks.clear()
        total = sum(got.values())
        assert all(
            abs(got[u] - Fraction(total * w, sum(weights.values()))) <= SAMPLE for u, w in weights.items()
        )


def test_a_late_joiner_earns_no_back_pay() -> None:
    host = Host({"old1": Quota(), "old2": Quota()})
    host.run(100)
    host.add("late", Quota())
    since = host.now
    host.run(3)
    assert all(abs(host.got(uuid, since) - 10_000) <= SAMPLE for uuid in host.given)


def test_one_that_was_silent_earns_no_back_pay() -> None:
    host = Host({"busy": Quota(), "silent": Quota(reservation=1000)})
    host.greedy.remove("silent")
    host.scheduler.want("silent", 0, 0, host.now)
    host.run(100)
    since = host.now
    host.greedy.add("silent")
    host.scheduler.want("silent", 0, WINDOW, host.now)
    host.run(3)
    assert abs(host.got("silent", since) - 15_000) <= SAMPLE


def test_a_modest_domain_is_not_kept_waiting_by_greedy_ones() -> None:
    host = Host({f"greedy{i}": Quota() for i in range(100)})
    host.add("modest", Quota())
    host.greedy.remove("modest")
    host.scheduler.want("modest", 0, 0, host.now)
    host.run(30)
    for _ in range(40):  # 32 bytes a second are a third of its share
        host.scheduler.want("modest", 0, 32, host.now)
        host.run(1)
    assert host.got("modest") >= 38 * 32


# --- all three together ----------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=25)
def test_any_mix_gets_its_clamped_max_min_share(data: st.DataObject) -> None:
    capacity, seconds, sample = 2048, 60, 128
    host, quotas, promised = Host({}, capacity, sample=sample), {}, 0
    for i in range(data.draw(st.integers(2, 8), label="domains")):
        room = max(0, capacity * 9 // 10 - promised)
        reservation = data.draw(st.sampled_from([0, 0, room // 4, room // 2]), label="reservation")
        promised += reservation
        limit = data.draw(st.none() | st.integers(max(16, reservation), 1500), label="limit")
        weight = data.draw(st.sampled_from([30, 100, 300, 1000]), label="weight")
        quota = Quota(reservation=reservation, weight=weight, limit=limit, burst=64)
        host.add(f"vm{i}", quota)
        # Only now, and so not full: a bucket that was saved up would blur the picture.
        quotas[f"vm{i}"] = replace(quota, burst=512)
        host.scheduler.set_quota(f"vm{i}", quotas[f"vm{i}"], host.now)
    host.run(seconds)
    limited = sum(quota.limit is not None for quota in quotas.values())
    slack = Fraction(sample * (2 + limited))  # one's own, and what each bucket holds just now
    for uuid, exact in exact_shares(quotas, capacity).items():
        assert abs(host.got(uuid) - exact * seconds) <= max(slack, exact * seconds / 100), uuid


def test_a_reservation_is_a_floor_and_not_a_bonus() -> None:
    quotas = {"small": Quota(reservation=1000), "large": Quota(reservation=4000), "a": Quota(), "b": Quota()}
    host = Host(quotas)
    host.run(200)
    for uuid, rate in {"small": 2000, "large": 4000, "a": 2000, "b": 2000}.items():
        assert abs(host.got(uuid) - 200 * rate) <= 2 * SAMPLE


def test_what_a_reservation_gave_is_no_punishment_when_the_others_leave() -> None:
    host = Host({"reserved": Quota(reservation=5000, weight=1), "other": Quota(weight=100)})
    host.run(100)
    host.scheduler.set_quota("reserved", Quota(weight=100), host.now)
    since = host.now
    host.run(3)
    assert abs(host.got("reserved", since) - 15_000) <= 3 * SAMPLE


# --- limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("burst", [64, 512, 4096])
@pytest.mark.parametrize("limit", [50, 475, 499])
def test_a_limit_is_delivered_and_never_exceeded(limit: int, burst: int) -> None:
    """Its proportional share would be 500: the hard case is a limit just below."""
    quotas = {f"greedy{i}": Quota() for i in range(17)}
    quotas |= {f"limited{i}": Quota(limit=limit, burst=burst) for i in range(3)}
    host = Host(quotas)
    host.run(60)
    for i in range(3):
        given = host.given[f"limited{i}"]
        assert host.got(f"limited{i}") >= 0.95 * limit * 60
        assert worst_excess(given, limit, host.start) <= burst


def test_a_small_bucket_that_is_briefly_empty_costs_nobody_its_proportional_share() -> None:
    quotas = {f"vm{i}": Quota() for i in range(9)} | {"small": Quota(limit=4000, burst=64)}
    host = Host(quotas, chunk=512)
    host.run(100)
    assert abs(host.got("small") - 100_000) <= 2 * SAMPLE


def test_a_heavy_domain_near_its_limit_is_not_outrun_by_a_light_one_while_its_bucket_is_briefly_empty() -> (
    None
):
    quotas = {
        "heavy": Quota(limit=1298, weight=100, burst=256),  # its share is 1219
        "light": Quota(limit=285, weight=1, burst=256),  # its share is 12
        "other": Quota(limit=184, weight=30, burst=256),
        "bound1": Quota(reservation=230, limit=230, weight=1, burst=256),
        "bound2": Quota(reservation=403, limit=403, weight=300, burst=256),
    }
    host = Host(quotas, rate=2048, chunk=128, sample=128)
    host.run(60)
    for uuid, exact in exact_shares(quotas, 2048).items():
        assert abs(host.got(uuid) - 60 * exact) <= 7 * 128, uuid


def test_without_scarcity_all_get_their_limit_and_pick_says_when_to_come_back() -> None:
    host = Host({f"vm{i}": Quota(limit=100, burst=512) for i in range(5)})
    host.run(30)
    assert all(0.95 * 3000 <= host.got(uuid) <= 3000 + 512 for uuid in host.given)
    when = host.scheduler.next_ns(host.now)
    assert when is not None
    assert when > host.now
    assert host.scheduler.pick(when - 1, 65536, 0) is None
    assert host.scheduler.pick(when, 65536, 0) is not None


def test_the_limit_binds_the_reservation_phase_too() -> None:
    host = Host({"vm": Quota(reservation=1000, limit=1000, burst=64), "other": Quota()})
    host.run(60)
    assert worst_excess(host.given["vm"], 1000, host.start) <= 64
    assert worst_shortfall(host.given["vm"], 1000, host.start, host.now) <= SAMPLE


# --- reservations ----------------------------------------------------------------------------------------


def hostile(host: Host, count: int) -> Callable[[], None]:
    """Flooding, reconnecting in a loop, and never reading, in turn; called at every arrival."""
    random = Random(7)
    names = [f"hostile{i}" for i in range(count)]
    for name in names:
        host.add(name, Quota())
    host.greedy -= set(names)

    def act() -> None:
        for i, name in enumerate(names):
            if i % 3 == 0:
                host.scheduler.want(
                    name, random.choice([0, 1, 64]), random.choice([0, 1, 33, 65536]), host.now
                )
            elif i % 3 == 1:
                host.scheduler.forget(name, host.now)
                host.scheduler.set_quota(name, Quota(), host.now)
                host.scheduler.want(name, 64, WINDOW, host.now)

    return act


@pytest.mark.parametrize("chunk", [64, 512])
@pytest.mark.parametrize("rates", [[1000], [5000], [4000, *[10] * 40, 100, 2000, 500], [90] * 100], ids=str)
def test_a_reservation_holds_in_every_interval_among_greedy_and_hostile_neighbours(
    rates: list[int], chunk: int
) -> None:
    quotas = {f"reserved{i}": Quota(reservation=rate, weight=1) for i, rate in enumerate(rates)}
    quotas |= {f"greedy{i}": Quota() for i in range(100)}
    host = Host(quotas, chunk=chunk)
    host.run(20, hostile(host, 10))
    for i, rate in enumerate(rates):
        assert worst_shortfall(host.given[f"reserved{i}"], rate, host.start, host.now) <= SAMPLE


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=8),
    st.sampled_from([64, 128, 512]),
    st.sampled_from([128, 512, 2048]),
)
@settings(max_examples=25)
def test_any_reservations_that_fit_the_source_hold_in_every_interval(
    rates: list[int], chunk: int, sample: int
) -> None:
    capacity = max(sum(rates) * 10 // 9, 2 * max(rates), 200)
    quotas = {f"reserved{i}": Quota(reservation=rate, weight=1) for i, rate in enumerate(rates)}
    host = Host(quotas | {"greedy": Quota(weight=10_000)}, capacity, chunk, sample)
    host.run(max(10, 20 * sample / capacity))
    for i, rate in enumerate(rates):
        # The source itself pays late by up to one chunk.
        late = Fraction(rate * chunk, capacity) if chunk > sample // 4 else 0
        assert worst_shortfall(host.given[f"reserved{i}"], rate, host.start, host.now) <= sample + late


@pytest.mark.parametrize("rates", [[1000], [2000, 900], [1500, *[20] * 60], [4500]], ids=str)
def test_what_is_kept_pays_reservations_between_two_deliveries(rates: list[int]) -> None:
    """The source's bytes come a test window of 512 at a time: several small samples' worth."""
    sample, window, rate = 64, 512, 10_000
    quotas = {f"reserved{i}": Quota(reservation=rate, weight=1) for i, rate in enumerate(rates)}
    quotas |= {f"greedy{i}": Quota() for i in range(100)}
    worst = {}
    for gap_ns in (0, 2 * window * NS // rate):
        host = Host(quotas, rate, window, sample, gap_ns=gap_ns)
        host.run(2)  # until it is there
        since = host.now
        host.run(20)
        worst[gap_ns > 0] = max(
            worst_shortfall([at for at in host.given[f"reserved{i}"] if at[0] > since], r, since, host.now)
            for i, r in enumerate(rates)
        )
    assert worst[True] <= sample < worst[False]


def test_what_is_kept_is_spent_on_reservations_alone() -> None:
    host = Host({"reserved": Quota(reservation=1000), "other": Quota()}, gap_ns=NS // 2)
    host.scheduler.want("reserved", 0, 0, host.now)
    host.scheduler.want("other", 64, WINDOW, host.now)
    host.available = 664
    assert [pick.n_bytes for pick in host.give()] == [64, 36]
    host.scheduler.want("reserved", 0, WINDOW, host.now)
    assert [(pick.uuid, pick.reason) for pick in host.give()] == [("reserved", "reservation")]
    next_ns = host.scheduler.next_ns(host.now)
    assert next_ns == host.now + 128 * NS // 1000  # what was kept pays when the next grain is due
    host.now = next_ns
    assert [pick.n_bytes for pick in host.give()] == [128]


def test_what_is_kept_pays_a_grain_shortly_before_its_deadline_though_nothing_is_delivered() -> None:
    gap_ns = NS // 10
    host = Host({"reserved": Quota(reservation=1000), "other": Quota()}, gap_ns=gap_ns)
    assert host.scheduler.kept == 100 + 64
    host.available = 164 + 20
    assert host.give() == [], "a grain is due, and what is kept may wait for the next delivery"
    when = host.scheduler.next_ns(host.now)
    assert when == host.now + 128 * NS // 1000 - gap_ns
    host.now = when
    assert [(pick.uuid, pick.n_bytes) for pick in host.give()] == [("reserved", 128)]


def test_the_sum_of_reservations_is_known() -> None:
    scheduler = Scheduler()
    scheduler.set_quota("a", Quota(reservation=1000), 0)
    scheduler.set_quota("b", Quota(reservation=300), 0)
    scheduler.set_quota("a", Quota(reservation=500), 0)
    assert scheduler.reserved == 800
    scheduler.forget("a", 0)
    assert scheduler.reserved == 300
    scheduler.set_quota("a", Quota(reservation=40), NS)
    assert scheduler.reserved == 340


def test_a_large_reservation_does_not_queue_behind_many_small_ones() -> None:
    quotas = {f"small{i}": Quota(reservation=10, weight=1) for i in range(200)}
    host = Host(quotas | {"large": Quota(reservation=2000, weight=1), "greedy": Quota()})
    host.run(20)
    assert worst_shortfall(host.given["large"], 2000, host.start, host.now) <= SAMPLE


def test_a_surplus_by_weight_never_starves_the_guarantee_afterwards() -> None:
    host = Host({"reserved": Quota(reservation=2000, weight=1)})
    host.run(60)  # alone: 10,000 a second
    since = host.now
    for i in range(50):
        host.add(f"greedy{i}", Quota())
    host.run(10)
    given = [(now, size) for now, size in host.given["reserved"] if now > since]
    assert worst_shortfall(given, 2000, since, host.now) <= SAMPLE


def test_what_a_starved_source_owes_is_remembered_for_one_second() -> None:
    host = Host({"reserved": Quota(reservation=4000, weight=1), "greedy": Quota(weight=100)})
    host.run(10)
    host.now += 60 * NS
    host.start += 60 * NS
    since = host.now
    host.run(10)
    assert 40_000 - SAMPLE <= host.got("reserved", since) <= 40_000 + 4000 + 2 * SAMPLE


# --- isolation -------------------------------------------------------------------------------------------


def test_hostile_domains_cost_the_others_no_more_than_greedy_ones_would() -> None:
    def others_get(with_hostile: bool) -> int:
        host = Host({f"vm{i}": Quota() for i in range(20)})
        if with_hostile:
            host.run(60, hostile(host, 10))
        else:
            for i in range(10):
                host.add(f"more{i}", Quota())
            host.run(60)
        return min(host.got(f"vm{i}") for i in range(20))

    seeds = 10 * (64 + 60) / 20  # each UUID's seed bucket is its own
    assert others_get(True) >= others_get(False) - SAMPLE - seeds


def test_reconnecting_earns_nothing() -> None:
    quota = Quota(limit=300, burst=4096)
    host = Host({f"vm{i}": Quota() for i in range(9)} | {"loop": quota})

    def reconnect() -> None:
        host.scheduler.forget("loop", host.now)
        host.scheduler.set_quota("loop", quota, host.now)
        host.scheduler.want("loop", 0, WINDOW, host.now)

    host.run(60, reconnect)
    assert worst_excess(host.given["loop"], 300, host.start) <= 4096

    quota = Quota(reservation=500, weight=1)
    host = Host({f"vm{i}": Quota() for i in range(9)} | {"loop": quota})
    host.run(60, reconnect)
    assert host.got("loop") <= 500 * 60 + SAMPLE

    quota = Quota()
    host = Host({f"vm{i}": Quota() for i in range(9)} | {"loop": quota})
    host.run(60, reconnect)
    assert host.got("loop") <= 1000 * 60 + SAMPLE


def test_a_forgotten_domain_is_remembered_until_it_is_like_a_fresh_one() -> None:
    host = Host({"other": Quota()})
    host.add("gone", Quota(limit=10, burst=640, reservation=5))
    host.scheduler.want("gone", 64, WINDOW, host.now)
    host.run(1)
    host.scheduler.forget("gone", host.now)
    with pytest.raises(KeyError):
        host.scheduler.want("gone", 0, 1, host.now)
    assert host.scheduler.departed == 1
    host.run(50)
    assert host.scheduler.departed == 1
    host.run(30)
    assert host.scheduler.departed == 0


def test_a_lead_in_virtual_time_is_remembered_after_the_buckets_are_full() -> None:
    host = Host({"heavy": Quota(weight=3000), "gone": Quota(weight=1)}, chunk=512)
    while not host.got("gone"):
        host.run(0.2)
    assert host.got("gone") > 0
    host.scheduler.forget("gone", host.now)
    host.run(90)
    assert host.scheduler.departed == 1
    host.run(90)
    assert host.scheduler.departed == 0


def test_a_vm_that_reboots_is_as_far_behind_as_it_was() -> None:
    host = Host({f"vm{i}": Quota() for i in range(4)})
    host.run(10)
    host.available = 512
    [pick] = host.give()
    behind = next(name for name in host.totals if host.got(name) == min(host.totals.values()))
    assert behind != pick.uuid
    before = host.got(behind)
    host.scheduler.forget(behind, host.now)
    host.run(30)
    assert host.scheduler.departed == 1
    host.add(behind, Quota())
    host.available = 512
    [first] = host.give()
    assert first.uuid == behind
    assert host.got(behind) == before + 512


def test_the_memory_of_the_departed_is_bounded() -> None:
    scheduler = Scheduler()
    scheduler.set_quota("stays", Quota(), 0)
    for i in range(MAX_DEPARTED + 100):
        scheduler.set_quota(f"vm{i}", Quota(limit=1, burst=1 << 20), 0)
        scheduler.want(f"vm{i}", 0, 32, 0)
        scheduler.pick(0, 32, 0)
        scheduler.forget(f"vm{i}", 0)
        assert scheduler.departed <= MAX_DEPARTED


# --- seeds -----------------------------------------------------------------------------------------------


def seeding(count: int, quota: Quota = DEFAULT_QUOTA) -> Host:
    """A host with greedy neighbours and so many domains that have just connected and want one window."""
    host = Host({f"greedy{i}": Quota() for i in range(10)})
    host.run(10)
    host.picks.clear()
    for i in range(count):
        host.add(f"new{i}", quota)
        host.greedy.remove(f"new{i}")
        host.scheduler.want(f"new{i}", 64, WINDOW - 64, host.now)
    return host


def test_seeds_come_whole_in_order_of_arrival_and_before_weights() -> None:
    host = seeding(500)
    host.run(500 * 64 / host.rate)
    assert [(pick.uuid, pick.n_bytes, pick.reason) for pick in host.picks[:500]] == [
        (f"new{i}", 64, "seed") for i in range(500)
    ]


def test_reservations_come_before_seeds() -> None:
    host = seeding(500)
    host.add("reserved", Quota(reservation=2000))
    since = host.now
    host.run(3)
    assert worst_shortfall(host.given["reserved"], 2000, since, host.now) <= SAMPLE


def test_the_seed_reserve_is_spent_on_seeds_alone_and_first() -> None:
    host = seeding(3)
    host.seeds = 128
    host.available = 1000
    picks = host.give(4)
    assert [(pick.uuid, pick.reason, pick.from_seed_reserve) for pick in picks[:3]] == [
        ("new0", "seed", True), ("new1", "seed", True), ("new2", "seed", False),
    ]  # fmt: skip
    assert (picks[3].reason, picks[3].from_seed_reserve) == ("weight", False)


def test_the_seed_reserve_pays_while_the_general_part_is_saved_for_a_reservation() -> None:
    host = seeding(2)
    host.add("reserved", Quota(reservation=5000))
    host.seeds, host.available = 128, 8
    assert [(pick.uuid, pick.from_seed_reserve) for pick in host.give()] == [("new0", True), ("new1", True)]
    host.available = 32
    assert [pick.uuid for pick in host.give()] == ["reserved"]


def test_the_seed_reserve_pays_the_seed_of_a_reserved_domain() -> None:
    host = seeding(1, Quota(reservation=1000))
    host.seeds, host.available = 64, 1000
    [pick] = host.give(1)
    assert pick == Pick("new0", 64, "seed", True)
    host = seeding(1, Quota(reservation=1000))
    host.available = 1000
    [pick] = host.give(1)
    assert pick == Pick("new0", 64, "reservation", False)


def test_a_seed_comes_in_parts_only_when_there_is_no_more_and_keeps_its_turn() -> None:
    host = seeding(2)
    host.available, host.seeds = 40, 10
    assert host.give(1) == [Pick("new0", 40, "seed", False)]
    host.available, host.seeds = 16, 23
    assert host.give(1) == []  # the head's remainder is 24, and it is not passed over
    host.available, host.seeds = 16, 24
    assert host.give(1) == [Pick("new0", 24, "seed", True)]
    host.available, host.seeds = 33, 50
    assert host.give(1) == [Pick("new1", 50, "seed", True)]


def test_reconnecting_never_refills_the_seed_bucket() -> None:
    host = Host({f"greedy{i}": Quota() for i in range(10)})
    host.add("loop", Quota())
    host.greedy.remove("loop")

    def reboot() -> None:
        host.scheduler.forget("loop", host.now)
        host.scheduler.set_quota("loop", Quota(), host.now)
        host.scheduler.want("loop", 64, WINDOW, host.now)

    host.run(200, reboot)
    seeds = sum(pick.n_bytes for pick in host.picks if pick.reason == "seed")
    assert 64 + 64 <= seeds <= 64 + 200


def test_with_an_empty_seed_bucket_seed_bytes_are_served_as_any_others() -> None:
    host = seeding(1)
    host.available = 64
    host.give()
    host.scheduler.want("new0", 64, 0, host.now)
    first = len(host.picks)
    host.run(1)
    assert {pick.reason for pick in host.picks[first:]} == {"weight"}
    assert host.got("new0") == 128


def test_a_starved_seed_comes_first_again_once_its_bucket_is_full() -> None:
    host = seeding(1)
    host.available = 64
    host.give()
    host.scheduler.want("new0", 64, 0, host.now)
    assert host.scheduler.next_ns(host.now) == host.now + 64 * NS
    host.now += 64 * NS
    host.available = 4096
    assert host.give(1) == [Pick("new0", 64, "seed", False)]


def test_a_seed_does_not_wait_for_the_limit_and_overdraws_it_by_one_sample_at_most() -> None:
    host = seeding(1, Quota(limit=10, burst=64))
    host.scheduler.want("new0", 0, 64, host.now)
    host.available = 6400
    while host.got("new0") < 64:
        host.give(1)
    host.scheduler.want("new0", 64, WINDOW, host.now)
    assert host.give(1) == [Pick("new0", 64, "seed", False)]
    assert host.scheduler.next_ns(host.now) == host.now + (64 + 32) * NS // 10
    host.run(60)
    assert worst_excess(host.given["new0"], 10, host.start) <= 64 + SAMPLE


# --- a change of quota -----------------------------------------------------------------------------------


def test_a_change_takes_effect_at_once_and_keeps_what_the_bucket_holds() -> None:
    host = Host({f"vm{i}": Quota() for i in range(9)} | {"vm": Quota(limit=100, burst=4096)})
    host.run(60)
    since = host.now
    host.scheduler.set_quota("vm", Quota(limit=500, burst=64), host.now)
    host.run(10)
    assert worst_excess([g for g in host.given["vm"] if g[0] > since], 500, since) <= 64
    assert host.got("vm", since) >= 0.95 * 5000
    for quota, rate in [
        (Quota(reservation=4000), 4000),
        (Quota(weight=100), 1000),
        (Quota(weight=900), 5000),
        (Quota(limit=200, burst=64), 200),
    ]:
        host.scheduler.set_quota("vm", quota, host.now)
        since = host.now
        host.run(10)
        assert abs(host.got("vm", since) - 10 * rate) <= 2 * SAMPLE


def test_a_domain_that_its_limit_blocks_is_free_the_moment_the_limit_is_gone() -> None:
    host = Host({"vm": Quota(limit=1, burst=64)})
    host.available = 4096
    host.give()
    assert host.give() == []
    host.scheduler.set_quota("vm", Quota(), host.now)
    assert host.give(1) == [Pick("vm", SAMPLE, "weight", False)]


def test_setting_the_same_quota_again_changes_nothing() -> None:
    quota = Quota(reservation=500, limit=900, burst=512)
    host = Host({f"vm{i}": Quota() for i in range(30)} | {"vm": quota})
    host.run(60, lambda: host.scheduler.set_quota("vm", quota, host.now))
    assert abs(host.got("vm") - 500 * 60) <= SAMPLE


def test_the_sample_size_can_be_changed() -> None:
    host = Host({"vm": Quota(), "reserved": Quota(reservation=1000)})
    host.run(1)
    host.scheduler.sample_size = 2048
    assert host.scheduler.sample_size == 2048
    host.available = 65536
    host.now += NS
    assert {pick.n_bytes for pick in host.give(20)} == {512, 2048}
    for wrong in (31, 65537):
        with pytest.raises(ValueError, match=f"sample_size {wrong}; allowed: 32 to 65536"):
            host.scheduler.sample_size = wrong


def test_askers_are_those_who_want_something_blocked_or_not() -> None:
    host = Host({"vm": Quota(), "blocked": Quota(limit=1, burst=64), "silent": Quota(), "seed": Quota()})
    assert host.scheduler.askers == 4
    host.greedy.clear()
    host.scheduler.want("vm", 0, 600, host.now)
    host.scheduler.want("silent", 0, 0, host.now)
    host.scheduler.want("seed", 64, 0, host.now)
    assert host.scheduler.askers == 3
    host.available = 65536
    host.give()
    assert (host.scheduler.askers, host.got("vm"), host.got("seed")) == (1, 600, 64)
    host.scheduler.set_quota("blocked", Quota(limit=1, burst=64), host.now)
    assert host.scheduler.askers == 1
    host.scheduler.forget("blocked", host.now)
    assert host.scheduler.askers == 0


def test_a_new_sample_size_holds_for_those_who_have_been_asking_too() -> None:
    host = Host({"old": Quota(weight=800)})
    host.run(5)
    host.scheduler.sample_size = 32
    for i in range(16):
        host.add(f"new{i}", Quota(weight=100))
    since = host.now
    for _ in range(200):
        host.run(0.01)
        exact = sum(host.got(uuid, since) for uuid in host.given) / 3
        assert abs(host.got("old", since) - exact) <= 2 * 32


# --- samples ---------------------------------------------------------------------------------------------


def test_a_sample_is_no_smaller_than_32_bytes_where_more_is_wanted() -> None:
    host = Host({"vm": Quota()})
    host.available = 31
    assert host.give() == []
    host.available = 33
    assert host.give(1) == [Pick("vm", 33, "weight", False)]
    host.greedy.remove("vm")
    host.scheduler.want("vm", 0, 8, host.now)
    host.available = 7
    assert host.give() == []
    host.available = 9
    assert host.give() == [Pick("vm", 8, "weight", False)]
    assert host.scheduler.next_ns(host.now) is None


def test_nobody_is_passed_over_for_another_that_would_be_content_with_less() -> None:
    host = Host({"reserved": Quota(reservation=1000), "modest": Quota()})
    host.scheduler.want("modest", 0, 8, host.now)
    host.available = 31
    assert host.give() == []
    host.available = 32
    assert host.give() == [Pick("reserved", 32, "reservation", False)]


@pytest.mark.parametrize(("seed", "body"), [(-1, 0), (65, 0), (0, -1)])
def test_absurd_wants_are_a_mistake_of_the_caller(seed: int, body: int) -> None:
    scheduler = Scheduler()
    scheduler.set_quota("vm", Quota(), 0)
    with pytest.raises(ValueError, match="allowed: seed 0 to 64"):
        scheduler.want("vm", seed, body, 0)


# --- cost ------------------------------------------------------------------------------------------------


CROWDS: dict[str, Callable[[int], Quota]] = {
    "equal": lambda _: Quota(),
    "weights": lambda i: Quota(weight=100 * 2 ** (i % 4)),
    "reserved": lambda _: Quota(reservation=8, weight=1),
    "mixed": lambda i: Quota(
        reservation=i % 2 * 9, weight=1 + i % 99, limit=(None, 20)[i % 3 == 0], burst=64
    ),
}


@pytest.mark.parametrize("crowd", CROWDS)
def test_the_cost_of_a_decision_grows_no_faster_than_the_logarithm(crowd: str) -> None:
    operations, calls = {}, {}
    for domains in (10, 100, 1000, 10_000):
        host = Host({f"vm{i}": CROWDS[crowd](i) for i in range(domains)}, rate=domains * 10)
        host.run(domains * 64 * 1.5 / host.rate)  # everybody has had a turn
        called = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal called
            called += event in ("call", "c_call")

        before, picks = host.scheduler.operations, len(host.picks)
        previous = sys.getprofile()
        sys.setprofile(count)
        host.run(2000 * 64 / host.rate)
        sys.setprofile(previous)
        operations[domains] = (host.scheduler.operations - before) / (len(host.picks) - picks)
        calls[domains] = called / (len(host.picks) - picks)
    for domains in (100, 1000, 10_000):
        assert operations[domains] <= operations[10] * log2(domains) / log2(10), operations
        assert calls[domains] <= 2 * calls[10], calls  # no hidden loop over all


# --- everything at once, by whatever happens ------------------------------------------------------------

quotas_of_any_kind = st.builds(
    lambda reservation, more, weight, burst: Quota(
        reservation=reservation,
        weight=weight,
        limit=None if more is None else reservation + more,
        burst=burst,
    ),
    st.sampled_from([0, 10, 1000]),
    st.sampled_from([None, 1, 50, 5000]),
    st.sampled_from([1, 100, 10_000]),
    st.sampled_from([64, 100, 4096]),
)


class Ask:
    """What the machine below knows of a domain, by the specification alone."""

    def __init__(self, quota: Quota, now: int) -> None:
        self.quota = quota
        self.here = True
        self.seed = self.body = 0
        self.level = quota.burst * NS  # of the limit's bucket
        self.at = now
        self.since = now  # the quota's beginning
        self.given: list[Given] = []
        self.seeds: list[Given] = []

    def pass_time(self, now: int) -> None:
        if self.quota.limit is not None:
            self.level = min(self.level + self.quota.limit * (now - self.at), self.quota.burst * NS)
        self.at = now


class Guarantees(RuleBasedStateMachine):
    names = st.sampled_from("abcdef")

    @initialize(sample=st.sampled_from([32, 64, 512]))
    def begin(self, sample: int) -> None:
        self.sample = sample
        self.scheduler = Scheduler(sample)
        self.now = NS
        self.available = self.reserve = 0
        self.domains: dict[str, Ask] = {}

    def here(self, name: str) -> Ask | None:
        ask = self.domains.get(name)
        return ask if ask is not None and ask.here else None

    @rule(name=names, quota=quotas_of_any_kind)
    def appears_or_changes(self, name: str, quota: Quota) -> None:
        self.scheduler.set_quota(name, quota, self.now)
        ask = self.domains.setdefault(name, Ask(quota, self.now))
        ask.pass_time(self.now)
        ask.here = True
        if quota != ask.quota:
            had_limit = ask.quota.limit is not None
            ask.level = min(ask.level, quota.burst * NS) if had_limit else quota.burst * NS
            ask.quota, ask.since, ask.given = quota, self.now, []

    @rule(name=names, seed=st.sampled_from([0, 0, 1, 64]), body=st.sampled_from([0, 5, 32, 512, 65536]))
    def wants(self, name: str, seed: int, body: int) -> None:
        ask = self.here(name)
        if ask is not None:
            self.scheduler.want(name, seed, body, self.now)
            ask.seed, ask.body = seed, body

    @rule(name=names)
    def reconnects(self, name: str) -> None:
        ask = self.here(name)
        if ask is not None:
            self.scheduler.forget(name, self.now)
            self.scheduler.set_quota(name, ask.quota, self.now)
            ask.seed = ask.body = 0

    @rule(name=names)
    def vanishes(self, name: str) -> None:
        ask = self.here(name)
        if ask is not None:
            self.scheduler.forget(name, self.now)
            ask.here, ask.seed, ask.body = False, 0, 0

    @rule(dt=st.sampled_from([1, NS // 1000, NS // 10, NS, 100 * NS]))
    def time_passes(self, dt: int) -> None:
        self.now += dt

    @rule()
    def time_passes_until_somebody_is_unblocked(self) -> None:
        when = self.scheduler.next_ns(self.now)
        if when is not None:
            assert when >= self.now
            self.now = when

    @rule(general=st.sampled_from([1, 31, 32, 64, 500, 4096]), reserve=st.sampled_from([0, 10, 64, 200]))
    def bytes_arrive(self, general: int, reserve: int) -> None:
        self.available += general
        self.reserve += reserve

    @precondition(lambda self: self.available or self.reserve)
    @rule(most=st.sampled_from([1, 3, 1000]))
    def serve(self, most: int) -> None:
        for _ in range(most):
            pick = self.scheduler.pick(self.now, self.available, self.reserve)
            if pick is None:
                self.work_is_conserved()
                return
            self.check(pick)

    def check(self, pick: Pick) -> None:
        ask = self.domains[pick.uuid]
        assert ask.here
        wanted = ask.seed or ask.body
        assert min(32, wanted) <= pick.n_bytes <= min(wanted, max(self.sample, 64 * (pick.reason == "seed")))
        if pick.from_seed_reserve:
            assert pick.reason == "seed"
            self.reserve -= pick.n_bytes
        else:
            self.available -= pick.n_bytes
        assert self.reserve >= 0
        assert self.available >= 0
        if pick.reason == "reservation":
            assert ask.quota.reservation
        if pick.reason == "seed":
            ask.seeds.append((self.now, pick.n_bytes))
            assert worst_excess(ask.seeds, 1, 0) <= 64
        if ask.seed:
            ask.seed -= pick.n_bytes
        else:
            ask.body -= pick.n_bytes
        ask.pass_time(self.now)
        if ask.quota.limit is not None:
            ask.level -= pick.n_bytes * NS
            ask.given.append((self.now, pick.n_bytes))
            assert worst_excess(ask.given, ask.quota.limit, ask.since) <= ask.quota.burst + self.sample

    @rule()
    def askers_are_counted(self) -> None:
        asking = [ask for ask in self.domains.values() if ask.here and ask.seed + ask.body]
        assert self.scheduler.askers == len(asking)

    def work_is_conserved(self) -> None:
        """With 32 bytes there, every domain that asks is blocked by its limit."""
        if self.available < 32:
            return
        for ask in self.domains.values():
            ask.pass_time(self.now)
            if ask.seed or ask.body:
                assert ask.quota.limit is not None
                assert ask.level < min(ask.seed or ask.body, self.sample, max(32, ask.quota.burst // 2)) * NS


Guarantees.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestGuarantees = Guarantees.TestCase
