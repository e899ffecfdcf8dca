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


@pytest.mark.parametrize("ahead", [True, False])
def test_who_breaks_off_again_and_again_takes_nothing_along_and_loses_nothing(ahead: bool) -> None:
    """It leaves at the worst moment: with what it has just got, or just before it would get it."""
    queue, rivals = contest(*[100] * 4)
    broken = rivals[0]
    together: list[Rival] = []  # whose turns they were
    apart: list[Rival] = []
    for _ in range(30):
        while together[-1:] != [broken] if ahead else queue.first() is not broken:
            together += serve(queue, 1)
        queue.leave(broken, satisfied=False)
        apart += serve(queue, 7)
        queue.arrive(broken)
        queue.enter(broken, SAMPLE)
        together += serve(queue, 1)
    assert abs(together.count(broken) - Fraction(len(together), 4)) <= 1
    for other in rivals[1:]:
        exact = Fraction(len(together), 4) + Fraction(len(apart), 3)
        assert abs(together.count(other) + apart.count(other) - exact) <= 1


def test_what_one_was_behind_counts_once() -> None:
    queue, rivals = contest(100, 100, 100)
    serve(queue, 2)
    [behind] = [rival for rival in rivals if not rival.served]
    queue.leave(behind, satisfied=False)
    queue.arrive(behind)
    queue.enter(behind, SAMPLE)
    assert serve(queue, 1) == [behind]
    queue.leave(behind)  # it has got what it asked for
    serve(queue, 20)
    queue.arrive(behind)
    newcomer = Rival(100)
    queue.arrive(newcomer)
    assert behind.served == newcomer.served


def test_a_lead_that_is_kept_is_one_sample_at_most() -> None:
    queue, (pushed, *_) = contest(100, 100, 100)
    for _ in range(10):
        queue.push(pushed, SAMPLE)
    queue.leave(pushed, satisfied=False)
    serve(queue, 100)
    queue.arrive(pushed)
    newcomer = Rival(100)
    queue.arrive(newcomer)
    assert pushed.served == newcomer.served + SAMPLE


def test_what_one_was_behind_is_forgotten_once_nobody_asks() -> None:
    queue, rivals = contest(100, 100)
    [ahead] = serve(queue, 1)
    [behind] = [rival for rival in rivals if rival is not ahead]
    queue.leave(behind, satisfied=False)
    assert behind.lag == SAMPLE  # all that the other had
    queue.leave(ahead, satisfied=False)
    for rival in rivals:
        queue.arrive(rival)
        queue.enter(rival, SAMPLE)
    assert ahead.served == behind.served


def test_being_halted_briefly_while_asking_costs_nothing() -> None:
    queue, rivals = contest(*[100] * 4)
    halted = rivals[0]
    for _ in range(800):
        [served] = serve(queue, 1, 64)
        if served is halted:
            queue.halt(halted)
            assert not queue.serves(halted)
            serve(queue, 1, 512)
            queue.enter(halted, SAMPLE)
            assert queue.serves(halted)
    assert abs(halted.served - Fraction(sum(rival.served for rival in rivals), 4)) <= SAMPLE


def test_being_halted_briefly_does_not_let_a_light_rival_run_away_with_virtual_time() -> None:
    queue, (heavy, light) = contest(1000, 1)
    for _ in range(2000):
        [served] = serve(queue, 1, 64)
        if served is heavy:
            queue.halt(heavy)
            if _ % 10 == 0:
                serve(queue, 1, 64)
            queue.enter(heavy, SAMPLE)
    assert heavy.served >= 1800 * 64
    late = Rival(1000)
    queue.arrive(late)
    queue.enter(late, SAMPLE)
    assert abs(late.served - heavy.served) <= 2 * SAMPLE
    assert light.served < heavy.served // 5


def test_being_halted_for_long_earns_at_most_one_sample() -> None:
    queue, (halted, other) = contest(100, 100)
    queue.halt(halted)
    queue.halt(halted)
    serve(queue, 1000)
    queue.enter(halted, SAMPLE)
    turns = serve(queue, 20)
    assert turns.count(halted) <= 11
    assert turns.count(other) >= 9


def test_one_that_is_halted_before_its_turn_ever_came_is_owed_nothing_more() -> None:
    queue, (_, reserved) = contest(100, 100)
    serve(queue, 10)
    queue.push(reserved, SAMPLE)
    tag = reserved.served
    queue.halt(reserved)
    assert not queue.serves(reserved)
    serve(queue, 1)
    queue.enter(reserved, SAMPLE)
    assert reserved.served == tag


def test_the_debts_of_many_do_not_hold_virtual_time_back() -> None:
    queue, (plain, *limited) = contest(*[100] * 101)
    serve(queue, 500)
    for rival in limited:
        queue.halt(rival)
    serve(queue, 100)
    for rival in limited:
        queue.enter(rival, SAMPLE)  # each a sample behind
    queue.first()
    newcomer = Rival(10_000)
    queue.arrive(newcomer)
    level = plain.served * 100
    assert abs(newcomer.served - level) <= 100 * SAMPLE  # one sample of the others


@pytest.mark.parametrize("by_reservation", [0, 100, 2 * SAMPLE])
def test_a_debt_is_paid_once(by_reservation: int) -> None:
    queue, (debtor, *others) = contest(*[100] * 5)
    queue.halt(debtor)
    serve(queue, 100)
    queue.enter(debtor, SAMPLE)
    queue.first()
    assert debtor.debt == SAMPLE
    if by_reservation:
        queue.push(debtor, by_reservation)
        assert debtor.debt <= max(0, SAMPLE - by_reservation)
    turns = serve(queue, 100, 128)
    mean = Fraction(sum(rival.served for rival in (debtor, *others)), 5)
    assert abs(debtor.served - mean) <= SAMPLE
    assert turns.count(debtor) <= 20 + SAMPLE // 128


def test_a_debt_that_is_paid_counts_as_served_no_more() -> None:
    queue, (debtor, _) = contest(10, 1000)
    queue.halt(debtor)
    serve(queue, 500)
    queue.enter(debtor, SAMPLE)
    queue.first()
    assert debtor.debt == SAMPLE
    serve(queue, 200)
    assert debtor.debt == 0


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


def test_while_the_one_whose_turn_it_is_is_halted_the_next_is_served() -> None:
    queue, (first, second) = contest(100, 100)
    assert serve(queue, 1) == [first]
    queue.halt(second)
    assert serve(queue, 1) == [first]  # pending: ahead of virtual time, and yet the only one
    queue.push(first, SAMPLE)
    assert serve(queue, 1) == [first]  # ahead, too
    queue.halt(first)
    assert queue.first() is None


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


@pytest.mark.parametrize("state", ["counts", "ahead", "halted"])
def test_a_new_weight_is_in_force_at_once_and_earns_nothing(state: str) -> None:
    queue, (changed, other) = contest(100, 100)
    serve(queue, 100)
    if state == "ahead":
        queue.push(changed, SAMPLE)
    if state == "halted":
        queue.halt(changed)
    queue.reweigh(changed, 300)
    queue.enter(changed, SAMPLE)
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
