# SPDX-License-Identifier: Apache-2.0
"""The cutoffs of SP 800-90B 4.4, against tables of them and against exact sums."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netrng_hostd.core.cutoffs import apt_cutoff, rct_cutoff


@pytest.mark.parametrize(
    ("a", "h", "window", "rct", "apt"),
    [
        (20, 1, 1024, 21, 589),
        (30, 1, 1024, 31, 609),
        (40, 1, 1024, 41, 625),
        (20, 8, 512, 4, 13),
        (30, 8, 512, 5, 16),
        (40, 8, 512, 6, 19),
    ],
)
def test_cutoffs_of_full_entropy(a: int, h: int, window: int, rct: int, apt: int) -> None:
    assert (rct_cutoff(a, h), apt_cutoff(a, h, window)) == (rct, apt)


@given(
    a=st.integers(20, 40),
    h=st.floats(0.4, 8.0),
    window=st.sampled_from([64, 100, 128]),
)
@settings(max_examples=40)
def test_apt_cutoff_is_the_least_that_keeps_the_false_alarm_rate(a: int, h: float, window: int) -> None:
    p = Fraction(2.0**-h)

    def more_than(k: int) -> Fraction:
        return sum(
            (math.comb(window, i) * p**i * (1 - p) ** (window - i) for i in range(k + 1, window + 1)),
            Fraction(0),
        )

    critbinom = apt_cutoff(a, h, window) - 1
    assert more_than(critbinom) <= Fraction(1, 2**a)
    assert more_than(critbinom - 1) > Fraction(1, 2**a)


def test_cutoffs_of_fractional_entropy() -> None:
    assert rct_cutoff(40, 7.9) == 7  # 40 / 7.9 = 5.06, rounded up
    assert rct_cutoff(40, 0.5) == 81
    assert apt_cutoff(40, 4.5, 512) > apt_cutoff(40, 5.0, 512) > apt_cutoff(40, 8, 512)


def test_apt_cutoff_above_the_window_where_the_test_could_never_keep_the_rate() -> None:
    assert apt_cutoff(40, 39 / 512, 512) == 513
    assert apt_cutoff(40, 40 / 512, 512) == 512


def test_apt_cutoff_where_the_rate_is_met_exactly() -> None:
    assert apt_cutoff(40, 1, 40) == 40  # P(X > 39) = 2^-40, not one more is needed
