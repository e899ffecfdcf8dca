# SPDX-License-Identifier: Apache-2.0
"""Good noise raises as many alarms as the formulas say, neither more nor fewer.

Each test alone, with a cutoff of a rate so high that megabytes raise hundreds of alarms. What is expected is
computed from the distribution of what the test counts, not from 2^-a, which is only a bound of it: counts are
whole numbers. Correct tests miss the bounds with a probability below 10^-9; the noise is the same each time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest

from netrng_hostd.core.blocktest import Cutoffs, Likelihood, block_cutoffs, pairs_distribution, worst_source
from netrng_hostd.core.cutoffs import apt_cutoff, bits_cutoff, rct_cutoff
from netrng_hostd.core.health import APT_BITS, APT_BYTES, BLOCK, RCT, HealthTests

MEGABYTE = 1 << 20
PIECE = 32 << 10
NO_RCT, NO_APT_BYTES, NO_APT_BITS, NO_BLOCK = 513, 513, 1025, Cutoffs(-1, 1 << 20)


def only(
    rct: int = NO_RCT, apt_bytes: int = NO_APT_BYTES, apt_bits: int = NO_APT_BITS, block: Cutoffs = NO_BLOCK
) -> HealthTests:
    """Health tests of which only those can fail that have a cutoff here."""
    health = HealthTests()
    health._use(rct, apt_bytes, apt_bits, block)
    return health


def nibbles(noise: bytes) -> bytes:
    """Noise of four bits in a byte, all 16 values equally likely."""
    return noise.translate(bytes(value & 0x0F for value in range(256)))


def whole(noise: bytes) -> bytes:
    return noise


def alarm_offsets(health: HealthTests, test: str, n_bytes: int, shape: Callable[[bytes], bytes]) -> list[int]:
    """Where the alarms came, all of them that test's."""
    rng = random.Random(f"{test} {n_bytes}")
    offsets = list[int]()
    for _ in range(n_bytes // PIECE):
        verdict = health.feed(shape(rng.randbytes(PIECE)))
        assert {alarm.test for alarm in verdict.alarms} <= {test}
        offsets += [alarm.offset for alarm in verdict.alarms]
    return offsets


def assert_likely(count: int, expected: float) -> None:
    """The bound that Bernoulli trials of that sum of likelihoods miss with a probability below 10^-9.

    2 exp(-t² / (2 (µ + t / 3))): Bernstein's inequality, for martingales Freedman's (Annals of Probability
    1975), so that the number of trials may depend on their outcomes, as it does where an alarm ends a window.
    """
    log = math.log(2e9)
    bound = log / 3 + math.sqrt(log * log / 9 + 2 * log * expected)
    assert bound < expected / 2, "too few are expected to tell anything"
    assert abs(count - expected) < bound


def binomial(n: int, p: float, at_least: int) -> float:
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(at_least, n + 1))


@pytest.mark.parametrize(("a", "n_bytes"), [(8, 2 * MEGABYTE), (12, 24 * MEGABYTE)])
def test_repetition_count(a: int, n_bytes: int) -> None:
    """An alarm is C - 1 bytes one after the other that equal the one before, each with the likelihood 2^-8.

    The mean number of bytes to the first such row is that of a success run (Feller, Introduction I, XIII.7):
    (1 - q^r) / ((1 - q) q^r), with q = 2^-8 and r = C - 1. After an alarm the rest of the window is skipped,
    and the first byte of the next has none before it.
    """
    health = only(rct=rct_cutoff(a, 8))
    offsets = alarm_offsets(health, RCT, n_bytes, whole)
    skipped = sum(-offset % 512 + 1 for offset in offsets)
    q, r = 2.0**-8, health.rct_cutoff - 1
    assert r == {8: 1, 12: 2}[a]
    assert_likely(len(offsets), (n_bytes - skipped) * (1 - q) * q**r / (1 - q**r))


