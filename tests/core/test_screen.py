# SPDX-License-Identifier: Apache-2.0
"""The screen, held against the tests one window at a time in plain words."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netrng_hostd.core import screen as screen_module
from netrng_hostd.core.blocktest import Cutoffs
from netrng_hostd.core.cutoffs import BYTE_WINDOW
from netrng_hostd.core.screen import Screen

MAX_WINDOWS = 64
NEVER = Cutoffs(-1, 1 << 20)


def screen(rct: int = 129, apt_bytes: int = 513, apt_bits: int = 1025, block: Cutoffs = NEVER) -> Screen:
    """One that refuses nothing but what a test says."""
    return Screen(rct, apt_bytes, apt_bits, block, MAX_WINDOWS)


def noise(windows: int, seed: int = 1) -> bytearray:
    return bytearray(random.Random(seed).randbytes(windows * BYTE_WINDOW))


def runs(data: bytes | bytearray, before: int, run: int) -> tuple[int, int]:
    """How long the last run is, and the longest."""
    longest = 0
    for byte in data:
        run = run + 1 if byte == before else 1
        before = byte
        longest = max(longest, run)
    return run, longest


def passes(tests: Screen, data: bytes | bytearray, before: int = 0, run: int = 1) -> int:
    return tests.passes(memoryview(data), before, run)


@pytest.mark.parametrize("windows", [1, 2, 7, MAX_WINDOWS])
def test_good_noise_passes_and_its_last_run_is_told(windows: int) -> None:
    data = noise(windows)
    tests = Screen(6, 19, 625, Cutoffs(1278, 1976), MAX_WINDOWS)
    for ending in range(1, 6):
        data[-ending:] = bytes([data[-6] ^ 0x55]) * ending
        assert passes(tests, data) == ending


@pytest.mark.parametrize("windows", [1, 5, MAX_WINDOWS])
def test_a_run_of_the_cutoff_is_refused_wherever_it_is(windows: int) -> None:
    size = windows * BYTE_WINDOW
    for place in (0, 1, size // 2 - 3, size - 6):
        data = noise(windows, seed=place)
        data[place : place + 6] = b"\x77" * 5 + b"\x12"
        assert passes(screen(rct=6), data, before=0x76)
        data[place : place + 6] = b"\x77" * 6
        assert not passes(screen(rct=6), data, before=0x76)


@pytest.mark.parametrize("run", range(1, 6))
def test_a_run_carried_in_counts(run: int) -> None:
    data = noise(2)
    data[:6] = b"\x77" * (5 - run) + bytes(range(1 + run))
    assert passes(screen(rct=6), data, 0x77, run)
    data[5 - run] = 0x77
    assert not passes(screen(rct=6), data, 0x77, run)
    assert passes(screen(rct=6), data, 0x76, run)


@pytest.mark.parametrize("window", [0, 3, 9])
def test_the_first_byte_of_each_window_is_counted(window: int) -> None:
    data = noise(10)
    at = slice(window * BYTE_WINDOW, (window + 1) * BYTE_WINDOW)
    part = data[at]
    first = part[0]
    part = part[:1] + bytes(value for value in part[1:] if value != first)
    part += bytes([first]) * (BYTE_WINDOW - len(part))
    count = part.count(first)
    while count < 18:
        part[-1 - 2 * count] = first
        count = part.count(first)
    data[at] = part
    assert passes(screen(apt_bytes=count + 1), data)
    assert not passes(screen(apt_bytes=count), data)


@pytest.mark.parametrize("window", [0, 5, 39])
@pytest.mark.parametrize("ones", [400, 624])
def test_the_ones_of_each_1024_bits_are_counted(window: int, ones: int) -> None:
    bits = [1] * ones + [0] * (1024 - ones)
    random.Random(3).shuffle(bits)
    data = noise(10)
    data[window * 128 : window * 128 + 128] = int("".join(map(str, bits)), 2).to_bytes(128, "big")
    assert passes(screen(apt_bits=625), data)
    assert not passes(screen(apt_bits=624), data)


@pytest.mark.parametrize("value", [0x00, 0xFF])
def test_nothing_overflows(value: int) -> None:
    data = (bytes([value]) * 511 + b"\x55") * 3
    assert passes(screen(rct=512), data, value ^ 1) == 1
    assert not passes(screen(rct=512), data, value)
    assert not passes(screen(rct=512, apt_bits=1024), data, value ^ 1)
    assert not passes(screen(rct=512, apt_bytes=511), data, value ^ 1)
    assert passes(screen(rct=512, block=Cutoffs(511 * 511, 511 * 511 + 2)), data, value ^ 1)
    assert not passes(screen(rct=512, block=Cutoffs(511 * 511 + 1, 1 << 20)), data, value ^ 1)
    assert not passes(screen(rct=512, block=Cutoffs(-1, 511 * 511 + 1)), data, value ^ 1)


@pytest.mark.parametrize("window", [0, 1, MAX_WINDOWS - 1])
def test_each_windows_sum_of_squares_is_bounded_on_both_sides(window: int) -> None:
    data = noise(MAX_WINDOWS)
    sums = [
        sum(count * count for count in Counter(data[i : i + BYTE_WINDOW]).values())
        for i in range(0, len(data), BYTE_WINDOW)
    ]
    assert passes(screen(block=Cutoffs(min(sums) - 1, max(sums) + 1)), data)
    assert not passes(screen(block=Cutoffs(min(sums), max(sums) + 1)), data)
    assert not passes(screen(block=Cutoffs(min(sums) - 1, max(sums))), data)
    one = data[window * BYTE_WINDOW : (window + 1) * BYTE_WINDOW]
    assert passes(screen(block=Cutoffs(sums[window] - 1, sums[window] + 1)), one)


@given(
    windows=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    values=st.sampled_from([1, 2, 3, 16, 256, 256]),
    before=st.integers(0, 3),
    run=st.integers(1, 4),
)
@settings(max_examples=60)
def test_runs_are_those_of_a_byte_by_byte_count(
    windows: int, seed: int, values: int, before: int, run: int
) -> None:
    rng = random.Random(seed)
    data = bytes(rng.randrange(values) for _ in range(windows * BYTE_WINDOW))
    last, longest = runs(data, before, run)
    for rct in {min(512, longest), min(512, longest + 1), run + 1}:
        if rct > run:
            assert passes(screen(rct=rct), data, before, run) == (last if longest < rct else 0)


def test_nothing_of_the_noise_is_left() -> None:
    tests = Screen(6, 19, 625, Cutoffs(1278, 1976), MAX_WINDOWS)
    untouched = tests._index.copy()
    for data in (noise(MAX_WINDOWS), noise(3), bytes(range(256)) * 8, bytes(1024)):
        passes(tests, data)
        assert not any(tests._equal)
        assert (tests._index == untouched).all()


class Remembered(bytearray):
    """A copy of the noise, and what became of it, for a look at both afterwards."""

    made: ClassVar[list[bytearray]] = []

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.made.append(self)

    def translate(self, *arguments: Any) -> bytearray:
        self.made.append(super().translate(*arguments))
        return self.made[-1]


def test_copies_and_counts_are_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = Screen(6, 19, 625, Cutoffs(1278, 1976), MAX_WINDOWS)
    counts = list[npt.NDArray[np.intp]]()
    bincount = np.bincount

    def remember(*arguments: Any) -> npt.NDArray[np.intp]:
        counts.append(bincount(*arguments))
        assert counts[-1].any()
        return counts[-1]

    monkeypatch.setattr(np, "bincount", remember)
    monkeypatch.setattr(screen_module, "bytearray", Remembered, raising=False)
    monkeypatch.setattr(Remembered, "made", [])
    assert passes(tests, noise(3))
    assert [len(made) for made in Remembered.made] == [3 * BYTE_WINDOW] * 2
    assert not any(map(any, Remembered.made))
    assert [each.any() for each in counts] == [False]
