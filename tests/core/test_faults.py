# SPDX-License-Identifier: Apache-2.0
"""Are the gallery's broken sources broken as they say, and not otherwise?"""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
from bench.faults import FAULTS, PIECE, biased_bytes


def noise(name: str, size: int, seed: int = 1) -> bytes:
    """The first bytes of a broken source."""
    found = bytearray()
    for piece in FAULTS[name](Random(seed)):
        assert 0 < len(piece) <= PIECE
        found += piece
        if len(found) >= size:
            break
    return bytes(found[:size])


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_the_same_for_the_same_random(name: str) -> None:
    assert noise(name, 5000) == noise(name, 5000)
    if "counter, 00" not in name:
        assert noise(name, 5000, seed=1) != noise(name, 5000, seed=2)


@pytest.mark.parametrize("size", [16, 256, 512, 4096])
def test_a_block_is_repeated(size: int) -> None:
    found = noise(f"a block of {size:,} bytes for ever", 4 * size)
    assert found == found[:size] * 4
    assert found[: size // 2] != found[size // 2 : size]


def test_a_counter_counts() -> None:
    found = noise("a counter, 00 to ff", 1000)
    assert all((a + 1) % 256 == b for a, b in zip(found, found[1:]))


def test_one_bit_is_stuck_and_only_one() -> None:
    for seed in range(8):
        found = noise("one bit stuck, the other seven good", 4096, seed)
        ones = [sum(byte >> bit & 1 for byte in found) for bit in range(8)]
        assert sum(count in (0, 4096) for count in ones) == 1
        assert len(set(found)) == 128


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("stuck at a value", 1), ("period 2: two values in turn", 2), ("the upper four bits always 0", 16),
        ("ASCII hex digits", 16), ("Base64 text", 64), ("values 0 to 249 only", 250),
        ("nothing wrong (the control)", 256), ("SHA-256 of a counter", 256),
    ],
)  # fmt: skip
def test_all_values_are_equally_likely(name: str, values: int) -> None:
    counts = Counter(noise(name, 1 << 16))
    assert len(counts) == values
    expected = (1 << 16) / values
    assert all(abs(count - expected) < 6 * math.sqrt(expected) for count in counts.values())


@pytest.mark.parametrize("share", [0.0, 0.5, 0.55, 0.9, 1.0])
def test_a_bias_is_that_of_every_bit(share: float) -> None:
    size = 1 << 14
    found = biased_bytes(Random(1), share, size)
    for bit in range(8):
        ones = sum(byte >> bit & 1 for byte in found)
        assert abs(ones - share * size) <= 5 * math.sqrt(size * share * (1 - share))


def test_a_degrading_source_begins_good_and_ends_stuck() -> None:
    found = noise("ones from 50 to 100 % within 64 KiB", (1 << 16) + 64)
    ones = [
        sum(bin(byte).count("1") for byte in found[i : i + 8192]) / 65536 for i in range(0, 1 << 16, 8192)
    ]
    assert ones == pytest.approx([0.53 + i / 16 for i in range(8)], abs=0.02)
    assert found[-64:] == b"\xff" * 64
