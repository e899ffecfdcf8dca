# SPDX-License-Identifier: Apache-2.0
"""Proportional shares alone: exact to within one sample, at every instant."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netrng_hostd.core.fairqueue import FairQueue, Rival

SAMPLE = 512


def serve(queue: FairQueue[Rival], times: int, size: int = SAMPLE) -> list[Rival]:
    turns = []
    for _ in range(times):
        rival = queue.first()
        assert rival is not None
        queue.serve(rival, size)
        turns.append(rival)
    return turns


def contest(*weights: int) -> tuple[FairQueue[Rival], list[Rival]]:
    queue: FairQueue[Rival] = FairQueue(SAMPLE)
    rivals = [Rival(weight) for weight in weights]
    for rival in rivals:
        queue.arrive(rival)
        queue.enter(rival, SAMPLE)
    return queue, rivals


@given(
    st.lists(st.integers(1, 10_000), min_size=1, max_size=12),
    st.lists(st.integers(32, SAMPLE), min_size=1, max_size=200),
)
def test_nobody_is_ever_more_than_one_sample_from_its_exact_share(
    weights: list[int], sizes: list[int]
) -> None:
    queue, rivals = contest(*weights)
    total = 0
    for size in sizes:
        serve(queue, 1, size)
        total += size
        for rival in rivals:
            assert abs(rival.served - Fraction(total * rival.weight, sum(weights))) <= SAMPLE


def test_equal_weights_take_turns() -> None:
    queue, rivals = contest(100, 100, 100)
    assert serve(queue, 6) == rivals * 2


def test_nobody_there_nobody_served() -> None:
    queue, (rival,) = contest(5)
    queue.leave(rival)
    queue.leave(rival)
    assert queue.first() is None


def test_a_late_joiner_earns_no_back_pay() -> None:
    queue, (old,) = contest(100)
    serve(queue, 1000)
    late = Rival(100)
    queue.arrive(late)
    queue.enter(late, SAMPLE)
    turns = serve(queue, 100)
    assert abs(turns.count(late) - 50) <= 1
    assert abs(turns.count(old) - 50) <= 1


def test_leaving_and_returning_keeps_a_lead_and_earns_nothing() -> None:
    queue, rivals = contest(*[100] * 8)
    hopper = rivals[0]
    hops = 0
    for _ in range(800):
        [served] = serve(queue, 1)
        if served is hopper:
            hops += 1
            queue.leave(hopper)
            queue.arrive(hopper)
            queue.enter(hopper, SAMPLE)
    assert 99 <= hops <= 101


def test_being_kept_out_briefly_while_asking_costs_nothing() -> None:
    queue, rivals = contest(*[100] * 4)
    kept = rivals[0]
    for _ in range(800):
        [served] = serve(queue, 1, 64)
        if served is kept:
            queue.leave(kept)
            serve(queue, 1, 512)
            queue.enter(kept, SAMPLE)
    assert abs(kept.served - Fraction(sum(rival.served for rival in rivals), 4)) <= SAMPLE


def test_being_kept_out_for_long_earns_at_most_one_sample() -> None:
    queue, (kept, other) = contest(100, 100)
    queue.leave(kept)
    serve(queue, 1000)
    queue.enter(kept, SAMPLE)
    turns = serve(queue, 20)
    assert turns.count(kept) <= 11
    assert turns.count(other) >= 9


def test_a_modest_request_does_not_wait_for_greedy_ones_and_gains_nothing_but_that() -> None:
    queue, greedy = contest(*[100] * 50)
    serve(queue, 125)
    modest = Rival(100)
    queue.arrive(modest)
    queue.enter(modest, 32)
    assert modest in serve(queue, 4, 32)
    before = modest.served
    serve(queue, 51 * 40)
    assert abs(modest.served - before - (min(r.served for r in greedy) - before)) <= 2 * SAMPLE


def test_a_request_that_changes_changes_the_order_of_the_eligible() -> None:
    queue, (first, second, third) = contest(100, 100, 100)
    assert queue.first() is first
    queue.enter(second, 64)
    queue.enter(second, 64)
    assert queue.first() is second
    queue.serve(second, 64)
    queue.enter(second, 128)  # pending: takes effect when its time comes
    assert serve(queue, 3) == [first, second, third]  # with 512 it would have been behind the third


def test_service_outside_the_queue_counts_so_that_the_total_is_the_share() -> None:
    queue, rivals = contest(*[100] * 4)
    reserved = rivals[0]
    for _ in range(400):
        serve(queue, 1)
        queue.push(reserved, 64)
    exact = Fraction(400 * (SAMPLE + 64), 4)
    assert abs(reserved.served - exact) <= SAMPLE


def test_much_service_outside_the_queue_is_no_punishment_later() -> None:
    queue, (reserved, *others) = contest(*[100] * 4)
    for _ in range(1000):
        queue.push(reserved, SAMPLE)
    turns = serve(queue, 12)
    assert turns.count(reserved) >= 1
    assert [turns.count(other) for other in others] == [3, 3, 3] or turns.count(reserved) <= 3


def test_those_ahead_do_not_drag_virtual_time_away_from_the_others() -> None:
    queue, rivals = contest(*[100] * 101)
    plain, reserved = rivals[0], rivals[1:]
    for _ in range(50):
        serve(queue, 1)
        for rival in reserved:
            queue.push(rival, SAMPLE)
    newcomer = Rival(100)
    queue.arrive(newcomer)
    queue.enter(newcomer, SAMPLE)
    assert newcomer.served - plain.served <= SAMPLE


def test_when_only_those_ahead_ask_they_are_served() -> None:
    queue, (one, two) = contest(100, 100)
    queue.push(one, SAMPLE)
    queue.push(two, 64)
    assert serve(queue, 1) == [two]
    assert serve(queue, 2) == [one, two]


def test_a_lead_is_forgiven_when_nobody_competes() -> None:
    queue, rivals = contest(1, 10_000)
    serve(queue, 3)
    for rival in rivals:
        queue.leave(rival)
    assert all(queue.is_fresh(rival) for rival in rivals)


def test_a_lead_is_remembered_while_others_compete() -> None:
    queue, (light, _heavy) = contest(1, 1000)
    queue.leave(_heavy)
    serve(queue, 1)
    queue.enter(_heavy, SAMPLE)
    queue.push(light, SAMPLE)
    queue.leave(light)
    assert not queue.is_fresh(light)
    serve(queue, 1500)
    assert queue.is_fresh(light)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_new_weight_is_in_force_at_once_and_earns_nothing(ahead: bool) -> None:
    queue, (changed, other) = contest(100, 100)
    serve(queue, 100)
    if ahead:
        queue.push(changed, SAMPLE)
    queue.reweigh(changed, 300)
    turns = serve(queue, 100)
    assert abs(turns.count(changed) - 75) <= 2
    assert abs(turns.count(other) - 25) <= 2


def test_a_lead_is_as_many_bytes_at_any_weight() -> None:
    queue, (changed, _) = contest(1, 100)
    for _ in range(100):
        queue.push(changed, SAMPLE)
    queue.reweigh(changed, 100)
    assert serve(queue, 20).count(changed) >= 8


def test_a_new_weight_for_one_who_is_away() -> None:
    queue, (away, other) = contest(100, 100)
    queue.leave(away)
    queue.reweigh(away, 50)
    queue.arrive(away)
    queue.enter(away, SAMPLE)
    assert abs(serve(queue, 99).count(other) - 66) <= 1


def test_the_cost_is_counted() -> None:
    queue, _ = contest(1, 2, 3)
    before = queue.operations
    serve(queue, 10)
    assert queue.operations > before
