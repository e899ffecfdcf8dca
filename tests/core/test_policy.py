# SPDX-License-Identifier: Apache-2.0
"""Which sources serve: the three policies, and that a bad one never does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netrng_hostd.core.ledger import Origin
from netrng_hostd.core.policy import COMBINE, FAILOVER, XOR, Standing, serving

BAD = Standing("a", healthy=False)


def good(name: str, proved: bool = True, credit: bool = True) -> Standing:
    return Standing(name, healthy=True, proved=proved, credit=credit)


def test_failover_takes_the_first_that_is_healthy() -> None:
    assert serving(FAILOVER, 1, [good("a"), good("b")], ()) == ("a",)
    assert serving(FAILOVER, 1, [BAD, good("b"), good("c")], ("a",)) == ("b",)
    assert serving(FAILOVER, 1, [BAD], ("a",)) == ()


def test_failover_goes_back_when_the_better_one_has_proved_itself() -> None:
    healing = good("a", proved=False)
    assert serving(FAILOVER, 1, [healing, good("b")], ("b",)) == ("b",)
    assert serving(FAILOVER, 1, [good("a"), good("b")], ("b",)) == ("a",)
    assert serving(FAILOVER, 1, [healing, good("b")], ("a",)) == ("a",), "one that serves goes on"


def test_failover_prefers_one_that_has_proved_itself_and_takes_any_healthy_one() -> None:
    standings = [good("a", proved=False), good("b", proved=False), good("c")]
    assert serving(FAILOVER, 1, standings, ()) == ("c",)
    assert serving(FAILOVER, 1, standings[:2], ("c",)) == ("a",)


def test_while_none_is_healthy_the_first_that_starts_may_serve() -> None:
    starting = Standing("b", healthy=False, starting=True)
    assert serving(FAILOVER, 1, [BAD, starting], ()) == ("b",)
    assert serving(FAILOVER, 1, [BAD, starting, good("c", proved=False)], ("b",)) == ("c",)
    assert serving(COMBINE, 1, [BAD, starting], ()) == ()
    assert serving(XOR, 1, [BAD, starting], ()) == ()


def test_combine_takes_all_that_are_healthy_in_their_order() -> None:
    assert serving(COMBINE, 1, [good("a"), Standing("b", healthy=False), good("c")], ("c",)) == ("a", "c")


def test_xor_takes_none_unless_enough_that_have_credit_are_healthy() -> None:
    uncredited = good("c", credit=False)
    assert serving(XOR, 2, [good("a"), good("b"), uncredited], ()) == ("a", "b", "c")
    assert serving(XOR, 2, [good("a"), good("b")], ()) == ("a", "b")
    assert serving(XOR, 2, [good("a"), Standing("b", healthy=False), uncredited], ("a", "b", "c")) == ()


@pytest.mark.parametrize("policy", [FAILOVER, COMBINE, XOR])
@given(
    states=st.lists(
        st.tuples(st.sampled_from(["healthy", "starting", "bad"]), st.booleans(), st.booleans()), max_size=5
    ),
    min_sources=st.integers(1, 3),
    place=st.integers(0, 6),
)
def test_no_bad_one_ever_serves_and_the_order_is_kept(
    policy: str, states: list[tuple[str, bool, bool]], min_sources: int, place: int
) -> None:
    standings = [
        Standing(str(n), state == "healthy", proved, state == "starting", credit)
        for n, (state, proved, credit) in enumerate(states)
    ]
    current: Origin = (str(place),)
    chosen = serving(policy, min_sources, standings, current)
    healthy = [standing.name for standing in standings if standing.healthy]
    usable = healthy or [standing.name for standing in standings if standing.starting]
    assert set(chosen) <= set(usable if policy == FAILOVER else healthy)
    assert list(chosen) == sorted(chosen)
    if policy == FAILOVER:
        assert len(chosen) == min(1, len(usable))
        assert serving(policy, min_sources, standings, chosen) == chosen, "it does not waver"
    elif policy == COMBINE:
        assert list(chosen) == healthy
    else:
        credited = sum(standing.credit for standing in standings if standing.healthy)
        assert list(chosen) == (healthy if credited >= min_sources else [])
