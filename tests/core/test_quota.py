# SPDX-License-Identifier: Apache-2.0
"""Quotas: how they are written, which one a domain has, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netrng_hostd.core.quota import (
    DEFAULT_QUOTA,
    UNSET,
    Quota,
    QuotaRule,
    check_rules,
    format_metadata,
    parse_metadata,
    resolve,
    serve_id,
)
from netrng_hostd.core.spelling import (
    RATE_MAX,
    QuotaError,
    parse_cap,
    parse_limit,
    parse_rate,
)

UUID = "8b1f0000-0000-4000-8000-00000000000A"


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ({"reservation": 2000, "limit": 1000}, "reservation 2kB/s exceeds limit 1kB/s"),
        ({"reservation": -1}, "reservation is -1B/s; allowed: 0B/s to"),
        ({"weight": 0}, "weight is 0; allowed: 1 to 10000"),
        ({"weight": 10_001}, "weight is 10001"),
        ({"limit": 0}, "limit is 0B/s; allowed: 1B/s to"),
        ({"burst": 63}, "burst is 63B; allowed: 64B to 1GiB"),
        ({"max_reservation": -1}, "max_reservation is -1B/s; allowed: 0B/s to"),
        ({"max_weight": 10_001}, "max_weight is 10001; allowed: 1 to 10000"),
        ({"max_limit": 0}, "max_limit is 0B/s; allowed: 1B/s to"),
        ({"max_burst": 63}, "max_burst is 63B; allowed: 64B to 1GiB"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(numbers: dict[str, int], complaint: str) -> None:
    if not any(key.startswith("max_") for key in numbers):
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


def test_a_serve_has_a_pattern_of_its_own_which_no_domain_matches_whatever_its_name() -> None:
    rack, everyone = serve_id("rack-1"), QuotaRule("all", ("*",))
    for pattern in ("serve:rack-1", "serve:*", "serve:rack-?"):
        rule = QuotaRule("served", (pattern,))
        assert rule.matches(rack, rack)
        assert not rule.matches(rack, UUID), "a domain of that name"
        assert not rule.matches("rack-1", UUID)
    assert not QuotaRule("other", ("serve:rack-2",)).matches(rack, rack)
    assert not QuotaRule("domains", ("uuid:*", "rack-1", "*-1", "s*", "*rack*")).matches(rack, rack)
    assert everyone.matches(rack, rack)


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


# A domain's metadata

RATES = st.integers(min_value=0, max_value=RATE_MAX)
WEIGHTS = st.integers(min_value=1, max_value=10_000)
BURSTS = st.integers(min_value=64, max_value=1 << 30)
LIMITS = st.none() | RATES.filter(bool)


def numbers_that_agree(numbers: dict[str, Any]) -> bool:
    limit = numbers.get("limit")
    return limit is None or numbers.get("reservation", 0) <= limit


GIVEN = st.fixed_dictionaries(
    {}, optional={"reservation": RATES, "weight": WEIGHTS, "limit": LIMITS, "burst": BURSTS}
).filter(numbers_that_agree)
CAPS = st.fixed_dictionaries(
    {},
    optional={
        "max_reservation": st.none() | RATES,
        "max_weight": st.none() | WEIGHTS,
        "max_limit": LIMITS,
        "max_burst": st.none() | BURSTS,
    },
)
MATCHES = st.sampled_from([("*",), ("vm",), ("other",), ("uuid:8b1f*",)])


@st.composite
def rule_lists(draw: st.DrawFn) -> list[QuotaRule]:
    return [
        QuotaRule(f"rule-{place}", draw(MATCHES), **draw(GIVEN), **draw(CAPS))
        for place in range(draw(st.integers(min_value=0, max_value=4)))
    ]


def metadata(**numbers: Any) -> QuotaRule:
    return QuotaRule("metadata", (), **numbers)


def smaller(one: int | None, other: int | None) -> int | None:
    return one if other is None or (one is not None and one < other) else other


@given(rule_lists(), GIVEN)
def test_metadata_wins_key_by_key_up_to_the_first_cap_that_matches(
    rules: list[QuotaRule], numbers: dict[str, Any]
) -> None:
    """Never raises, whatever the rules and the metadata say."""
    quota, of_file = resolve(rules, "vm", UUID, metadata(**numbers)), resolve(rules, "vm", UUID)
    expected = {key: getattr(of_file, key) for key in ("weight", "limit", "burst")}
    # What the file says before it meets a limit, which the metadata may lift.
    told = (rule.reservation for rule in rules if rule.matches("vm", UUID))
    expected["reservation"] = next((rate for rate in told if rate is not None), 0)
    for key, value in numbers.items():
        caps = [getattr(rule, "max_" + key) for rule in rules if rule.matches("vm", UUID)]
        expected[key] = smaller(value, next((cap for cap in caps if cap is not UNSET), None))
    expected["reservation"] = smaller(expected["reservation"], expected["limit"])
    assert quota == Quota("metadata" if numbers else of_file.name, **expected)


@given(rule_lists())
def test_without_metadata_caps_do_not_count(rules: list[QuotaRule]) -> None:
    uncapped = [QuotaRule(rule.name, rule.match, **rule.given()) for rule in rules]
    for silent in (None, metadata()):
        assert resolve(rules, "vm", UUID, silent) == resolve(uncapped, "vm", UUID)


def test_metadata_and_file_meet_key_by_key() -> None:
    rules = [
        QuotaRule("databases", ("db-*",), reservation=1000, max_weight=500),
        QuotaRule("default", ("*",), weight=50, limit=9000, max_weight=1, max_limit=4000, max_burst=None),
    ]
    own = metadata(weight=10_000, burst=1 << 20)
    assert resolve(rules, "db-1", UUID, own) == Quota("metadata", 1000, 500, 9000, 1 << 20)
    assert resolve(rules, "web", UUID, own) == Quota("metadata", 0, 1, 9000, 1 << 20)
    assert resolve(rules, "web", UUID, metadata(limit=None)).limit == 4000, '"none" is more than any cap'
    assert resolve(rules, "db-1", UUID, metadata(limit=500)) == Quota("metadata", 500, 50, 500, 4096)
    assert resolve(rules, "web", UUID, metadata(reservation=5000, limit=5000)) == Quota(
        "metadata", 4000, 50, 4000, 4096
    )
    assert resolve([], "db-1", UUID, own) == Quota("metadata", 0, 10_000, None, 1 << 20)


def test_a_cap_is_inherited_and_none_is_no_cap() -> None:
    default = QuotaRule("default", ("*",), max_reservation=0)
    own = metadata(reservation=700)
    assert resolve([QuotaRule("silent", ("vm",)), default], "vm", UUID, own).reservation == 0
    free = QuotaRule("free", ("vm",), max_reservation=parse_cap(parse_rate)("none"))
    assert resolve([free, default], "vm", UUID, own).reservation == 700


@given(GIVEN)
def test_metadata_is_read_back_as_it_is_written(numbers: dict[str, Any]) -> None:
    rule = metadata(**numbers)
    assert rule.given() == numbers
    assert parse_metadata(format_metadata(rule)) == rule


def test_metadata_is_written_as_in_the_configuration() -> None:
    pairs = (("weight", "300"), ("reservation", "1 KiB/s"), ("limit", "none"), ("burst", "8192"))
    rule = parse_metadata(pairs)
    assert rule == metadata(reservation=1024, weight=300, limit=None, burst=8192)
    assert format_metadata(rule) == (
        ("reservation", "1KiB/s"), ("weight", "300"), ("limit", "none"), ("burst", "8KiB"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("attributes", "complaint"),
    [
        ({"wieght": "3"}, "unknown attribute 'wieght'; allowed: reservation, weight, limit, burst"),
        ({"max_limit": "3"}, "unknown attribute 'max_limit'"),
        ({"name": "root"}, "unknown attribute 'name'"),
        ({"weight": "0"}, "weight: found weight '0'; allowed: a whole number from 1 to 10000"),
        ({"limit": "fast"}, "limit: found rate 'fast'; allowed:"),
        ({"reservation": "none"}, "reservation: found rate 'none'; allowed:"),
        ({"burst": "1KiB/s"}, "burst: found size '1KiB/s'; allowed:"),
        ({"burst": "63"}, "quota 'metadata': burst is 63B; allowed: 64B to 1GiB"),
        ({"reservation": "2", "limit": "1"}, "quota 'metadata': reservation 2B/s exceeds limit 1B/s"),
    ],
)
def test_malformed_metadata_is_refused_and_the_text_says_found_and_allowed(
    attributes: dict[str, str], complaint: str
) -> None:
    with pytest.raises(QuotaError) as refused:
        parse_metadata(attributes.items())
    assert str(refused.value).startswith(complaint)


@given(st.lists(st.tuples(st.text() | st.sampled_from(["weight", "limit", "burst"]), st.text())))
def test_whatever_metadata_holds_the_complaint_is_one_short_printable_line(
    attributes: list[tuple[str, str]]
) -> None:
    try:
        parse_metadata(attributes)
    except QuotaError as refused:
        assert str(refused).isprintable()
        assert len(str(refused)) < 250
