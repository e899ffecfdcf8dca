# SPDX-License-Identifier: Apache-2.0
"""How rates, sizes and weights are written, in hostd.toml, in a domain's metadata and to a person."""

from __future__ import annotations

import re
from typing import Callable

WEIGHT_RANGE = (1, 10_000)
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


def parse_cap(parse: Callable[[object], int]) -> Callable[[object], int | None]:
    """A parser for a `max_` key: as ``parse``, or None for "none"."""

    def parsed(value: object) -> int | None:
        if isinstance(value, str) and value.strip() == "none":
            return None
        try:
            return parse(value)
        except QuotaError as error:
            raise QuotaError(f'{error}, or "none"') from None

    return parsed


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


def shown(value: object) -> str:
    """A value that somebody else wrote, in one printable line of at most 60 characters."""
    found = repr(value)
    return found if len(found) <= 60 else found[:57] + "…"


def printable(untrusted_text: object) -> str:
    """A text that a guest or a VM's owner chose, without what a terminal would obey.

    Control characters, escapes, and characters that reorder or hide others become visible escapes.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(untrusted_text)
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
    return QuotaError(f"{kind} {shown(value)}; allowed: {allowed}")
