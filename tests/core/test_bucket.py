# SPDX-License-Identifier: Apache-2.0
"""The token bucket: exact, however it is looked at."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from netrng_hostd.core.bucket import NS_PER_S, Bucket

rates = st.integers(min_value=1, max_value=1 << 40)
sizes = st.integers(min_value=0, max_value=1 << 20)
steps = st.lists(st.integers(min_value=0, max_value=10 * NS_PER_S), max_size=20)


def test_it_starts_full_and_fills_at_its_rate() -> None:
    bucket = Bucket(rate=100, depth_bytes=64, now_ns=5)
    assert bucket.holds(5) == 64
    bucket.spend(64, 5)
    assert not bucket.covers(1, 5)
    assert bucket.holds(5 + NS_PER_S // 100) == 1
    assert bucket.holds(5 + 100 * NS_PER_S) == 64


@given(rates, sizes, steps)
def test_how_often_somebody_looks_changes_nothing(rate: int, depth: int, dts: list[int]) -> None:
    often, once = Bucket(rate, depth, 0), Bucket(rate, depth, 0)
    often.level = once.level = -(depth * NS_PER_S)
    now = 0
    for dt in dts:
        now += dt
        often.settle(now)
    once.settle(now)
    assert often.level == once.level <= once.depth


@given(rates, sizes, sizes)
def test_when_is_the_first_nanosecond_that_pays(rate: int, depth: int, spent: int) -> None:
    bucket = Bucket(rate, depth, 1000)
    bucket.spend(spent, 1000)
    due = bucket.when(depth)
    assert due == 1000 or not bucket.covers(depth, due - 1)
    assert bucket.covers(depth, due)


def test_a_full_bucket_lets_what_comes_overflow_before_it_pays() -> None:
    bucket = Bucket(rate=100, depth_bytes=64, now_ns=0)
    bucket.spend(64, 10 * NS_PER_S)
    assert bucket.holds(10 * NS_PER_S) == 0


def test_debt_is_paid_back_first_and_a_negative_size_asks_about_it() -> None:
    bucket = Bucket(rate=10, depth_bytes=0, now_ns=0)
    bucket.spend(30, 0)
    assert bucket.holds(0) == -30
    assert bucket.covers(-30, 0)
    assert not bucket.covers(-29, 0)
    assert bucket.when(0) == 3 * NS_PER_S


def test_a_clock_that_steps_back_adds_nothing_twice() -> None:
    bucket = Bucket(rate=1, depth_bytes=100, now_ns=0)
    bucket.spend(100, 0)
    for now_s in (10, 5, 10):
        bucket.settle(now_s * NS_PER_S)
    assert bucket.holds(0) == 10


def test_a_new_shape_keeps_what_was_saved_as_far_as_it_fits() -> None:
    bucket = Bucket(rate=10, depth_bytes=100, now_ns=0)
    bucket.spend(100, 0)
    bucket.reshape(rate=1, depth_bytes=1000, now_ns=5 * NS_PER_S)  # the old rate until now
    assert bucket.holds(6 * NS_PER_S) == 51
    bucket.reshape(rate=1, depth_bytes=20, now_ns=6 * NS_PER_S)
    assert bucket.holds(6 * NS_PER_S) == 20
