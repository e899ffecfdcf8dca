# SPDX-License-Identifier: Apache-2.0
"""What the conditioner promises, held against hashlib and against SP 800-90B 3.1.5.1.2 in 120 digits."""

from __future__ import annotations

import hashlib
import math
import random
import re
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netrng_hostd.core import conditioning
from netrng_hostd.core.conditioning import OUTPUT, Conditioner, noise_per_block, output_entropy

JUST_BELOW_8 = math.nextafter(8.0, 0.0)
claims = st.floats(0.3125, JUST_BELOW_8)


def noise(size: int, seed: int = 1) -> bytearray:
    return bytearray(random.Random(seed).randbytes(size))


def digests(given_: bytes | bytearray, block: int) -> bytes:
    """The digest of each whole block."""
    whole = len(given_) // block
    return b"".join(hashlib.sha256(given_[i * block : (i + 1) * block]).digest() for i in range(whole))


def output_entropy_by_the_book(n_in: int, n_out: int, nw: int, h_in: float) -> Decimal:
    """The standard's six steps, as they stand there, in decimals, which know no underflow."""
    with localcontext() as context:
        context.prec = 120
        two = Decimal(2)
        p_high = two ** -Decimal(h_in)
        p_low = (1 - p_high) / (two**n_in - 1)
        n = min(n_out, nw)
        psi = two ** (n_in - n) * p_low + p_high
        u = two ** (n_in - n) + (2 * n * two ** (n_in - n) * two.ln()).sqrt()
        omega = u * p_low
        return -max(psi, omega).ln() / two.ln()


# --- how much goes in ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("h", "block"),
    [
        (JUST_BELOW_8, 41),
        (7.9, 41),
        (7.8, 42),
        (7.0, 46),
        (6.0, 54),
        (4.0, 80),
        (1.0, 320),
        (0.5, 640),
        (0.3125, 1024),
    ],
)
def test_noise_bytes_of_a_block(h: float, block: int) -> None:
    assert noise_per_block(h) == block
    assert Conditioner(h).ratio == (32, block)


@given(h=claims)
def test_a_block_is_the_least_that_carries_320_bits(h: float) -> None:
    block = noise_per_block(h)
    assert block * Fraction(h) >= 320 > (block - 1) * Fraction(h)
    assert block > OUTPUT, "never stretched"


