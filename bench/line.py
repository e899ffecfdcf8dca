# SPDX-License-Identifier: Apache-2.0
"""One line per promise: what was measured, and whether it is what was wanted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
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


def command(
    prog: str, description: str, known: Iterable[str], run: Callable[[list[str]], Iterable[Line]]
) -> int:
    """A benchmark's command line: the lines of those of its ``known`` runs that are named, or of all.

    Returns the exit code, as `report`; 130 when interrupted.
    """
    all_names = list(known)
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("name", nargs="*", metavar="NAME", help="of: " + ", ".join(all_names))
    names = parser.parse_args().name
    unknown = sorted(set(names) - set(all_names))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; allowed: {', '.join(all_names)}")
    try:
        return report(run(names or all_names))
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130


def skipped(what: str, why: str) -> None:
    """Prints that something could not be measured here; it is not SHORT."""
    print(f"skip   {what}: {why}", flush=True)
