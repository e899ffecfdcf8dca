# SPDX-License-Identifier: Apache-2.0
"""Numbers and texts as a person reads them in a terminal."""

from __future__ import annotations

_PREFIXES = ("", "k", "M", "G", "T", "P")


def size(n_bytes: float) -> str:
    """1234567 → "1.23 MB": three digits, decimal, as dd counts."""
    value, step = float(n_bytes), 0
    # 999.5 would be printed as "1000".
    while value >= 999.5 and step < len(_PREFIXES) - 1:
        value, step = value / 1000, step + 1
    digits = 0 if step == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {_PREFIXES[step]}B"


def rate(bytes_per_s: float) -> str:
    """6100 → "6.10 kB/s"."""
    return f"{size(bytes_per_s)}/s"


def duration(seconds: float) -> str:
    """7980 → "2 h 13 min"."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def bar(part: float, width: int) -> str:
    """A bar of ``width`` cells, of which ``part`` (0 to 1) is full."""
    full = round(min(1.0, max(0.0, part)) * width)
    return "━" * full + "╌" * (width - full)
