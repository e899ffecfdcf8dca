# SPDX-License-Identifier: Apache-2.0
"""How rates, sizes and weights are written and read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netrng_hostd.core.spelling import (
    RATE_MAX,
    QuotaError,
    format_rate,
    format_size,
    parse_cap,
    parse_limit,
    parse_rate,
    parse_size,
    parse_weight,
    printable,
    shown,
)


@pytest.mark.parametrize(
    ("written", "rate"),
    [
        (100, 100),
        (0, 0),
        ("100", 100),
        ("5B/s", 5),
        ("10KiB/s", 10240),
        ("2kB/s", 2000),
        ("1MiB/s", 1 << 20),
        ("3MB/s", 3_000_000),
        ("1GiB/s", 1 << 30),
        ("1GB/s", 10**9),
        (" 1.5 KiB/s ", 1536),
        ("0.001kB/s", 1),
        ("7/s", 7),
    ],
)
def test_a_rate_is_written_as_bytes_or_with_a_unit(written: object, rate: int) -> None:
    assert parse_rate(written) == rate


@pytest.mark.parametrize(
    "written",
    [-1, "-1", 1.5, True, None, [], "", "/s", "fast", "1KiB", "1kb/s", "1KB/s", "1K/s", "0.5B/s", "1e3",
     "1.5", "10KiB/s/s", "1\n0", "²", "٣", RATE_MAX + 1, "2000GiB/s", "9" * 5000, b"100"],
)  # fmt: skip
def test_a_rate_that_is_none_is_refused_and_the_text_says_found_and_allowed(written: object) -> None:
    with pytest.raises(QuotaError, match=r"^rate .*; allowed: .*bytes per second as") as refused:
        parse_rate(written)
    text = str(refused.value)
    assert repr(written)[:57] in text
    assert len(text) < 250
    assert "\n" not in text


def test_a_limit_is_a_rate_or_none() -> None:
    assert parse_limit("none") is None
    assert parse_limit("1KiB/s") == 1024
    with pytest.raises(QuotaError, match=r'limit 0; allowed: .*at least 1, or "none"'):
        parse_limit(0)
    with pytest.raises(QuotaError, match="rate 'None'"):
        parse_limit("None")


@pytest.mark.parametrize(("written", "size"), [(512, 512), ("512", 512), ("64KiB", 65536), ("1MB", 10**6)])
def test_a_size_is_written_without_per_second(written: object, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize("written", ["64KiB/s", -5, "0.3", None, False])
def test_a_size_that_is_none_is_refused(written: object) -> None:
    with pytest.raises(QuotaError, match=r"^size .*; allowed: .*bytes as 512"):
        parse_size(written)


@pytest.mark.parametrize(("written", "weight"), [(1, 1), ("300", 300), (10_000, 10_000)])
def test_a_weight_is_a_whole_number(written: object, weight: int) -> None:
    assert parse_weight(written) == weight


@pytest.mark.parametrize("written", [0, "10001", -3, "1.0", True, None, "", "9" * 5000])
def test_a_weight_out_of_range_is_refused(written: object) -> None:
    with pytest.raises(QuotaError, match=r"^weight .*; allowed: a whole number from 1 to 10000"):
        parse_weight(written)


@given(st.integers(min_value=0, max_value=RATE_MAX))
def test_what_is_printed_can_be_read_back(rate: int) -> None:
    assert parse_rate(format_rate(rate)) == rate
    assert parse_size(format_size(rate)) == rate


def test_the_printed_form_is_short_and_exact() -> None:
    assert [format_rate(rate) for rate in (None, 0, 100, 1536, 2000, 10240, 1 << 20)] == [
        "none", "0B/s", "100B/s", "1536B/s", "2kB/s", "10KiB/s", "1MiB/s",
    ]  # fmt: skip


def test_a_cap_is_written_as_its_key_is_or_none() -> None:
    assert parse_cap(parse_rate)("1KiB/s") == 1024
    assert parse_cap(parse_weight)(" none ") is None
    with pytest.raises(QuotaError, match=r"^weight 0; allowed: .*, or \"none\"$"):
        parse_cap(parse_weight)(0)


def test_what_somebody_else_wrote_is_shown_in_bounds() -> None:
    assert shown("a\nb\x1b[2J\u202e") == r"'a\nb\x1b[2J\u202e'"
    assert shown("x" * 58) == repr("x" * 58)
    assert shown("x" * 59) == "'" + "x" * 56 + "…"


def test_printable() -> None:
    assert printable("größe 漢字 ok") == "größe 漢字 ok"
    assert printable("\x9b31m\u2028\u00ad") == r"\x9b31m\u2028\xad"
    assert printable(None) == "None"
