# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from netrng_guest.demand import BLOCK_SIZE, Demand
from netrng_guest.kernel import MAX_CREDIT
from netrng_hostd.channels.budget import (
    INBOUND_DEPTH,
    INBOUND_PER_READ,
    INBOUND_RATE,
    PARKED,
    InboundBudget,
    LogBudget,
)

S = 1_000_000_000


def later_budget() -> InboundBudget:
    """What was parked has been read: from now on it is a bucket as any other."""
    budget = InboundBudget(0, PARKED)
    assert budget.spend(PARKED, 0) == 0
    return budget


def test_a_guest_that_answers_its_samples_is_never_paused() -> None:
    budget = later_budget()
    for tick in range(100_000):
        budget.sample_sent(32)
        assert budget.spend(48, tick) == 0


@settings(max_examples=25)
@example(rate=8_000, piece=1, window=64)  # samples of 32 bytes pay 128 each, just what two answers cost
@example(rate=20_000, piece=1, window=100)
@given(
    st.integers(1, 1_000_000),
    st.sampled_from([1, MAX_CREDIT, BLOCK_SIZE]),
    st.sampled_from([64, 100, 256, 4096, 65536]),
)
def test_nor_is_the_agent_at_any_rate_and_with_any_sink(rate: int, piece: int, window: int) -> None:
    demand, budget, delivered = Demand(rate, max(window, piece), piece, 0), later_budget(), 0
    for now_ns in range(0, 30 * S, 1_000_000):
        asked = demand.ask(now_ns, delivered, 0, 0)
        delivered += asked
        for sample in [512] * (asked // 512) + [asked % 512] * (asked % 512 > 0):
            budget.sample_sent(sample)
            # A GRANT for what is asked, and one for what was taken.
            assert budget.spend(48, now_ns) == budget.spend(48, now_ns) == 0


def test_a_share_is_as_much_less_deep_and_as_much_slower() -> None:
    budget = InboundBudget(0, share=8)
    assert budget.spend(INBOUND_DEPTH // 8, 0) == 0
    assert budget.spend(INBOUND_RATE // 8, 0) == S + S // 4  # the debt's time, and a quarter of a second
    assert budget.spend(INBOUND_PER_READ, S) > 0
    budget.sample_sent(512)
    assert budget.spend(INBOUND_PER_READ, S) == 0


def test_a_guest_that_grants_byte_by_byte_is_paused() -> None:
    budget = later_budget()
    paused = 0
    for _ in range(2_000):
        budget.sample_sent(1)
        paused += budget.spend(48, 0)
    assert paused > 0


def test_bytes_that_come_one_by_one_buy_no_turn_of_the_loop_each() -> None:
    budget, now_ns, reads = later_budget(), 0, 0
    while now_ns < 100 * S:  # a byte each 66 µs is less than the rate
        now_ns += 66_000 + budget.spend(1, now_ns)
        reads += 1
    assert reads <= (INBOUND_DEPTH + 100 * INBOUND_RATE) // INBOUND_PER_READ + 1


def test_each_answer_that_is_called_for_costs_a_turn() -> None:
    budget = later_budget()
    paused = 0
    for _ in range(1_000):  # two bytes ask for one; ten at a time
        for _ in range(10):
            budget.sample_sent(1)
        paused += budget.spend(20, 0, 10)
    assert paused > 0
    good = later_budget()
    for _ in range(1_000):  # two bytes ask for 16, or more
        for _ in range(8):
            good.sample_sent(16)
        assert good.spend(16, 0, 8) == 0


def test_a_flood_is_paused_for_as_long_as_it_was_too_much() -> None:
    budget = later_budget()
    assert budget.spend(INBOUND_DEPTH, 0) == 0
    assert budget.spend(INBOUND_RATE, 0) >= S


@example(INBOUND_PER_READ)
@example(PARKED)
@given(st.integers(INBOUND_PER_READ, PARKED + INBOUND_DEPTH))
def test_what_was_parked_is_allowed_for_once_whenever_it_comes(read: int) -> None:
    budget = InboundBudget(0, PARKED)
    assert budget.spend(read, 0) == 0
    for _ in range(1_000):
        budget.sample_sent(32)
    left = max(INBOUND_DEPTH, INBOUND_DEPTH + PARKED - read)
    assert budget.spend(left, 1_000 * S) == 0, "neither time nor samples have lowered it"
    assert budget.spend(1, 1_000 * S) > 0, "nor raised it"


@given(st.lists(st.tuples(st.integers(1, 4096), st.integers(0, S)), min_size=1, max_size=200))
def test_what_is_read_stays_within_the_bucket(arrivals: list[tuple[int, int]]) -> None:
    budget, now_ns, resumed_ns, read = later_budget(), 0, 0, 0
    for size, gap_ns in arrivals:
        now_ns = max(now_ns + gap_ns, resumed_ns)
        read += size
        resumed_ns = now_ns + budget.spend(size, now_ns)
    assert read <= INBOUND_DEPTH + now_ns * INBOUND_RATE // S + 4096


def test_log_lines_are_bounded_and_the_next_says_how_many_are_missing() -> None:
    budget = LogBudget(0)
    assert [budget.admit(0) for _ in range(20)] == [0] * 20
    assert [budget.admit(6 * S - 1) for _ in range(7)] == [None] * 7
    assert budget.admit(6 * S) == 7
    assert budget.admit(6 * S + 1) is None


def test_where_nothing_is_said_to_be_parked_it_is_full_and_no_more() -> None:
    budget = InboundBudget(0)
    assert budget.spend(INBOUND_DEPTH, 0) == 0
    assert budget.spend(INBOUND_PER_READ, 0) > 0
