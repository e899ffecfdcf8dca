# SPDX-License-Identifier: Apache-2.0
"""What a domain is promised: reservation, weight, limit and burst.

The words are mClock's (Gulati et al., OSDI 2010): while a domain asks, its rate is
clamp(λ · weight, reservation, limit) with one λ for all. Rates are whole bytes per second, sizes
whole bytes; None as a limit means "none".

Rules are tried in the order of the configuration. The first that matches a domain names its quota;
a key which that rule leaves unset comes from the next that matches and sets it, at last from
DEFAULT_QUOTA.

A domain's metadata comes before all rules. Whoever may edit a domain writes it, so each key that it sets
is capped by the first matching rule that sets the `max_` of that key; what it leaves unset comes from the
rules, whose owner needs no cap.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Callable

from .spelling import (
    RATE_MAX,
    WEIGHT_RANGE,
    QuotaError,
    format_rate,
    format_size,
    parse_limit,
    parse_rate,
    parse_size,
    parse_weight,
    shown,
)

BURST_RANGE = (64, 1 << 30)  # a seed must fit, or a limited domain could never be seeded at once
_RANGES = {
    "reservation": (0, RATE_MAX),
    "weight": WEIGHT_RANGE,
    "limit": (1, RATE_MAX),
    "burst": BURST_RANGE,
}
KEYS = tuple(_RANGES)


class Unset(enum.Enum):
    """The type of UNSET, which is not None because None is a limit: "none"."""

    UNSET = "unset"


UNSET = Unset.UNSET


def _check(quota: Quota | QuotaRule) -> None:
    for key, (low, high) in _RANGES.items():
        for spelled in (key, f"max_{key}"):
            value = getattr(quota, spelled, None)
            if isinstance(value, int) and not low <= value <= high:
                found, least, most = map(_SPELLING[key][1], (value, low, high))
                raise QuotaError(f"quota {quota.name!r}: {spelled} is {found}; allowed: {least} to {most}")
    reservation, limit = quota.reservation, quota.limit
    if reservation is not None and isinstance(limit, int) and reservation > limit:
        raise QuotaError(
            f"quota {quota.name!r}: reservation {format_rate(reservation)} exceeds limit"
            f" {format_rate(limit)}; allowed: a reservation up to the limit"
        )


@dataclass(frozen=True)
class Quota:
    """One domain's quota, complete. Raises QuotaError if the numbers contradict each other."""

    name: str = "built-in"
    reservation: int = 0
    weight: int = 100
    limit: int | None = None
    burst: int = 4096

    def __post_init__(self) -> None:
        _check(self)


DEFAULT_QUOTA = Quota()
UUID, SERVE = "uuid:", "serve:"  # what a pattern begins with that is not over a domain's name
METADATA = "metadata"  # the name of a quota that a domain's metadata sets anything of


@dataclass(frozen=True)
class QuotaRule:
    """One `[[quota]]` of the configuration, or one domain's metadata.

    `match` holds globs over the domain's name (`*`, `?`, `[…]`, case counts), `uuid:` followed by a UUID or a
    glob over it, and `serve:` followed by the name of a [[serve]] or a glob over it, which besides that only
    `*` matches. A key that is None, or a limit that is UNSET, inherits. So does a `max_` that is UNSET; None
    is "no cap".
    Raises QuotaError if its own numbers contradict each other.
    """

    name: str
    match: tuple[str, ...]
    reservation: int | None = None
    weight: int | None = None
    limit: int | Unset | None = UNSET
    burst: int | None = None
    max_reservation: int | Unset | None = UNSET
    max_weight: int | Unset | None = UNSET
    max_limit: int | Unset | None = UNSET
    max_burst: int | Unset | None = UNSET

    def __post_init__(self) -> None:
        _check(self)

    def given(self) -> dict[str, Any]:
        """Those of reservation, weight, limit and burst that it sets; a limit of None is "none"."""
        values = {key: getattr(self, key) for key in KEYS}
        defaults = {key: getattr(QuotaRule, key) for key in KEYS}
        return {key: value for key, value in values.items() if value is not defaults[key]}

    def matches(self, domain_name: str, uuid: str) -> bool:
        """Whether this rule says anything about the domain, or about a [[serve]]: see `serve_id`."""
        return any(_matches(pattern, domain_name, uuid) for pattern in self.match)


