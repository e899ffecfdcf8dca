# SPDX-License-Identifier: Apache-2.0
"""What is promised, to whom, and what becomes of it when the source gives less."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netrng_hostd.core.admission import Admission, Claim, Verdict
from netrng_hostd.core.bucket import NS_PER_S


def claims(**reservations: int) -> list[Claim]:
    """In the order of their names, all of one rank."""
    return [Claim(0, name, f"uuid-{name}", rate) for name, rate in reservations.items()]


def decided(admission: Admission, asked: list[Claim]) -> dict[str, Verdict]:
    return {uuid.removeprefix("uuid-"): verdict for uuid, verdict in admission.decide(asked).items()}


def with_capacity(capacity: int, headroom: int = 100) -> Admission:
    admission = Admission(headroom)
    assert admission.learn(capacity, 0)
    return admission


def test_nothing_is_promised_before_the_capacity_is_known() -> None:
    admission = Admission(100)
    assert not admission.learn(None, 0)
    assert decided(admission, claims(a=10, b=0)) == {"a": ("pending", 0), "b": ("none", 0)}
    admission.learn(1000, 0)
    assert decided(admission, claims(a=10, b=0)) == {"a": ("promised", 10), "b": ("none", 0)}


def test_promises_go_up_to_the_capacity_less_the_headroom() -> None:
    admission = with_capacity(10_000)
    verdicts = decided(admission, claims(a=4_000, b=4_000, c=4_000, d=1_000))
    assert verdicts == {
        "a": ("promised", 4_000), "b": ("promised", 4_000), "c": ("refused", 0), "d": ("promised", 1_000),
    }  # fmt: skip
    assert admission.promised == admission.promisable == 9_000


def test_the_order_is_that_of_the_rules_then_of_names_then_of_uuids() -> None:
    first = Claim(0, "z", "uuid-3", 5_000)
    second, third = Claim(1, "a", "uuid-1", 4_000), Claim(1, "a", "uuid-2", 4_000)
    verdicts = with_capacity(10_000).decide([third, second, first])
    assert [verdicts[f"uuid-{n}"].state for n in (3, 1, 2)] == ["promised", "promised", "refused"]


def test_a_promise_outlives_a_later_claim_that_comes_first_in_order() -> None:
    admission = with_capacity(10_000)
    decided(admission, claims(m=6_000))
    verdicts = decided(admission, claims(a=6_000, m=6_000))
    assert verdicts == {"a": ("refused", 0), "m": ("promised", 6_000)}


def test_one_that_was_refused_is_admitted_when_room_appears() -> None:
    admission = with_capacity(10_000)
    assert decided(admission, claims(a=6_000, b=6_000))["b"] == ("refused", 0)
    assert decided(admission, claims(b=6_000)) == {"b": ("promised", 6_000)}
    assert decided(admission, claims(b=6_000, c=4_000))["c"] == ("refused", 0)
    assert admission.learn(12_000, 0)
    assert decided(admission, claims(b=6_000, c=4_000))["c"] == ("promised", 4_000)


def test_a_raise_that_does_not_fit_leaves_the_former_promise() -> None:
    admission = with_capacity(10_000)
    decided(admission, claims(a=1_000, b=6_000))
    assert decided(admission, claims(a=8_000, b=6_000))["a"] == ("refused", 1_000)
    assert decided(admission, claims(a=3_000, b=6_000))["a"] == ("promised", 3_000)
    assert decided(admission, claims(a=500, b=6_000))["a"] == ("promised", 500)
    assert decided(admission, claims(a=0, b=6_000))["a"] == ("none", 0)
    assert admission.promised == 6_000


def test_promises_shrink_in_proportion_once_the_capacity_is_below_their_sum() -> None:
    admission = with_capacity(10_000)
    asked = claims(a=6_000, b=3_000)
    decided(admission, asked)
    assert admission.learn(9_000, 0)  # the headroom is gone, the promises hold
    assert decided(admission, asked) == {"a": ("promised", 6_000), "b": ("promised", 3_000)}
    assert admission.learn(5_000, 0)
    assert decided(admission, asked) == {"a": ("shrunk", 3_000), "b": ("shrunk", 1_500)}
    assert admission.shrunk
    assert admission.learn(9_500, 0)  # more than the sum, but not with the headroom
    assert decided(admission, asked) == {"a": ("shrunk", 5_700), "b": ("shrunk", 2_850)}
    assert decided(admission, [*asked, *claims(c=1)])["c"] == ("refused", 0)
    assert admission.learn(10_200, 0)
    assert decided(admission, asked) == {"a": ("promised", 6_000), "b": ("promised", 3_000)}


def test_they_are_whole_again_when_one_of_them_leaves() -> None:
    admission = with_capacity(10_000)
    decided(admission, claims(a=6_000, b=3_000))
    admission.learn(8_000, 0)
    assert decided(admission, claims(a=6_000, b=3_000))["b"] == ("shrunk", 2_400)
    assert decided(admission, claims(b=3_000)) == {"b": ("promised", 3_000)}


def test_promises_are_whole_again_after_a_dip_however_slowly_it_is_seen_to_end() -> None:
    """A meter that takes the mean over ten seconds never shows one large step upwards."""
    admission = with_capacity(10_000)
    asked = claims(a=6_000, b=3_000)
    decided(admission, asked)
    now_ns = 0
    for capacity in (8_000, 8_400, 8_900, 9_300, 9_700, 9_890, *[10_000] * 700):
        now_ns += NS_PER_S // 2
        admission.learn(capacity, now_ns)
        last = decided(admission, asked)
        assert sum(verdict.reservation for verdict in last.values()) <= admission.promisable
    assert admission.capacity == 10_000
    assert last == {"a": ("promised", 6_000), "b": ("promised", 3_000)}


def test_a_small_rise_counts_as_the_least_of_its_time_and_begins_anew_when_it_ends() -> None:
    admission = with_capacity(16_000)
    times = {0: 16_500, 70: 16_200, 149: 16_900}
    assert not any(admission.learn(capacity, second * NS_PER_S) for second, capacity in times.items())
    assert not admission.learn(16_000, 149 * NS_PER_S)
    assert not any(admission.learn(capacity, (second + 150) * NS_PER_S) for second, capacity in times.items())
    assert admission.learn(16_900, 300 * NS_PER_S)
    assert admission.capacity == 16_200


def test_one_measurement_that_is_high_by_chance_raises_nothing() -> None:
    """Where the reservoir is full the capacity is measured once a minute, and the figure stands till then."""
    admission = with_capacity(10_000)
    for measurement in range(10):
        begun_ns = measurement * 62 * NS_PER_S
        for tick in range(124):
            admission.learn((10_000, 10_300)[measurement % 2], begun_ns + tick * NS_PER_S // 2)
            assert admission.capacity == 10_000


def test_a_capacity_that_falls_counts_at_once_and_one_that_rises_when_it_is_clear() -> None:
    admission = with_capacity(16_000)
    assert not admission.learn(16_000, 0)
    assert not admission.learn(17_000, 0)
    assert admission.learn(15_999, 0)
    assert admission.learn(17_001, 0)
    assert admission.capacity == 17_001


@given(
    st.integers(0, 900),
    st.lists(
        st.tuples(
            st.none() | st.integers(0, 20_000),
            st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 9_000)),
        ),
        min_size=1,
        max_size=12,
    ),
)
@settings(max_examples=300)
def test_no_history_breaks_a_promise_or_makes_one_that_does_not_fit(
    headroom: int, history: list[tuple[int | None, dict[str, int]]]
) -> None:
    admission = Admission(headroom)
    before: dict[str, Verdict] = {}
    asked_before: dict[str, int] = {}
    for capacity, asked in history:
        promised_before = admission.promised
        admission.learn(capacity, 0)
        verdicts = decided(admission, claims(**asked))
        holding = sum(verdict.reservation for verdict in verdicts.values())
        assert holding <= max(admission.promisable, admission.capacity or 0)
        if admission.promised > promised_before:
            assert admission.promised <= admission.promisable
        for name, verdict in verdicts.items():
            assert 0 <= verdict.reservation <= asked[name]
            assert (verdict.state == "none") == (asked[name] == 0)
            if verdict.state == "promised":
                assert verdict.reservation == asked[name]
            had = before.get(name, Verdict("none", 0))
            if had.state in ("promised", "shrunk") and 0 < asked[name] <= asked_before[name]:
                assert verdict.state in ("promised", "shrunk")
            if verdict.state == "refused" and not admission.shrunk:
                room = admission.promisable - admission.promised
                assert asked[name] - verdict.reservation > room
        before, asked_before = verdicts, asked


@pytest.mark.parametrize("step", [1, -1])
def test_noise_of_three_per_cent_changes_no_verdict_of_those_admitted(step: int) -> None:
    admission = with_capacity(10_000)
    asked = claims(a=4_000, b=4_700, c=2_000)
    first = decided(admission, asked)
    for noise in range(300):
        admission.learn(10_000 + step * (noise * 37 % 301), 0)
        assert decided(admission, asked) == first
