# SPDX-License-Identifier: Apache-2.0
"""The numbers of the standard's health tests: NIST SP 800-90B (January 2018), sections 4.3 and 4.4.

Apart from the tests themselves, so that who only needs a number need not import what the tests run on.
"""

from __future__ import annotations

import math
from functools import cache

BYTE_WINDOW = 512  # noise bytes, SP 800-90B 4.4.2: W for sources that are not binary
BIT_WINDOW = 1024  # bits, SP 800-90B 4.4.2: W for binary sources
STARTUP = 1024  # noise bytes, SP 800-90B 4.3: start-up tests see at least 1,024 consecutive samples
ALPHA_EXPONENT = 40  # false alarms once in 2^40 tests; SP 800-90B 4.4 asks for 20 to 40


def rct_cutoff(a: int, h: float) -> int:
    """C = 1 + ⌈a / H⌉, SP 800-90B 4.4.1: so many equal noise values in a row are an alarm.

    `a`: the false alarm rate is 2^-a per value; `h`: claimed min-entropy per value, in bits.
    """
    return 1 + math.ceil(a / h)


@cache
def apt_cutoff(a: int, h: float, window: int) -> int:
    """C = 1 + CRITBINOM(W, 2^-H, 1 - 2^-a), SP 800-90B 4.4.2: a window's first value so often is an alarm.

    `a`: the false alarm rate is 2^-a per window; `h`: claimed min-entropy per value, in bits; `window`: W,
    in values. CRITBINOM is the least k with P(X <= k) >= 1 - 2^-a for X ~ Binomial(W, 2^-H). It is summed in
    exact integers from the far tail, because 1 - 2^-40 leaves a float few digits to be wrong in. The result
    is W + 1, a test that never fails, where H * W < a.

    The standard leaves out of account that the first value counts itself. With it, P(1 + X >= C) for
    X ~ Binomial(W - 1, 2^-H), it is 2^-37.6 for bytes at H = 8 and a = 40, and 2^-39.8 for bits.
    """
    hit, whole = (2.0**-h).as_integer_ratio()
    miss = whole - hit
    # All probabilities are integers over whole^W; `term` is P(X = k), `tail` is P(X > k).
    allowed = whole**window >> a
    k, term, tail = window, hit**window, 0
    while tail + term <= allowed:
        tail += term
        term = term * k * miss // ((window - k + 1) * hit)
        k -= 1
    return k + 1


@cache
def bits_cutoff(a: int, h: float) -> int:
    """C of the adaptive proportion test on bits (W = 1,024), where a byte carries `h` bits of min-entropy.

    At h = 8 a bit carries one, and it is `apt_cutoff(a, 1, 1024)`. Below, a claim for bytes says nothing of
    single bits: a converter whose lower four are noise and the upper ones zero gives 4 bits in a byte, and
    three zeros for each one. So C is that of the source of the claim whose bytes hold most bits of one value:
    for each k, no source gives a byte with k of them or more with a likelihood above 2^-h times the number of
    such bytes, and giving those that hold most of them, 2^-h each, reaches it for all k at once. Then no sum
    over independent bytes is likelier to be C or more (stochastic dominance). C is the least with which that
    likelihood is at most 2^-a, in exact integers again; W + 1, a test that never fails, where h * W / 8 < a.

    That is for either value. A window's first bit says which one counts, so that both together are less than
    twice as likely.
    """
    hit, whole = (2.0**-h).as_integer_ratio()
    n = BIT_WINDOW // 8
    values = [math.comb(8, k) for k in range(9)]  # with k ones
    at_least = [min(whole, hit * sum(values[k:])) for k in range(10)]
    # The distribution of the sum is the n-th power of a polynomial, whose coefficients are at most whole^n:
    # each has its place in one integer.
    place = whole.bit_length() * n // 8 + 1
    byte = sum((at_least[k] - at_least[k + 1]) << 8 * place * k for k in range(9))
    terms = (byte**n).to_bytes(place * (BIT_WINDOW + 1), "big")
    allowed, tail, cutoff = whole**n >> a, 0, BIT_WINDOW + 1
    while True:
        start = (BIT_WINDOW + 1 - cutoff) * place
        tail += int.from_bytes(terms[start : start + place], "big")
        if tail > allowed:
            return cutoff
        cutoff -= 1
