# SPDX-License-Identifier: Apache-2.0
"""The block test: are a window's byte values as unequal, and no more equal, than noise makes them?

It is Pearson's chi-square against 256 equally likely values, two-sided. With n bytes in a window, of which
c_v have the value v, all of it is in one integer: S = Σ c_v². (X² = 256 S / n - n, for n = 512: S/2 - 512.)
S is large where some values are too frequent, whichever they are, and small where all are too equally
frequent: a counter that runs through 00..ff has the least of all, two of each, S = 1,024.

The cutoffs are exact. The chi-square distribution is no help, at two bytes expected per value: beyond 2^-40
it is one value's twenty occurrences that make S large, which a normal law knows nothing of.

**Any source of the claimed min-entropy keeps the rate.** For independent bytes with probabilities p, the
indicator of S >= s is a Schur-convex function of the counts, that of S <= s a Schur-concave one, and the
expectation of such a function of a multinomial vector is Schur-convex, or concave, in p (Rinott 1973;
Marshall, Olkin, Arnold: Inequalities, 2nd ed., chapter 11). So P(S >= s) is largest for the p that majorizes
all others with no probability above 2^-H, which is ⌊2^H⌋ values of 2^-H and one with what is left; and
P(S <= s) is largest where all 256 values are equally likely, whatever H is. The cutoffs are those of these
two sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from netrng_hostd.core.cutoffs import BYTE_WINDOW

if TYPE_CHECKING:  # importing it takes an eighth of the time that numpy takes
    import numpy.typing as npt

VALUES = 256
MAX_A = 40  # as SP 800-90B 4.4 has it; a tail much below 2^-41 would drown in the rounding
_CHUNK = 1 << 19  # complex numbers at a time: 8 MiB


class Likelihood(NamedTuple):
    """`values` byte values of probability `p` each."""

    p: float
    values: int


class Cutoffs(NamedTuple):
    """An alarm where the sum of squared counts is `low` or less, or `high` or more."""

    low: int
    high: int


def square_sum(window: bytes | bytearray | memoryview) -> int:
    """S of the bytes of one window."""
    counts = np.bincount(np.frombuffer(window, np.uint8))
    result = int(counts @ counts)
    counts.fill(0)
    return result


def worst_source(h: float) -> list[Likelihood]:
    """The most unequal of all sources with a min-entropy of `h` bits per byte (0 < h <= 8)."""
    p = 2.0**-h
    often = int(2.0**h)
    rest = 1 - often * p
    return [Likelihood(p, often), Likelihood(rest, 1)] if rest > 0 else [Likelihood(p, often)]


@cache
def block_cutoffs(a: int, h: float) -> Cutoffs:
    """The cutoffs for a false alarm rate of at most 2^-a per window, half of it on either side.

    `h`: claimed min-entropy per byte, in bits. ValueError where `a` is above 40. Takes 0.1 s for h = 8 and
    up to some two seconds for h < 2, once.
    """
    if a > MAX_A:
        raise ValueError(f"alpha_exponent is {a}, must be at most {MAX_A}")
    most_even, most_uneven = [Likelihood(1 / VALUES, VALUES)], worst_source(h)
    even = pairs_distribution(BYTE_WINDOW, most_even)
    uneven = even if most_uneven == most_even else pairs_distribution(BYTE_WINDOW, most_uneven)
    at_most = np.cumsum(even) + rounding(most_even)
    at_least = np.cumsum(uneven[::-1]) + rounding(most_uneven)
    # So few pairs, or so many, are no more likely than half of 2^-a: the greatest number and the least.
    low = int(np.searchsorted(at_most, 2.0 ** -(a + 1), "right")) - 1
    high = at_least.size - int(np.searchsorted(at_least, 2.0 ** -(a + 1), "right"))
    return Cutoffs(BYTE_WINDOW + 2 * low, BYTE_WINDOW + 2 * high)


def rounding(source: Sequence[Likelihood]) -> float:
    """More than the error of a sum over one end of pairs_distribution; 3 % of 2^-41 for 256 values.

    Most of it is that of a float times the power that it is raised to. Each squaring adds a rounding of its
    own, which the next ones double: together about as much again, and less than logarithms add.
    """
    return (16 + max(values for _, values in source)) * 2.0**-54


def pairs_distribution(n: int, source: Sequence[Likelihood]) -> npt.NDArray[np.float64]:
    """P(Q = 0), P(Q = 1), … for the number Q of pairs of equal bytes among n (at least 110): S = n + 2 Q.

    Let the counts be independent and Poisson with means n p_v: given that they add up to n, they are
    multinomial. One value's count c brings c (c - 1) / 2 pairs, so that with

        f_v(θ, φ) = Σ_c  e^(-n p_v) (n p_v)^c / c!  e^(-i θ c)  e^(-i φ c (c - 1) / 2)

    the product of all f_v is the characteristic function of the sum of counts N and of Q. Its mean over the
    n-th roots of unity, θ = 2 π k / n, is that part of it where N is a multiple of n: where N = n, that is,
    for N = 0 and N = 2 n are less likely than 10^-18. Divided by P(N = n), and transformed over φ, it is Q's
    distribution. Both sums are fast Fourier transforms. The φ are so many that Q cannot lie beyond, or not
    beyond four times its mean, where nothing is left that a float could show.
    """
    counts = np.arange(n)
    pairs = counts * (counts - 1) // 2
    log_factorials = np.array([math.lgamma(c + 1) for c in counts.tolist()])
    most = n * (n - 1) // 2
    mean = most * sum(p * p * values for p, values in source)
    size = 1 << math.ceil(math.log2(min(most + 1, 4 * mean)))
    weights = [np.exp(counts * math.log(n * p) - n * p - log_factorials) for p, _ in source]
    roots = np.exp(-2j * math.pi / size * np.arange(size))
    transform = np.empty(size // 2 + 1, np.complex128)  # the other half mirrors it
    rows = _CHUNK // n
    for first in range(0, transform.size, rows):
        phi = np.arange(first, min(first + rows, transform.size))
        phases = roots[np.multiply.outer(phi, pairs) % size]
        product = np.ones(1, np.complex128)
        for weight, (_, values) in zip(weights, source):
            product = product * _power(np.fft.fft(phases * weight, axis=1), values)
        transform[phi] = product.mean(axis=1)
    distribution: npt.NDArray[np.float64] = np.fft.irfft(transform / transform[0].real, size)
    return distribution


def _power(base: npt.NDArray[np.complex128], exponent: int) -> npt.NDArray[np.complex128]:
    """By squaring; from 100 on numpy takes logarithms, which is less exact and several times as slow."""
    result = base if exponent % 2 else np.ones_like(base)
    while exponent := exponent // 2:
        base = base * base
        if exponent % 2:
            result = result * base
    return result
