# SPDX-License-Identifier: Apache-2.0
"""One line per promise: what was measured, and whether it is what was wanted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Line(NamedTuple):
    """`measured` and `wanted` are ready to print, with units; `ok`: whether the one is within the other."""

    what: str
    measured: str
    wanted: str
    ok: bool


def report(lines: Iterable[Line]) -> int:
    """Prints each line as it comes. The exit code: 1 if any is SHORT, else 0."""
    short = 0
    for line in lines:
        verdict = "ok   " if line.ok else "SHORT"
        print(f"{verdict}  {line.what:<92}  {line.measured:>30}  wanted: {line.wanted}", flush=True)
        short += not line.ok
    return 1 if short else 0


def skipped(what: str, why: str) -> None:
    """Prints that something could not be measured here; it is not SHORT."""
    print(f"skip   {what}: {why}", flush=True)