def serve_id(name: str) -> str:
    """What a [[serve]] has as its name and in the place of a UUID: no domain can have it as both."""
    return SERVE + name


def _matches(pattern: str, domain_name: str, uuid: str) -> bool:
    if uuid.startswith(SERVE):  # what was meant for VMs, "*-1", is not for it
        return pattern == "*" or (pattern.startswith(SERVE) and fnmatchcase(uuid, pattern))
    if pattern.startswith(SERVE):
        return False
    if pattern.startswith(UUID):
        return fnmatchcase(uuid.lower(), pattern[len(UUID) :].lower())
    return fnmatchcase(domain_name, pattern)


def resolve(
    rules: Iterable[QuotaRule], domain_name: str, uuid: str, metadata: QuotaRule | None = None
) -> Quota:
    """The quota of a domain; its name is "metadata" if that sets anything, else the first matching rule's.

    Never raises: a reservation and a smaller limit that come from two different places meet here at
    the limit, because a domain's name, which its owner chooses, must not be able to stop the daemon.
    `check_rules` refuses the cases that the rules alone give away.
    """
    matching = [rule for rule in rules if rule.matches(domain_name, uuid)]
    merged = vars(DEFAULT_QUOTA).copy()
    for rule in reversed(matching):  # the first that sets a key wins it
        merged.update(rule.given(), name=rule.name)
    if metadata is not None and metadata.given():
        capped = {key: _capped(key, value, matching) for key, value in metadata.given().items()}
        merged.update(capped, name=metadata.name)
    if merged["limit"] is not None:
        merged["reservation"] = min(merged["reservation"], merged["limit"])
    return Quota(**merged)


def parse_metadata(attributes: Iterable[tuple[str, str]]) -> QuotaRule:
    """A rule named "metadata" from the attributes of a <netrng:quota> element, which are others' text.

    Raises QuotaError, in one printable line of bounded length.
    """
    values: dict[str, Any] = {}
    for key, text in attributes:
        if key not in KEYS:
            raise QuotaError(f"unknown attribute {shown(key)}; allowed: {', '.join(KEYS)}")
        try:
            values[key] = _SPELLING[key][0](text)
        except QuotaError as error:
            raise QuotaError(f"{key}: found {error}") from None
    return QuotaRule(METADATA, (), **values)


def format_metadata(rule: QuotaRule) -> tuple[tuple[str, str], ...]:
    """The reverse of `parse_metadata`: the keys that the rule sets, in their shortest exact spelling."""
    return tuple((key, _SPELLING[key][1](value)) for key, value in rule.given().items())


def check_rules(rules: Sequence[QuotaRule]) -> None:
    """Raises QuotaError if a rule's reservation exceeds the limit that it inherits from a later "*"."""
    for position, rule in enumerate(rules):
        inherited = [later for later in rules[position + 1 :] if "*" in later.match]
        if rule.reservation is None:
            continue
        for heir in (rule, *inherited):
            if isinstance(heir.limit, int) and rule.reservation > heir.limit:
                raise QuotaError(
                    f"quota {rule.name!r}: reservation {format_rate(rule.reservation)} exceeds the limit"
                    f" {format_rate(heir.limit)} inherited from {heir.name!r};"
                    " allowed: a reservation up to the limit"
                )
            if heir.limit is not UNSET:
                break


# How each key is read and written.
_SPELLING: dict[str, tuple[Callable[[object], Any], Callable[[Any], str]]] = {
    "reservation": (parse_rate, format_rate),
    "weight": (parse_weight, str),
    "limit": (parse_limit, format_rate),
    "burst": (parse_size, format_size),
}


def _capped(key: str, value: int | None, matching: Sequence[QuotaRule]) -> int | None:
    """``value``, or less: the cap of the first rule that has one. None is more than any number."""
    caps = (getattr(rule, f"max_{key}") for rule in matching)
    cap = next((cap for cap in caps if cap is not UNSET), None)
    return min((number for number in (value, cap) if number is not None), default=None)
