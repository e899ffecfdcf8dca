# SPDX-License-Identifier: Apache-2.0
"""`make bench-sources`: what several sources promise, with real VMs, one line each; exit 1 if any is SHORT.

`python -m bench.sources [NAME …]` runs only what is named.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator

import libvirt
from bed.libvirtd import PrivateLibvirtd

from bench import blackout, feeds, outage
from bench.fleet import BenchError
from bench.hostd import Say
from bench.line import Line, report
from bench.watched import WatchedVM, some

VMS = ("one", "two")
Run = Callable[[PrivateLibvirtd, list[WatchedVM], Say], Iterator[Line]]
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


def run(names: list[str]) -> Iterator[Line]:
    """The lines of the runs so named."""
    began = time.monotonic()

    def say(text: str, name: str = "bench") -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {name}: {text}", file=sys.stderr, flush=True)

    try:
        with some(VMS, say) as (host, vms):
            for name in names:
                try:
                    yield from WITH_VMS[name](host, vms, functools.partial(say, name=name))
                except BenchError as error:
                    yield Line(name, str(error), "a measurement", False)
    except BenchError as error:
        yield Line("real VMs", str(error), "VMs that boot", False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.sources", description="What several sources promise.")
    parser.add_argument("name", nargs="*", metavar="NAME", help="of: " + ", ".join(WITH_VMS))
    names = parser.parse_args().name
    unknown = sorted(set(names) - WITH_VMS.keys())
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; allowed: {', '.join(WITH_VMS)}")
    libvirt.registerErrorHandler(lambda *_: None, None)  # it would print what is raised as well
    try:
        return report(run(names or list(WITH_VMS)))
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
