# SPDX-License-Identifier: Apache-2.0
"""`make bench-fairness`: what the quotas promise, measured, one line for each; exit 1 if any is SHORT.

`python -m bench.fairness [NAME …]` runs only what is named.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator

from bench import hardware, load, scenarios, shares, storm
from bench.fleet import BenchError
from bench.hostd import Say
from bench.line import Line, command

COUNTS = (1, 16, 256, 1000, 4000)  # of ends


def simulated(say: Say) -> Iterator[Line]:
    """The scenarios of `make bench`."""
    say("the scheduler alone, on a virtual clock")
    for line in scenarios.all_lines():
        yield line._replace(what=f"simulated: {line.what}")


RUNS: dict[str, Callable[[Say], Iterator[Line]]] = {
    **{f"equal-{count}": functools.partial(shares.equal, count) for count in COUNTS},
    "weights": shares.weighted,
    "limits": shares.limited,
    "reservations": shares.reserved,
    "boot-storm": storm.boot_storm,
    **{f"acknowledged-{count}": functools.partial(hardware.acknowledged, count) for count in COUNTS},
    "read-rate": hardware.read_rate,
    "throughput": load.throughput,
    "simulated": simulated,
}


def run(names: list[str]) -> Iterator[Line]:
    """The lines of the runs so named."""
    began = time.monotonic()
    for name in names:

        def say(text: str, name: str = name) -> None:
            print(f"[{time.monotonic() - began:4.0f} s] {name}: {text}", file=sys.stderr, flush=True)

        say("begins")
        try:
            yield from RUNS[name](say)
        except BenchError as error:
            yield Line(name, str(error), "a measurement", False)


def main() -> int:
    return command("bench.fairness", "Measures what the quotas promise.", RUNS, run)


if __name__ == "__main__":
    sys.exit(main())
