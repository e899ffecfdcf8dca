# SPDX-License-Identifier: Apache-2.0
"""How much the agent asks for, by the clock and by what was taken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from netrng_guest.demand import BLOCK_SIZE, SECOND_NS, Demand
from netrng_guest.wire import SEED_SIZE

T0 = 5 * SECOND_NS
FIRST = SEED_SIZE + BLOCK_SIZE


def test_the_seed_and_one_block_at_once() -> None:
    demand = Demand(100, 4096, BLOCK_SIZE, T0)
    assert demand.ask(T0, 0, 0, BLOCK_SIZE) == FIRST
    assert demand.ask(T0, FIRST, 0, BLOCK_SIZE) == 0


def test_then_whole_blocks_as_the_rate_earns_them() -> None:
    demand = Demand(100, 4096, BLOCK_SIZE, T0)
    assert demand.next_ns(FIRST, 0) == T0 + 25 * SECOND_NS
    assert demand.ask(T0 + 25 * SECOND_NS - 1, FIRST, 0, BLOCK_SIZE) == 0
    assert demand.ask(T0 + 25 * SECOND_NS, FIRST, 0, BLOCK_SIZE) == BLOCK_SIZE
    # One nanosecond is not lost to rounding, however often it is looked at.
    for n in range(1, 1000):
        assert demand.ask(T0 + 25 * SECOND_NS + n * 25_000_000, FIRST + BLOCK_SIZE, 0, BLOCK_SIZE) == 0
    assert demand.ask(T0 + 50 * SECOND_NS, FIRST + BLOCK_SIZE, 0, BLOCK_SIZE) == BLOCK_SIZE


def test_the_few_bytes_that_an_rngd_reads_first_are_lent_once() -> None:
    demand = Demand(100, 4096, BLOCK_SIZE, T0)
    assert demand.ask(T0, SEED_SIZE, 0, BLOCK_SIZE + 8) == BLOCK_SIZE + 8
    assert demand.ask(T0, FIRST + 8, 0, BLOCK_SIZE) == 0
    assert demand.next_ns(FIRST + 8, 0) == T0 + 25 * SECOND_NS + 80_000_000
    assert demand.ask(T0 + 25 * SECOND_NS, FIRST + 8, 0, BLOCK_SIZE) == 0
    assert demand.ask(T0 + 25 * SECOND_NS + 80_000_000, FIRST + 8, 0, BLOCK_SIZE) == BLOCK_SIZE


def test_a_restarted_rngd_does_not_wait_for_a_whole_block_that_lacks_eight_bytes() -> None:
    demand = Demand(100, 4096, BLOCK_SIZE, T0)
    demand.ask(T0, SEED_SIZE, 0, BLOCK_SIZE)
    # 2,500 bytes are in stock; the new rngd wants 2,508.
    assert demand.ask(T0, FIRST, BLOCK_SIZE, 8) == 8


def test_never_more_than_a_window_beyond_what_was_taken() -> None:
    demand = Demand(10_000, 4096, BLOCK_SIZE, T0)
    assert demand.ask(T0 + 3600 * SECOND_NS, FIRST, BLOCK_SIZE, 0) == 4096 - BLOCK_SIZE
    assert demand.next_ns(FIRST, BLOCK_SIZE) is None


@given(st.integers(1, 300_000), st.sampled_from([64, 256, 4096, 65536]))
def test_a_rate_is_asked_for_in_pieces_worth_their_frame(rate: int, window: int) -> None:
    rate = min(rate, 500 * window)  # half a window in each step, so that the cap takes nothing off
    demand, delivered, asked = Demand(rate, window, 1, T0), FIRST, []
    for ms in range(4000):
        n = demand.ask(T0 + ms * SECOND_NS // 1000, delivered, 0, 0)
        delivered += n  # at once
        asked += [n] if n else []
    assert all(n >= min(SEED_SIZE, window // 2) for n in asked)
    assert len(asked) <= 4 * max(17, rate // (window // 2) + 1)
    earned = 3999 * rate // 1000
    assert earned - max(rate // 16, SEED_SIZE) <= delivered - FIRST <= earned


def test_a_long_silence_of_the_host_earns_one_window() -> None:
    demand = Demand(100, 4096, 100, T0)
    delivered, now_ns = 64 + 2500, T0 + 86400 * SECOND_NS
    got = 0
    while wanted := demand.ask(now_ns, delivered, 0, 0):
        delivered += wanted
        got += wanted
    assert got <= 2 * 4096


def test_a_slow_host_always_finds_something_asked() -> None:
    demand = Demand(1000, 4096, BLOCK_SIZE, T0)
    delivered = 0
    for second in range(1, 200):  # 200 bytes per second, a fifth of the rate
        assert demand.ask(T0 + second * SECOND_NS, delivered, delivered % BLOCK_SIZE, 0) > 0
        delivered += 200


def test_without_a_rate_the_window_is_all_that_counts() -> None:
    demand = Demand(None, 1000, 1, T0)
    assert demand.ask(T0, 0, 0, 0) == 1000
    assert demand.ask(T0, 10**9, 400, 0) == 600
    assert demand.ask(T0, 10**9, 1000, 0) == 0
    assert demand.next_ns(10**9, 1000) is None


def test_a_clock_that_stands_still_or_goes_back_earns_nothing() -> None:
    demand = Demand(100, 4096, 100, T0)
    assert demand.ask(T0 - SECOND_NS, 2564, 0, 0) == 0
    assert demand.ask(T0, 2564, 0, 0) == 0


@given(
    rate=st.integers(1, 10**7),
    window=st.integers(64, 65536),
    piece=st.integers(1, BLOCK_SIZE),
    steps=st.lists(st.tuples(st.integers(0, 10 * SECOND_NS), st.booleans()), max_size=60),
)
def test_the_rate_holds_over_any_stretch(
    rate: int, window: int, piece: int, steps: list[tuple[int, bool]]
) -> None:
    demand = Demand(rate, window, piece, T0)
    now_ns, delivered = T0, 0
    for step_ns, deliver in steps:
        now_ns += step_ns
        wanted = demand.ask(now_ns, delivered, 0, 0)
        assert 0 <= wanted <= window
        if deliver:
            delivered += wanted
    earned = rate * (now_ns - T0) // SECOND_NS
    assert delivered <= FIRST + earned + piece
