# SPDX-License-Identifier: Apache-2.0
"""`make bench-sources`: what several sources promise, with real VMs, one line each; exit 1 if any is SHORT.

`python -m bench.sources [NAME …]` runs only what is named.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator

import libvirt
from bed.libvirtd import PrivateLibvirtd

from bench import blackout, feeds, outage
from bench.cost import cost_line
from bench.fleet import BenchError
from bench.hostd import Say
from bench.line import Line, command
from bench.watched import WatchedVM, some

VMS = ("one", "two")
OFFSETS = (0, 200)  # bytes
Run = Callable[[PrivateLibvirtd, list[WatchedVM], Say], Iterator[Line]]


def cost(say: Say) -> Iterator[Line]:
    """That of the health tests, where a read begins with a window and where it does not."""
    for offset in OFFSETS:
        say(f"reads that begin {offset} bytes into a window")
        line = cost_line(offset)
        yield line._replace(what=f"{line.what}, {offset} B into a window")


ALONE: dict[str, Callable[[Say], Iterator[Line]]] = {"cost": cost}
WITH_VMS: dict[str, Run] = {
    "zeros": functools.partial(outage.lines, "zeros"),
    "unplugged": functools.partial(outage.lines, "unplugged"),
    "bias": functools.partial(outage.lines, "bias"),
    "hung": functools.partial(outage.lines, "hung"),
    "counter": outage.counter_lines,
    "hwrng": outage.hwrng_lines,
    "all-silent": functools.partial(blackout.lines, (feeds.SILENT, feeds.SILENT)),
    "all-zeros": functools.partial(blackout.lines, (feeds.ZEROS, feeds.ZEROS)),
}
NAMES = (*ALONE, *WITH_VMS)


def run(names: list[str]) -> Iterator[Line]:
    """The lines of the runs so named, in the order of NAMES."""
    began = time.monotonic()

    def say(name: str, text: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {name}: {text}", file=sys.stderr, flush=True)

    def measured(name: str, lines: Callable[[Say], Iterator[Line]]) -> Iterator[Line]:
        try:
            yield from lines(functools.partial(say, name))
        except BenchError as error:
            yield Line(name, str(error), "a measurement", False)

    for name in [name for name in ALONE if name in names]:
        yield from measured(name, ALONE[name])
    if chosen := [name for name in WITH_VMS if name in names]:
        try:
            with some(VMS, functools.partial(say, "bench")) as (host, vms):
                for name in chosen:
                    yield from measured(name, functools.partial(WITH_VMS[name], host, vms))
        except BenchError as error:
            yield Line("real VMs", str(error), "VMs that boot", False)


def main() -> int:
    libvirt.registerErrorHandler(lambda *_: None, None)  # it would print what is raised as well
    return command("bench.sources", "What several sources promise.", NAMES, run)


if __name__ == "__main__":
    sys.exit(main())
