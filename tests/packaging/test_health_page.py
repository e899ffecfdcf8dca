# SPDX-License-Identifier: Apache-2.0
"""docs/health.md: its limits, its rates, and what of the gallery can be measured again in some seconds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from bench import gallery
from bench.faults import FAULTS
from bench.gallery import ALL, TESTS, TRIALS

from netrng_hostd.core.blocktest import block_cutoffs
from netrng_hostd.core.conditioning import noise_per_block
from netrng_hostd.core.cutoffs import apt_cutoff, bits_cutoff, rct_cutoff

PAGE = Path(__file__).parents[2] / "docs/health.md"
TOLD = PAGE.read_text(encoding="utf-8")

# Seen soon by all tests together, by each test alone.
SOON = (
    "stuck at a value", "period 2: two values in turn", "a counter, 00 to ff", "a block of 16 bytes for ever",
    "one bit stuck, the other seven good", "bits that are 1 in 70 %",
    "the upper four bits always 0", "ASCII hex digits", "Base64 text",
)  # fmt: skip
SOON_BY_EACH = ("stuck at a value", "bits that are 1 in 90 %")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(title: str) -> list[list[str]]:
    """The rows of the last table below a heading, without its head."""
    section = TOLD.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = section.rpartition("|---|")[2].splitlines()
    return [cells(row) for row in rows if row.startswith("| ")]


def test_the_page_has_every_fault_and_every_test() -> None:
    lines = gallery.between_markers(TOLD).splitlines()
    rows = [cells(line)[0] for line in lines if line.startswith("| ")]
    assert rows == ["source", *FAULTS] * 2
    assert [cells(line)[1:] for line in lines if line.startswith("| source")][1] == list(TESTS)
    assert f"Each line is {TRIALS} trials." in TOLD


@pytest.mark.parametrize("name", SOON)
def test_the_page_says_what_all_tests_together_do_now(name: str) -> None:
    row = gallery.row_of_all(name, [gallery.run(name, number, [ALL]) for number in range(TRIALS)])
    assert row in TOLD.splitlines(), "run make gallery"


@pytest.mark.parametrize("name", SOON_BY_EACH)
def test_the_page_says_what_each_test_alone_does_now(name: str) -> None:
    row = gallery.row_of_each(name, gallery.measure(name, TRIALS))
    assert row in TOLD.splitlines(), "run make gallery"


def test_the_limits_are_those_of_the_tests() -> None:
    rows = table("The four tests")
    assert [row[0] for row in rows] == ["8", "7", "6", "4", "2", "1", "0.5"]
    for row in rows:
        h = float(row[0])
        low, high = block_cutoffs(40, h)
        bytes_, bits = apt_cutoff(40, h, 512), bits_cutoff(40, h)
        assert row[1:] == [str(rct_cutoff(40, h)), str(bytes_), f"{bits:,}", f"≤ {low:,} or ≥ {high:,}"]


def in_seconds(words: str) -> float:
    size, unit = words.split()
    return float(size.replace(",", "")) * {"hours": 3600, "days": 86400, "years": 86400 * 365.25}[unit]


def first_again(window: int, h: int) -> float:
    """P(a window's first value occurs so often in it that it is an alarm); all values equally likely."""
    others, p, least = window - 1, 0.5**h, apt_cutoff(40, h, window) - 1
    return sum(math.comb(others, k) * p**k * (1 - p) ** (others - k) for k in range(least, others + 1))


def test_the_rates_of_false_alarms_are_those_of_the_formula() -> None:
    of_bytes, of_bits = first_again(512, 8), first_again(1024, 1)
    assert f"2^{math.log2(of_bytes):.1f} and 2^{math.log2(of_bits):.1f} for `adaptive" in TOLD
    per_byte = 2.0**-40 + of_bytes / 512 + of_bits / 128 + 2.0**-40 / 512
    assert f"together {per_byte * 2**40:.2f} · 2^-40 per byte" in TOLD
    for source, per_day, every, quarantined in table("False alarms"):
        size, unit = source.split()
        rate = float(size) * {"kB/s": 1e3, "MB/s": 1e6}[unit] * per_byte
        assert float(per_day) == pytest.approx(86400 * rate, rel=0.015)
        assert in_seconds(every) == pytest.approx(1 / rate, rel=0.015)
        second = 1 - math.exp(-3600 * rate)  # another one within the hour after it
        assert in_seconds(quarantined) == pytest.approx(1 / (rate * second), rel=0.015)


def test_what_conditioning_leaves_is_what_the_conditioner_leaves() -> None:
    first, *rows = table("Less than full entropy")
    assert first == ["8", "32 (not conditioned)", "10,000 B/s"]
    for h, block, left in rows:
        assert int(block) == noise_per_block(float(h))
        assert left == f"{10_000 * 32 // int(block):,} B/s"