@pytest.mark.parametrize("h", [8.0, 8.1, 0.0, -1.0, math.nan, math.inf])
def test_what_needs_no_conditioning_or_says_nothing_is_refused(h: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and below 8"):
        Conditioner(h)


# --- how much comes out --------------------------------------------------------------------------------


def extremes(block: int) -> list[float]:
    """About the lowest and the highest H that a block has this many noise bytes for."""
    lowest, highest = 320 / block, min(320 / (block - 1), 8.0)
    near = [
        f(h)
        for h in (lowest, highest)
        for f in (float, lambda h: math.nextafter(h, 0), lambda h: math.nextafter(h, 9))
    ]
    return [h for h in near if h < 8 and noise_per_block(h) == block]


def test_full_entropy_for_every_size_of_a_block() -> None:
    """At least (1 - 2^-32) · 256 bits, as NIST IR 8427 wants it; the worst is where the docstring says."""
    losses = {}
    for block in range(41, 1025):
        assert len(extremes(block)) >= 2
        entropies = [output_entropy_by_the_book(8 * block, 256, 256, block * h) for h in extremes(block)]
        losses[block] = 256 - min(entropies)
        assert 0 < losses[block] <= 256 * Decimal(2) ** -32
    assert max(losses, key=lambda block: losses[block]) == 41
    assert losses[41] <= 256 * Decimal(2) ** -39
    assert all(loss <= 256 * Decimal(2) ** -71 for block, loss in losses.items() if block >= 50)
    assert extremes(41)[-1] == JUST_BELOW_8


def test_the_docstrings_table() -> None:
    rows = re.findall(
        r"^\| ([\d.]+) \| (\d+) \| ([\d,]+) \| ([\d.]+) \| 2\^-([\d.]+) \|$", conditioning.__doc__ or "", re.M
    )
    assert len(rows) == 6
    for h, block, n_in, h_in, lost in rows:
        assert int(block) == noise_per_block(float(h))
        assert int(n_in.replace(",", "")) == 8 * int(block)
        assert float(h_in) == pytest.approx(int(block) * float(h))
        loss = 256 - output_entropy_by_the_book(8 * int(block), 256, 256, float(h_in))
        assert f"{-math.log2(loss):.1f}" == lost


@given(
    n_in=st.integers(8, 5120), n_out=st.sampled_from([128, 256, 512]), nw=st.sampled_from([128, 256]),
    share=st.floats(0.0625, 1.0),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_output_entropy_is_the_standards(n_in: int, n_out: int, nw: int, share: float) -> None:
    h_in = n_in * share
    exact = output_entropy_by_the_book(n_in, n_out, nw, h_in)
    assert output_entropy(n_in, n_out, nw, h_in) == pytest.approx(float(exact), rel=1e-13, abs=1e-12)


def test_output_entropy_where_a_float_would_underflow() -> None:
    assert output_entropy(5120, 256, 256, 5120) == 256
    assert output_entropy(5120, 256, 256, 40) == pytest.approx(40)
    assert output_entropy(256, 256, 256, 256) == 256 - math.log2(1 + math.sqrt(512 * math.log(2)))


@pytest.mark.parametrize("h_in", [0.0, -1.0, 320.5, math.nan])
def test_no_input_carries_more_than_its_bits(h_in: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and at most n_in, which is 320"):
        output_entropy(320, 256, 256, h_in)


# --- what comes out ------------------------------------------------------------------------------------


def test_a_block_becomes_its_sha_256() -> None:
    """FIPS 180-4's SHA-256 of 80 zeros, as sha256sum prints it."""
    out = Conditioner(4.0).feed(bytearray(80))
    assert out.hex() == "5b6fb58e61fa475939767d68a446f97f1bff02c0e5935a3ea8bb51e6515783d8"


def test_every_block_is_hashed_by_itself() -> None:
    given_ = noise(10 * 46 + 45)
    conditioner = Conditioner(7.0)
    assert conditioner.feed(given_) == digests(given_, 46)
    assert conditioner.held == 45
    assert conditioner.feed(bytearray(b"\x01")) == digests(given_[460:] + b"\x01", 46)
    assert conditioner.held == 0


def test_what_does_not_fill_a_block_gives_nothing() -> None:
    conditioner = Conditioner(0.5)
    assert conditioner.feed(noise(639)) == b""
    assert conditioner.feed(bytearray()) == b""
    assert len(conditioner.feed(memoryview(noise(1)))) == OUTPUT


@given(h=claims, sizes=st.lists(st.integers(0, 300), max_size=12), seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_however_it_is_chopped(h: float, sizes: list[int], seed: int) -> None:
    given_, out, position = noise(sum(sizes), seed), bytearray(), 0
    conditioner, block = Conditioner(h), noise_per_block(h)
    for size in sizes:
        out += conditioner.feed(memoryview(given_)[position : position + size])
        position += size
        assert position == len(out) // OUTPUT * block + conditioner.held
        assert len(out) * 10 <= position * Fraction(h), "no byte without its 8 bits, and 2 more"
    assert out == digests(given_, block) == Conditioner(h).feed(given_)


# --- quiet ---------------------------------------------------------------------------------------------


def test_a_block_is_wiped_once_hashed() -> None:
    conditioner = Conditioner(4.0)
    conditioner.feed(noise(79))
    assert any(conditioner._block)
    conditioner.feed(noise(1))
    assert not any(conditioner._block)


def test_the_input_is_left_to_the_caller_and_the_output_is_the_callers() -> None:
    given_ = noise(80)
    out = Conditioner(4.0).feed(given_)
    assert given_ == noise(80)
    out[:] = bytes(len(out))
    given_.clear()  # no view of it is left open


def test_restart_wipes_and_begins_a_new_block() -> None:
    conditioner = Conditioner(4.0)
    conditioner.feed(noise(50))
    assert conditioner.restart() == 50
    assert not any(conditioner._block)
    assert (conditioner.held, conditioner.restart()) == (0, 0)
    given_ = noise(80, seed=2)
    assert conditioner.feed(given_) == digests(given_, 80)


def test_no_noise_in_words() -> None:
    conditioner = Conditioner(4.0)
    conditioner.feed(bytearray(b"\xde\xad" * 20))
    assert repr(conditioner) == "Conditioner(ratio=(32, 80), held=40)"
