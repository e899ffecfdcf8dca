# SPDX-License-Identifier: Apache-2.0
"""The block test's cutoffs, against exact sums and against a second way to the same distribution."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from netrng_hostd.core.blocktest import (
    Cutoffs,
    Likelihood,
    _power,
    block_cutoffs,
    pairs_distribution,
    rounding,
    square_sum,
    worst_source,
)

N = 512
UNIFORM = [Likelihood(1 / 256, 256)]
Floats = npt.NDArray[np.float64]


def pairs(count: int) -> int:
    return count * (count - 1) // 2


def assert_equal_sums(computed: Floats, expected: Floats, allowed: float) -> None:
    """From the end up to where cutoffs lie, with room to spare; in the middle a float has fewer digits."""
    sums = np.cumsum(expected)
    error = np.abs(np.cumsum(computed) - sums)[sums < 1e-3]
    assert error.max() < allowed


# --- known answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "h", "low", "high"),
    [
        (20, 8.0, 1344, 1802),
        (30, 8.0, 1308, 1890),
        (40, 8.0, 1278, 1976),
        (40, 6.5, 1278, 4218),
        (40, 4.0, 1278, 19524),
        (40, 2.0, 1278, 73526),
        (40, 0.5, 1278, 192324),
    ],
)
def test_known_cutoffs(a: int, h: float, low: int, high: int) -> None:
    assert block_cutoffs(a, h) == Cutoffs(low, high)


@pytest.mark.parametrize("h", [0.5])
def test_with_two_values_the_upper_cutoff_is_that_of_exact_sums(h: float) -> None:
    """Where H <= 1 the worst source has two values, and all is a binomial distribution: integers over d^N."""
    p, d = (2.0**-h).as_integer_ratio()
    chance = Counter[int]()
    term = p**N
    for k in range(N, -1, -1):
        chance[k * k + (N - k) ** 2] += term
        term = term * k * (d - p) // ((N - k + 1) * p)
    assert sum(chance.values()) == d**N
    for a in (20, 40):
        tail, totals = 0, sorted(chance)
        while (tail := tail + chance[totals[-1]]) <= d**N >> (a + 1):
            highest_likely = totals.pop()
        # One attainable sum and the next may be more than 2 apart: any cutoff between is the same test.
        assert totals[-1] < block_cutoffs(a, h).high <= highest_likely
    distribution = pairs_distribution(N, worst_source(h))
    expected = np.zeros(distribution.size)
    for total, count in chance.items():
        expected[(total - N) // 2] = count / d**N
    assert_equal_sums(distribution[::-1], expected[::-1], rounding(worst_source(h)))


def test_three_values_give_exact_sums() -> None:
    n, parts = 128, [Likelihood(0.375, 2), Likelihood(0.25, 1)]
    exact = [0] * (pairs(n) + 1)
    for i in range(n + 1):
        for j in range(n + 1 - i):
            words = math.comb(n, i) * math.comb(n - i, j) * 3 ** (i + j) * 2 ** (n - i - j)
            exact[pairs(i) + pairs(j) + pairs(n - i - j)] += words
    assert sum(exact) == 8**n
    computed = pairs_distribution(n, parts)
    expected = np.array([value / 8**n for value in exact] + [0] * (computed.size - len(exact)))
    assert_equal_sums(computed, expected, rounding(parts))
    assert_equal_sums(computed[::-1], expected[::-1], rounding(parts))


@pytest.mark.parametrize("exponent", [1, 2, 3, 100, 255, 256])
def test_powers_of_small_gaussian_integers_are_exact(exponent: int) -> None:
    """Those of 1 + i and of 2 have few digits, however large they are: nothing is to be rounded."""
    base = np.array([0, 1, -1, 1j, 2, 1 + 1j, 1 - 1j], np.complex128)
    expected = np.ones_like(base)
    for _ in range(exponent):
        expected = expected * base
    assert (_power(base, exponent) == expected).all()
    assert base.tolist() == [0, 1, -1, 1j, 2, 1 + 1j, 1 - 1j]


# --- a second way --------------------------------------------------------------------------------------


def grow(joint: Floats, p: float, most_of_one: int) -> Floats:
    """The joint distribution of counts and pairs with one more value; only sums of positive terms."""
    grown = np.zeros_like(joint)
    for count in range(most_of_one + 1):
        weight = math.exp(-N * p) * (N * p) ** count / math.factorial(count)
        bytes_left, pairs_left = joint.shape[0] - count, joint.shape[1] - pairs(count)
        if bytes_left > 0 and pairs_left > 0:
            grown[count:, pairs(count) :] += weight * joint[:bytes_left, :pairs_left]
    return grown


def test_the_uniform_distribution_is_that_of_convolutions() -> None:
    """128 values one after the other, with at most 416 bytes and 26 of one value; then twice that.

    What is left out is less likely than 10^-16 by far, and what is put in has no cancellation.
    """
    half = np.zeros((417, 800))
    half[0, 0] = 1
    for _ in range(128):
        half = grow(half, 1 / 256, 26)
    probability_of_n = math.exp(N * math.log(N) - N - math.lgamma(N + 1))
    halves = [np.convolve(half[k], half[N - k]) for k in range(N - 416, 417)]
    whole: Floats = np.sum(halves, axis=0) / probability_of_n
    computed = pairs_distribution(N, UNIFORM)
    assert_equal_sums(computed[:1300], whole[:1300], rounding(UNIFORM))
    assert_equal_sums(computed[1299::-1], whole[1299::-1], rounding(UNIFORM))
    assert Cutoffs(low=1278, high=1976) == block_cutoffs(40, 8.0)
    low, high = (1278 - N) // 2, (1976 - N) // 2
    rate = 2.0**-41
    assert whole[: low + 1].sum() <= rate < whole[: low + 2].sum()
    assert whole[high:].sum() <= rate < whole[high - 1 :].sum()


# --- every source of the claim keeps the rate ----------------------------------------------------------


def sources(h: float) -> Iterator[list[Likelihood]]:
    """Some of those that have no value more likely than 2^-h: a few are as likely as that, others share."""
    bound = 2.0**-h
    for often in (0, int(1 / bound) // 3, int(1 / bound) - 1):
        rest = 1 - often * bound
        least = math.ceil(rest / bound)
        for values in (least, (least + 256 - often) // 2, 256 - often):
            yield [Likelihood(bound, often), Likelihood(rest / values, values)][not often :]


@pytest.mark.parametrize("h", [7.6, 6.3])
def test_no_source_of_the_claim_raises_more_alarms_than_the_two_that_the_cutoffs_are_of(h: float) -> None:
    for source in sources(h):
        assert math.isclose(sum(p * values for p, values in source), 1)
        distribution = pairs_distribution(N, source)
        for a in (4, 20):
            low, high = block_cutoffs(a, h)
            assert distribution[: (low - N) // 2 + 1].sum() <= 2.0 ** -(a + 1)
            assert distribution[(high - N) // 2 :].sum() <= 2.0 ** -(a + 1)


@pytest.mark.parametrize("h", [8.0, 7.9, 7.0, 4.5, math.log2(3), 1.0, 0.5, 0.3125])
def test_the_worst_source_is_one_of_the_claim(h: float) -> None:
    source = worst_source(h)
    assert math.isclose(sum(p * values for p, values in source), 1)
    assert max(p for p, _ in source) == 2.0**-h
    assert sum(values for _, values in source) <= 256


@pytest.mark.parametrize("h", [8.0, 7.9, 4.0, 3.3])
def test_the_distribution_has_the_mean_that_it_must_have(h: float) -> None:
    source = worst_source(h)
    distribution = pairs_distribution(N, source)
    mean = float(distribution @ np.arange(distribution.size))
    assert math.isclose(mean, pairs(N) * sum(p * p * values for p, values in source), rel_tol=1e-9)
    assert math.isclose(distribution.sum(), 1)
    assert distribution.min() > -rounding(source)


@pytest.mark.parametrize("a", [4, 20, 40])
def test_a_lower_claim_or_rate_allows_more(a: int) -> None:
    cutoffs = [block_cutoffs(a, h) for h in (8.0, 7.0, 6.5, 4.0)]
    assert [c.high for c in cutoffs] == sorted(c.high for c in cutoffs)
    assert len({c.low for c in cutoffs}) == 1
    assert block_cutoffs(a - 1, 8.0).low >= cutoffs[0].low
    assert block_cutoffs(a - 1, 8.0).high <= cutoffs[0].high


def test_rates_that_floats_cannot_tell_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha_exponent is 41, must be at most 40"):
        block_cutoffs(41, 8.0)


# --- the statistic -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_sum_of_squared_counts(kind: type[bytes]) -> None:
    window = random.Random(1).randbytes(N)
    counted = sum(count * count for count in Counter(window).values())
    assert square_sum(kind(window)) == counted
    assert square_sum(kind(bytes(range(256)) * 2)) == 1024
    assert square_sum(kind(bytes(N))) == N * N


def test_the_counts_are_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = list[npt.NDArray[np.intp]]()
    bincount = np.bincount

    def remember(window: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
        counted.append(bincount(window))
        return counted[-1]

    monkeypatch.setattr(np, "bincount", remember)
    assert square_sum(bytes(range(256)) * 2) == 1024
    assert [counts.any() for counts in counted] == [False]


def test_it_is_pearsons_chi_square() -> None:
    window = random.Random(2).randbytes(N)
    chi_square = sum((Counter(window)[value] - 2) ** 2 / 2 for value in range(256))
    assert chi_square == (square_sum(window) - 1024) / 2
