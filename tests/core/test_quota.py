# SPDX-License-Identifier: Apache-2.0
"""Quotas: how they are written, which one a domain has, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netrng_hostd.core.quota import (
    DEFAULT_QUOTA,
    RATE_MAX,
    UNSET,
    Quota,
    QuotaError,
    QuotaRule,
    check_rules,
    format_rate,
    format_size,
    parse_limit,
    parse_rate,
    parse_size,
    parse_weight,
    resolve,
)

UUID = "8b1f0000-0000-4000-8000-00000000000A"


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


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ({"reservation": 2000, "limit": 1000}, "reservation 2kB/s exceeds limit 1kB/s"),
        ({"reservation": -1}, "reservation is -1; allowed: 0 to"),
        ({"weight": 0}, "weight is 0; allowed: 1 to 10000"),
        ({"weight": 10_001}, "weight is 10001"),
        ({"limit": 0}, "limit is 0; allowed: 1 to"),
        ({"burst": 63}, "burst is 63; allowed: 64 to"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(numbers: dict[str, int], complaint: str) -> None:
    with pytest.raises(QuotaError, match=f"quota 'db': {complaint}"):
        Quota("db", **numbers)
    with pytest.raises(QuotaError, match=f"quota 'db': {complaint}"):
        QuotaRule("db", ("*",), **numbers)


def test_a_reservation_may_equal_its_limit() -> None:
    assert Quota("db", reservation=1000, limit=1000).limit == 1000


def test_without_a_rule_the_built_in_quota_holds() -> None:
    assert resolve([], "vm", UUID) == DEFAULT_QUOTA == Quota("built-in", 0, 100, None, 4096)


def test_the_first_match_wins_and_unset_keys_come_from_the_next_that_matches() -> None:
    rules = [
        QuotaRule("web", ("web-*",), weight=7),
        QuotaRule("databases", ("db-*", "uuid:8b1f*"), reservation=1024, weight=300),
        QuotaRule("default", ("*",), reservation=5, weight=50, limit=9000),
    ]
    assert resolve(rules, "db-1", "") == Quota("databases", 1024, 300, 9000, 4096)
    assert resolve(rules, "web-1", "") == Quota("web", 5, 7, 9000, 4096)
    assert resolve(rules, "DB-1", "") == Quota("default", 5, 50, 9000, 4096)
    assert resolve(rules, "other", UUID).name == "databases"
    assert resolve(rules[:1], "other", UUID) == DEFAULT_QUOTA


def test_a_uuid_matches_in_either_case_and_a_name_does_not_match_a_uuid_pattern() -> None:
    rule = QuotaRule("one", (f"uuid:{UUID}",))
    assert rule.matches("any", UUID.lower())
    assert not rule.matches(UUID, "0")


def test_a_limit_of_none_is_a_setting_and_unset_inherits() -> None:
    default = QuotaRule("default", ("*",), limit=500)
    free = QuotaRule("free", ("vm",), limit=parse_limit("none"))
    silent = QuotaRule("silent", ("vm",))
    assert silent.limit is UNSET
    assert resolve([free, default], "vm", UUID).limit is None
    assert resolve([silent, default], "vm", UUID).limit == 500


def test_two_rules_that_disagree_at_run_time_meet_at_the_limit() -> None:
    rules = [QuotaRule("db", ("db-*",), reservation=900), QuotaRule("test", ("*-test",), limit=300)]
    check_rules(rules)  # whether a domain matches both cannot be known
    assert resolve(rules, "db-test", UUID) == Quota("db", 300, 100, 300, 4096)


@pytest.mark.parametrize(
    ("between", "refused"),
    [(UNSET, True), (None, False), (1000, False), (899, True)],
    ids=["silent", "none", "room", "short"],
)
def test_a_reservation_above_the_limit_inherited_from_a_catch_all_is_refused(
    between: int | None, refused: bool
) -> None:
    rules = [
        QuotaRule("weighted", ("x",), weight=5),
        QuotaRule("db", ("db-*",), reservation=900),
        QuotaRule("partial", ("web-*",), limit=1),
        QuotaRule("between", ("*",), limit=between),
        QuotaRule("default", ("*",), limit=300),
    ]
    if not refused:
        check_rules(rules)
        return
    with pytest.raises(QuotaError, match=r"quota 'db': reservation 900B/s exceeds the limit .* inherited"):
        check_rules(rules)
