# SPDX-License-Identifier: Apache-2.0
"""The cutoffs of SP 800-90B 4.4, against tables of them and against exact sums."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netrng_hostd.core.cutoffs import apt_cutoff, bits_cutoff, rct_cutoff


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


# --- on bits, by a claim for bytes ---------------------------------------------------------------------


@pytest.mark.parametrize("a", [20, 30, 40])
def test_bits_of_full_entropy_carry_one_each(a: int) -> None:
    assert bits_cutoff(a, 8.0) == apt_cutoff(a, 1, 1024)


def zeros_of_a_window(source: list[float]) -> list[float]:
    """P(k zeros in 128 bytes) for k from 0 to 1,024; ``source``: the likelihood of each byte value."""
    of_byte = [0.0] * 9
    for value, likelihood in enumerate(source):
        of_byte[8 - bin(value).count("1")] += likelihood
    window = [1.0]
    for _ in range(128):
        grown = [0.0] * (len(window) + 8)
        for k, likelihood in enumerate(window):
            for more, factor in enumerate(of_byte):
                grown[k + more] += likelihood * factor
        window = grown
    return window


def filled(h: float, order: Iterable[int]) -> list[float]:
    """As much of the values as the claim allows, one after the other."""
    source, left = [0.0] * 256, 1.0
    for value in order:
        source[value] = min(2.0**-h, left)
        left -= source[value]
    return source


@pytest.mark.parametrize("h", [7.5, 7.0, 4.0, 2.0, 1.0, 0.5])
def test_the_bits_cutoff_is_the_least_for_the_worst_source_of_the_claim(h: float) -> None:
    zeros = zeros_of_a_window(filled(h, sorted(range(256), key=lambda value: bin(value).count("1"))))
    for a in (20, 40):
        cutoff = bits_cutoff(a, h)
        assert math.fsum(zeros[cutoff:]) <= 2.0**-a < math.fsum(zeros[cutoff - 1 :])


@pytest.mark.parametrize(
    ("h", "order"),
    [
        (4.0, range(256)),  # the upper bits are zero
        (4.0, range(0, 256, 16)),  # the lower ones
        (6.0, range(256)),
        (7.0, range(0, 256, 2)),
        (3.5, random.Random(1).sample(range(256), 256)),
    ],
)
def test_other_sources_of_the_claim_raise_no_more_alarms_on_bits(h: float, order: Iterable[int]) -> None:
    zeros = zeros_of_a_window(filled(h, order))
    for a in (20, 40):
        assert math.fsum(zeros[bits_cutoff(a, h) :]) <= 2.0**-a


def test_a_claim_so_low_that_no_bits_can_tell() -> None:
    assert bits_cutoff(40, 0.3) == 1025