@pytest.mark.parametrize(("a", "h"), [(6, 8), (8, 8), (8, 4)])
def test_adaptive_proportion_of_bytes(a: int, h: int) -> None:
    """The first byte counts itself: 1 + Binomial(511, 2^-H) is C or more."""
    health, n_bytes = only(apt_bytes=apt_cutoff(a, h, 512)), 40 * MEGABYTE
    offsets = alarm_offsets(health, APT_BYTES, n_bytes, whole if h == 8 else nibbles)
    rate = binomial(511, 2.0**-h, health.apt_byte_cutoff - 1)
    assert_likely(len(offsets), rate * (n_bytes // 512))


@pytest.mark.parametrize("a", [6, 8])
def test_adaptive_proportion_of_bits(a: int) -> None:
    """1 + Binomial(1023, 1/2) is C or more; after an alarm the rest of the 512 bytes is skipped."""
    health, n_bytes = only(apt_bits=bits_cutoff(a, 8)), 24 * MEGABYTE
    offsets = alarm_offsets(health, APT_BITS, n_bytes, whole)
    skipped = sum(-offset % 512 // 128 for offset in offsets)
    rate = binomial(1023, 0.5, health.apt_bit_cutoff - 1)
    assert_likely(len(offsets), rate * (n_bytes // 128 - skipped))


FEWEST_ONES = sorted(range(256), key=lambda value: bin(value).count("1"))[:16]


def fewest_ones(noise: bytes) -> bytes:
    """Noise of four bits in a byte: the worst source of that claim for a test of bits."""
    return noise.translate(bytes(FEWEST_ONES[value & 0x0F] for value in range(256)))


@pytest.mark.parametrize("a", [6, 8])
def test_adaptive_proportion_of_bits_where_the_claim_is_lower(a: int) -> None:
    """Of 128 bytes C bits or more are zeros, the first of all among them; so many ones there never are."""
    health, n_bytes = only(apt_bits=bits_cutoff(a, 4)), 24 * MEGABYTE
    offsets = alarm_offsets(health, APT_BITS, n_bytes, fewest_ones)
    skipped = sum(-offset % 512 // 128 for offset in offsets)
    zeros = [8 - bin(value).count("1") for value in FEWEST_ONES]
    of_others = np.ones(1)
    for _ in range(127):
        of_others = np.convolve(of_others, np.bincount(zeros, minlength=9) / 16)
    least = health.apt_bit_cutoff
    firsts = [zeros[n] for n, value in enumerate(FEWEST_ONES) if value < 0x80]
    rate = sum(of_others[least - first :].sum() for first in firsts) / 16
    assert 0.4 < rate / 2.0**-a <= 1
    assert_likely(len(offsets), rate * (n_bytes // 128 - skipped))


@pytest.mark.parametrize("a", [5, 7])
def test_block_too_even(a: int) -> None:
    health, n_bytes = only(block=NO_BLOCK._replace(low=block_cutoffs(a, 8).low)), 40 * MEGABYTE
    offsets = alarm_offsets(health, BLOCK, n_bytes, whole)
    distribution = pairs_distribution(512, [Likelihood(1 / 256, 256)])
    rate = distribution[: (health.block_cutoffs.low - 512) // 2 + 1].sum()
    assert 0.5 < rate / 2.0 ** -(a + 1) <= 1
    assert_likely(len(offsets), rate * (n_bytes // 512))


@pytest.mark.parametrize(("a", "h"), [(5, 8), (7, 8), (6, 4)])
def test_block_too_uneven(a: int, h: int) -> None:
    """Of 16 values, too: these are the worst source of the claim, so that it reaches the rate."""
    health, n_bytes = only(block=NO_BLOCK._replace(high=block_cutoffs(a, h).high)), 40 * MEGABYTE
    offsets = alarm_offsets(health, BLOCK, n_bytes, whole if h == 8 else nibbles)
    distribution = pairs_distribution(512, worst_source(h))
    rate = distribution[(health.block_cutoffs.high - 512) // 2 :].sum()
    assert 0.5 < rate / 2.0 ** -(a + 1) <= 1
    assert_likely(len(offsets), rate * (n_bytes // 512))
