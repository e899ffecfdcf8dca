# SPDX-License-Identifier: Apache-2.0
"""The whole core on a virtual clock: short runs of bench/'s scenarios, and the exact shares they judge by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import islice
from random import Random

import pytest
from bench import behaviours, line, scenarios, traces
from bench.exact import Ask, Fluid, shares
from bench.line import Line
from bench.measures import Excess, Shortfall, Waits, jain
from bench.simulator import Simulation, Vm, Watch
from hypothesis import given, settings
from hypothesis import strategies as st

from netrng_hostd.core import bucket, fairqueue, granularity, scheduler
from netrng_hostd.core.domain import Domain
from netrng_hostd.core.quota import Quota
from netrng_hostd.core.scheduler import Pick

NS = 1_000_000_000

SHORT_RUNS: dict[str, Callable[[], Iterator[Line]]] = {
    "equal": lambda: scenarios.equal(16),
    "equal, a thousand": lambda: scenarios.equal(1000, adaptive=True),
    "weights": lambda: scenarios.weights(60),
    "weights, hectic": lambda: scenarios.weights(60, hectic=True),
    "heavy": lambda: scenarios.heavy(50, 60),
    "limits": lambda: scenarios.limits(20),
    "reservations": lambda: scenarios.reservations(15),
    "reservations, small samples": lambda: scenarios.reservations(10, adaptive=True),
    "reservations, a faster source": lambda: scenarios.reservations(6, adaptive=True, rate=100_000),
    "hostile": lambda: scenarios.hostile(20),
    "boot storm": lambda: scenarios.boot_storm(500),
    "boot storm, within a second": lambda: scenarios.boot_storm(500, within_ms=1000),
    "boot storm, all is there": lambda: scenarios.boot_storm(100, neighbours=0, stored=65536),
    "mixture": lambda: scenarios.mixture(1000, 64, 60, "stalling"),
    "mixture, fast": lambda: scenarios.mixture(30_000_000, 50, 0.1, "in heaps"),
    "any quotas": lambda: scenarios.any_quotas(12, 60),
    "cost": lambda: scenarios.cost((10, 100, 1000), decisions=500),
}


@pytest.mark.parametrize("run", SHORT_RUNS.values(), ids=SHORT_RUNS)
def test_the_promises_hold_on_a_virtual_clock(run: Callable[[], Iterator[Line]]) -> None:
    lines = list(run())
    assert lines
    assert [told for told in lines if not told.ok] == []


def test_the_same_seed_is_the_same_run() -> None:
    assert list(scenarios.weights(20, hectic=True)) == list(scenarios.weights(20, hectic=True))


# --- a scheduler that is broken on purpose is found out -----------------------------------------------------


def equal_weights(patch: pytest.MonkeyPatch) -> None:
    begin = Domain.__init__

    def init(domain: Domain, uuid: str, quota: Quota, now_ns: int) -> None:
        begin(domain, uuid, quota, now_ns)
        domain.weight = 100

    patch.setattr(Domain, "__init__", init)
    patch.setattr(fairqueue.FairQueue, "reweigh", lambda queue, rival, weight: None)


def nobody_waits_until_eligible(patch: pytest.MonkeyPatch) -> None:
    put = fairqueue.FairQueue._put

    def at_once(queue: fairqueue.FairQueue[Domain], rival: Domain, place: object) -> None:
        put(queue, rival, queue._eligible if place is queue._pending else place)  # type: ignore[arg-type]

    patch.setattr(fairqueue.FairQueue, "_put", at_once)


def no_remainders(patch: pytest.MonkeyPatch) -> None:
    settle = bucket.Bucket.settle

    def rounded(self: bucket.Bucket, now_ns: int) -> None:
        settle(self, now_ns)
        self.level = self.level // NS * NS

    patch.setattr(bucket.Bucket, "settle", rounded)


def no_reservations(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scheduler.Scheduler, "_place_reservation", lambda self, domain, now_ns: None)


def reservations_in_order_of_arrival(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Domain, "deadline_ns", lambda domain, grain, now_ns: now_ns)


def nothing_kept_for_reservations(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scheduler.Scheduler, "reserved", property(lambda self: 0, lambda self, value: None), False)


def no_limits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Domain, "unblocked_ns", lambda domain, request, now_ns: 0)
    patch.setattr(bucket.Bucket, "holds", lambda self, now_ns: 1 << 30)


def a_reconnect_forgets_all(patch: pytest.MonkeyPatch) -> None:
    forget = scheduler.Scheduler.forget

    def for_good(self: scheduler.Scheduler, uuid: str, now_ns: int) -> None:
        forget(self, uuid, now_ns)
        self._fading.discard(self._departed.pop(uuid))

    patch.setattr(scheduler.Scheduler, "forget", for_good)


def seeds_like_any_other_bytes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Domain, "seeded_ns", lambda domain, sample_size, now_ns: now_ns + NS)


def large_samples(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("bench.simulator.sample_size", lambda rate, askers, current, maximum: 4096)


def cost_of_a_list(patch: pytest.MonkeyPatch) -> None:
    first = fairqueue.FairQueue.first

    def looks_at_all(queue: fairqueue.FairQueue[Domain]) -> Domain | None:
        queue._pending.operations += len(queue._pending) // 8
        return first(queue)

    patch.setattr(fairqueue.FairQueue, "first", looks_at_all)


@pytest.mark.parametrize(
    ("broken", "run"),
    [
        (equal_weights, "weights"),
        (nobody_waits_until_eligible, "heavy"),
        (no_remainders, "limits"),
        (no_remainders, "reservations"),
        (no_reservations, "reservations"),
        (reservations_in_order_of_arrival, "reservations"),
        (nothing_kept_for_reservations, "reservations, small samples"),
        (no_limits, "limits"),
        (a_reconnect_forgets_all, "limits"),
        (seeds_like_any_other_bytes, "boot storm"),
        (large_samples, "equal, a thousand"),
        (cost_of_a_list, "cost"),
    ],
    ids=lambda given: given if isinstance(given, str) else given.__name__,
)
def test_a_broken_scheduler_is_found_out(
    broken: Callable[[pytest.MonkeyPatch], None], run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    assert not all(told.ok for told in SHORT_RUNS[run]())


# --- the exact shares -------------------------------------------------------------------------------------

rates = st.sampled_from([Fraction(0), Fraction(1, 3), Fraction(1), Fraction(7), Fraction(100)])
asks = st.builds(
    lambda weight, reservation, more: Ask(weight, reservation, None if more is None else reservation + more),
    st.sampled_from([1, 2, 3, 100]),
    rates,
    st.none() | rates.filter(bool),
)


@given(st.lists(asks, min_size=1, max_size=8), st.fractions(0, 400, max_denominator=10))
def test_the_exact_shares_are_clamped_and_leave_nothing_over(given: list[Ask], capacity: Fraction) -> None:
    named = {str(place): ask for place, ask in enumerate(given)}
    exact = shares(named, capacity)
    promised = sum(ask.reservation for ask in given)
    allowed = [ask.limit for ask in given if ask.limit is not None]
    most = sum(allowed) if len(allowed) == len(given) else capacity
    assert sum(exact.values()) == min(capacity, max(most, promised))
    if promised > capacity:
        assert all(exact[name] * promised == ask.reservation * capacity for name, ask in named.items())
        return
    free = {name for name, ask in named.items() if ask.reservation < exact[name] != ask.limit}
    levels = {exact[name] / named[name].weight for name in free}
    assert len(levels) <= 1, "one level for all that are not clamped"
    for name, ask in named.items():
        assert ask.reservation <= exact[name] <= (capacity if ask.limit is None else ask.limit)
        for level in levels:
            if exact[name] == ask.reservation:
                assert level * ask.weight <= ask.reservation
            elif exact[name] == ask.limit:
                assert level * ask.weight >= ask.limit


def stepwise(named: dict[str, tuple[Ask, int | None]], capacity: Fraction, until: int) -> dict[str, Fraction]:
    """The same by rates alone: from one instant at which somebody has had enough to the next."""
    had = dict.fromkeys(named, Fraction(0))
    at = Fraction(0)
    while at < until:
        hungry = {name: ask for name, (ask, amount) in named.items() if amount is None or had[name] < amount}
        rate = shares(hungry, capacity) if hungry else {}
        ends = [
            at + (amount - had[name]) / rate[name]
            for name, (_, amount) in named.items()
            if name in hungry and amount is not None and rate[name]
        ]
        step = min([Fraction(until), *ends]) - at
        for name in hungry:
            had[name] += rate[name] * step
        at += step
    return had


@given(
    st.lists(st.tuples(asks, st.none() | st.integers(1, 300)), min_size=1, max_size=6),
    st.sampled_from([Fraction(1, 7), Fraction(1), Fraction(50)]),
    st.integers(1, 400),
)
@settings(max_examples=60)
def test_what_flows_is_what_the_rates_come_to(
    given: list[tuple[Ask, int | None]], capacity: Fraction, until: int
) -> None:
    named = {str(place): what for place, what in enumerate(given)}
    fluid = Fluid(capacity)
    for name, (ask, amount) in named.items():
        if amount is not None and amount > 1:  # in two parts, it is the same
            fluid.join(name, ask, 1, 0)
            fluid.more(name, amount - 1, 0)
        else:
            fluid.join(name, ask, amount, 0)
    for name, exact in stepwise(named, capacity, until).items():
        # An end is rounded up to a whole unit of the clock.
        assert abs(fluid.due(name, until) - exact) <= capacity * len(given)


def test_who_leaves_is_due_nothing_and_the_others_more() -> None:
    fluid = Fluid(Fraction(6))
    fluid.join("a", Ask(1), None, 0)
    fluid.join("b", Ask(2), None, 0)
    fluid.join("c", Ask(1, limit=Fraction(1)), None, 0)
    assert [fluid.due(name, 3) for name in "abc"] == [5, 10, 3]
    fluid.leave("b", 3)
    assert "b" not in fluid
    assert [fluid.due(name, 5) for name in "ac"] == [15, 5]
    assert fluid.asks("a", 5)


# --- the engine and its measures ----------------------------------------------------------------------------


def test_traces_give_what_they_say_in_whole_windows() -> None:
    assert list(islice(traces.steady(1000), 2)) == [(512_000_000, 512), (1_024_000_000, 512)]
    stalling = [at for at, _ in islice(traces.stalling(traces.steady(1024), every_s=2, for_s=10), 5)]
    assert stalling == [NS // 2, NS, 3 * NS // 2, 12 * NS, 12 * NS + NS // 2]
    heaps = list(islice(traces.bursty(1000, Random(1)), 100))
    assert all(at == NS * sum(size for _, size in heaps[: k + 1]) // 1000 for k, (at, _) in enumerate(heaps))


def test_what_there_is_no_room_for_is_not_read() -> None:
    sim = Simulation(traces.steady(100_000))
    sim.run(10)
    assert (sim.reservoir.available, sim.reservoir.room, sim.now_ns) == (65536, 0, 10 * NS)


def test_jains_index() -> None:
    assert jain([1, 1, 1]) == 1
    assert jain([1, 0]) == 0.5
    assert jain([]) == 1


def sent(vm: Vm, at_ns: int, size: int, watches: Iterable[Watch]) -> None:
    for watch in watches:
        watch.sent(vm, at_ns, Pick(vm.name, size, "weight", False))


def test_the_measures_find_the_worst_interval() -> None:
    vm = Simulation(traces.steady(1000)).add("vm", Quota(reservation=100, limit=200), behaviours.greedy())
    shortfall, excess, waits = Shortfall(), Excess(), Waits()
    for watch in (shortfall, excess, waits):
        watch.began(vm, 0)
    for at, size in ((1, 200), (2, 50), (5, 300), (6, 200)):
        sent(vm, at * NS, size, (shortfall, excess, waits))
    shortfall.close([vm], 10 * NS)
    waits.close(10 * NS)
    assert shortfall.worst == {"vm": 400}  # 2 s to 5 s: 300 due, 50 had at its beginning
    assert excess.worst == {"vm": 300}
    assert waits.worst_ns == 4 * NS


def test_a_line_that_is_short_is_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert line.report([Line("all", "1 B", "≤ 2 B", True)]) == 0
    assert line.report([Line("all", "1 B", "≤ 2 B", True), Line("others", "3 B", "≤ 2 B", False)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [text.split()[0] for text in told] == ["ok", "ok", "SHORT"]


def test_the_sample_size_follows_the_source_and_the_askers() -> None:
    sim = Simulation(traces.steady(10_000), adaptive=True)
    for i in range(16):
        sim.add(f"vm{i}", Quota(), behaviours.greedy())
    sim.run(0.9)
    assert sim.scheduler.sample_size == 32, "nobody knows the rate yet"
    sim.run(2)
    assert sim.scheduler.sample_size == granularity.sample_size(10_000, 16, 32, 512) == 512
    for i in range(300):
        sim.add(f"more{i}", Quota(), behaviours.greedy())
    sim.run(1)
    assert sim.scheduler.sample_size == 32
