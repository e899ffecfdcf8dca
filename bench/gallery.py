# SPDX-License-Identifier: Apache-2.0
"""python -m bench.gallery [docs/health.md]: how soon each health test sees each broken source.

Prints the tables, or writes them into the page between its two markers. The same code measures the same: each
trial has its own seed. In a trial a source that was good goes bad at a random place in the tests' windows;
the delay is the number of noise bytes from the first faulty one to the one that completes the alarm. Takes
some minutes; says on standard error how far it is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from random import Random
from typing import NamedTuple, Optional

from bench.faults import FAULTS
from netrng_hostd.core.blocktest import Cutoffs
from netrng_hostd.core.health import APT_BITS, APT_BYTES, BLOCK, BYTE_WINDOW, RCT, STARTUP, HealthTests

ALL = "all together"
TESTS = (RCT, APT_BYTES, APT_BITS, BLOCK)
TRIALS = 200
BOUND = 1 << 20  # faulty bytes in one trial, after which it is given up as not seen
UNSEEN = "> 1 MiB"
BEGIN, END = "<!-- measured by make gallery -->", "<!-- end of what make gallery measured -->"

Delay = Optional[int]  # noise bytes; None: not seen within BOUND


class Trial(NamedTuple):
    """What came of one source that went bad.

    `delays`: of ALL and of each test alone; `raised_by`: the test that was first, "" where none was;
    `given_out`: faulty bytes that ALL had let pass before the alarm, None where there was none.
    """

    delays: dict[str, Delay]
    raised_by: str
    given_out: int | None


class _NoRepetitionCount(HealthTests):
    """Without that test: with its cutoff out of reach it would look back at ever longer runs."""

    def _repetition_count(self, piece: memoryview) -> int | None:
        return None


def alone(test: str) -> HealthTests:
    """Health tests of which only this one raises alarms; ALL: as the daemon has them."""
    health = HealthTests() if test in (RCT, ALL) else _NoRepetitionCount()
    if test not in (APT_BYTES, ALL):
        health.apt_byte_cutoff = BOUND
    if test not in (APT_BITS, ALL):
        health.apt_bit_cutoff = BOUND
    if test not in (BLOCK, ALL):
        health.block_cutoffs = Cutoffs(-1, BOUND)
    return health


def run(name: str, number: int, tests: Sequence[str] = (ALL, *TESTS), bound: int = BOUND) -> Trial:
    """One trial of a fault, the same each time it is run, whichever tests look on."""
    random = Random(f"{name}, {number}")
    before = random.randbytes(STARTUP + random.randrange(BYTE_WINDOW))
    watching = {test: alone(test) for test in tests}
    released = {test: len(health.feed(before).released) for test, health in watching.items()}
    delays: dict[str, Delay] = dict.fromkeys(watching)
    raised_by, given_out, fed = "", None, 0
    for noise in FAULTS[name](random):
        piece = noise[: bound - fed]
        fed += len(piece)
        for test, health in list(watching.items()):
            verdict = health.feed(piece)
            # A piece is too short for any of it to pass the start-up after an alarm.
            released[test] += len(verdict.released)
            if verdict.alarm is not None:
                delays[test] = verdict.alarm.offset - len(before)
                del watching[test]
                if test == ALL:
                    raised_by, given_out = verdict.alarm.test, max(0, released[ALL] - len(before))
        if fed == bound or not watching:
            break
    return Trial(delays, raised_by, given_out)


def quantile(sizes: Sequence[Delay], percent: int) -> Delay:
    """The least of the sizes that so many per cent of them do not exceed; None counts as the largest."""
    ordered = sorted(sizes, key=lambda size: (size is None, size))
    return ordered[-(-len(ordered) * percent // 100) - 1]


def in_words(size: int | None, none: str = UNSEEN) -> str:
    return none if size is None else f"{size:,}"


def share(part: int, whole: int) -> str:
    """In per cent; what is neither none nor all is not rounded to it."""
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent.is_integer() else f"{percent:.1f} %"


def quantiles(sizes: Sequence[Delay]) -> list[str]:
    return [in_words(quantile(sizes, percent)) for percent in (50, 99, 100)]


def row_of_all(name: str, trials: Sequence[Trial]) -> str:
    delays = quantiles([trial.delays[ALL] for trial in trials])
    given_out = [trial.given_out for trial in trials]
    passed = [in_words(quantile(given_out, percent), "all") for percent in (50, 100)]
    raised = Counter(trial.raised_by for trial in trials if trial.raised_by)
    by = ", ".join(f"{test} {share(times, len(trials))}" for test, times in raised.most_common()) or "none"
    return f"| {' | '.join([name, *delays, *passed, by])} |"


def row_of_each(name: str, trials: Sequence[Trial]) -> str:
    cells = [name]
    for test in TESTS:
        delays = [trial.delays[test] for trial in trials]
        seen = sum(delay is not None for delay in delays)
        part = "" if seen == len(trials) else f" (seen in {share(seen, len(trials))})"
        cells.append(" / ".join(quantiles(delays)) + part if seen else "not seen")
    return f"| {' | '.join(cells)} |"


def head(titles: Iterable[str]) -> list[str]:
    titles = list(titles)
    return [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]


def tables(measured: dict[str, Sequence[Trial]]) -> str:
    """Both tables, in Markdown."""
    columns = ("median", "99 %", "worst", "given out, median", "given out, worst", "raised by")
    lines = [
        "All tests together, as the daemon runs them:",
        "",
        *head(["source", *columns]),
        *(row_of_all(name, trials) for name, trials in measured.items()),
        "",
        "Each test alone, median / 99 % / worst:",
        "",
        *head(["source", *TESTS]),
        *(row_of_each(name, trials) for name, trials in measured.items()),
    ]
    return "\n".join(lines)


def measure(name: str, n_trials: int) -> list[Trial]:
    return [run(name, number) for number in range(n_trials)]


def measure_all(n_trials: int) -> dict[str, Sequence[Trial]]:
    """Every fault, on all processors."""
    done: dict[str, Sequence[Trial]] = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        names = {pool.submit(measure, name, n_trials): name for name in FAULTS}
        for future in as_completed(names):
            done[names[future]] = future.result()
            print(f"{len(done)} of {len(FAULTS)}: {names[future]}", file=sys.stderr, flush=True)
    return {name: done[name] for name in FAULTS}


def between_markers(page: str) -> str:
    """What stands in a page between the markers; ValueError where one is missing."""
    return page[page.index(BEGIN) + len(BEGIN) : page.index(END)].strip("\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gallery", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("page", nargs="?", type=Path, help="the page to write the tables into")
    parser.add_argument("--trials", type=int, default=TRIALS, help=f"of each fault (default: {TRIALS})")
    given = parser.parse_args()
    page = given.page.read_text(encoding="utf-8") if given.page else f"{BEGIN}\n{END}\n"
    between_markers(page)  # so that it fails now and not in some minutes
    made = tables(measure_all(given.trials))
    if given.page is None:
        print(made)
        return
    before, _, rest = page.partition(BEGIN)
    given.page.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
