# SPDX-License-Identifier: Apache-2.0
"""What a domain is promised: reservation, weight, limit and burst, and how they are written.

The words are mClock's (Gulati et al., OSDI 2010): while a domain asks, its rate is
clamp(λ · weight, reservation, limit) with one λ for all. Rates are whole bytes per second, sizes
whole bytes; None as a limit means "none".

Rules are tried in the order of the configuration. The first that matches a domain names its quota;
a key which that rule leaves unset comes from the next that matches and sets it, at last from
DEFAULT_QUOTA.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

WEIGHT_RANGE = (1, 10_000)
BURST_RANGE = (64, 1 << 30)  # a seed must fit, or a limited domain could never be seeded at once
RATE_MAX = 1 << 40  # 1 TiB/s: no device comes near, and no product of two of them surprises anyone

_UNITS = {
    "": 1, "B": 1, "kB": 10**3, "KiB": 1 << 10, "MB": 10**6, "MiB": 1 << 20, "GB": 10**9, "GiB": 1 << 30,
}  # fmt: skip
# Case counts: "kb" would be kilobits to many, and "KB" means 1000 to some and 1024 to others.
_QUANTITY = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,9}))? ?([A-Za-z]*)")
_RATE_FORMS = 'bytes per second as 100, "10KiB/s", "2kB/s" or "1MiB/s"'
_SIZE_FORMS = 'bytes as 512, "64KiB" or "1MiB"'


class QuotaError(ValueError):
    """A quota that cannot be: the text says what was found and what is allowed."""


class Unset(enum.Enum):
    """The type of UNSET, which is not None because None is a limit: "none"."""

    UNSET = "unset"


UNSET = Unset.UNSET


def _check(
    name: str,
    reservation: int | None,
    weight: int | None,
    limit: int | Unset | None,
    burst: int | None,
) -> None:
    for key, value, (low, high) in (
        ("reservation", reservation, (0, RATE_MAX)),
        ("weight", weight, WEIGHT_RANGE),
        ("limit", limit, (1, RATE_MAX)),
        ("burst", burst, BURST_RANGE),
    ):
        if isinstance(value, int) and not low <= value <= high:
            raise QuotaError(f"quota {name!r}: {key} is {value}; allowed: {low} to {high}")
    if reservation is not None and isinstance(limit, int) and reservation > limit:
        raise QuotaError(
            f"quota {name!r}: reservation {format_rate(reservation)} exceeds limit {format_rate(limit)};"
            " allowed: a reservation up to the limit"
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
        _check(self.name, self.reservation, self.weight, self.limit, self.burst)


DEFAULT_QUOTA = Quota()


@dataclass(frozen=True)
class QuotaRule:
    """One `[[quota]]` of the configuration, or one domain's metadata.

    `match` holds globs over the domain's name (`*`, `?`, `[…]`, case counts) and `uuid:` followed by a
    UUID or a glob over it. A key that is None, or a limit that is UNSET, inherits.
    Raises QuotaError if its own numbers contradict each other.
    """

    name: str
    match: tuple[str, ...]
    reservation: int | None = None
    weight: int | None = None
    limit: int | Unset | None = UNSET
    burst: int | None = None

    def __post_init__(self) -> None:
        _check(self.name, self.reservation, self.weight, self.limit, self.burst)

    def matches(self, domain_name: str, uuid: str) -> bool:
        """Whether this rule says anything about the domain."""
        return any(
            fnmatchcase(uuid.lower(), pattern[5:].lower())
            if pattern.startswith("uuid:")
            else fnmatchcase(domain_name, pattern)
            for pattern in self.match
        )


def resolve(rules: Iterable[QuotaRule], domain_name: str, uuid: str) -> Quota:
    """The quota of a domain.

    Never raises: a reservation and a smaller limit that come from two different rules meet here at
    the limit, because a domain's name, which its owner chooses, must not be able to stop the daemon.
    `check_rules` refuses the cases that the rules alone give away.
    """
    return _merge([rule for rule in rules if rule.matches(domain_name, uuid)])


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


def parse_rate(value: object) -> int:
    """Bytes per second from 100, "100", "10KiB/s", "2kB/s", "5B/s". Raises QuotaError."""
    amount = value
    if isinstance(value, str):
        text = value.strip()
        if text.endswith("/s"):
            amount = text[:-2]
        elif not text.isdigit():  # a unit without "/s" is a size
            raise _refused("rate", value, _RATE_FORMS)
    return _quantity("rate", value, amount, RATE_MAX, _RATE_FORMS)


def parse_limit(value: object) -> int | None:
    """As `parse_rate`, or None for "none". At least 1 B/s. Raises QuotaError."""
    if isinstance(value, str) and value.strip() == "none":
        return None
    rate = parse_rate(value)
    if rate == 0:
        raise _refused("limit", value, f'{_RATE_FORMS}, at least 1, or "none"')
    return rate


def parse_size(value: object) -> int:
    """Bytes from 512, "512", "64KiB", "1MB". Raises QuotaError."""
    return _quantity("size", value, value, RATE_MAX, _SIZE_FORMS)


def parse_weight(value: object) -> int:
    """A weight from 300 or "300". Raises QuotaError."""
    low, high = WEIGHT_RANGE
    allowed = f"a whole number from {low} to {high}"
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not re.fullmatch("[0-9]{1,9}", text.strip()):
        raise _refused("weight", value, allowed)
    weight = int(text)
    if not low <= weight <= high:
        raise _refused("weight", value, allowed)
    return weight


def format_rate(rate: int | None) -> str:
    """The shortest exact spelling: 1536 → "1536B/s", 2048 → "2KiB/s", None → "none"."""
    return "none" if rate is None else format_size(rate) + "/s"


def format_size(size_bytes: int) -> str:
    """The shortest exact spelling: 65536 → "64KiB", 2000 → "2kB", 0 → "0B"."""
    for unit in ("GiB", "GB", "MiB", "MB", "KiB", "kB"):
        if size_bytes and size_bytes % _UNITS[unit] == 0:
            return f"{size_bytes // _UNITS[unit]}{unit}"
    return f"{size_bytes}B"


def _merge(matching: Sequence[QuotaRule]) -> Quota:
    """The first that sets a key wins it."""
    default = DEFAULT_QUOTA
    limit = next((r.limit for r in matching if not isinstance(r.limit, Unset)), default.limit)
    reservation = next((r.reservation for r in matching if r.reservation is not None), default.reservation)
    return Quota(
        name=matching[0].name if matching else default.name,
        reservation=reservation if limit is None else min(reservation, limit),
        weight=next((r.weight for r in matching if r.weight is not None), default.weight),
        limit=limit,
        burst=next((r.burst for r in matching if r.burst is not None), default.burst),
    )


def _quantity(kind: str, value: object, amount: object, maximum: int, forms: str) -> int:
    if isinstance(amount, int) and not isinstance(amount, bool):
        amount = str(amount)
    found = _QUANTITY.fullmatch(amount.strip()) if isinstance(amount, str) else None
    if found is None or found[3] not in _UNITS:
        raise _refused(kind, value, forms)
    decimals = found[2] or ""
    scale: int = 10 ** len(decimals)
    total, fraction = divmod(int(found[1] + decimals) * _UNITS[found[3]], scale)
    if fraction:
        raise _refused(kind, value, f"whole {forms}")
    if total > maximum:
        raise _refused(kind, value, f"{forms}, at most {format_size(maximum)}")
    return total


def _refused(kind: str, value: object, allowed: str) -> QuotaError:
    found = repr(value)
    if len(found) > 60:  # metadata is somebody else's text; one line stays one line
        found = found[:57] + "…"
    return QuotaError(f"{kind} {found}; allowed: {allowed}")
