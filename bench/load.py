# SPDX-License-Identifier: Apache-2.0
"""How much hostd moves when the source is not what limits it, and what that costs: for information."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.fleet import Group
from bench.hostd import Say, folder, serving
from bench.line import Line

COUNTS = (16, 1, 256, 1000, 4000)  # the first is what the others are compared with
MEASURE_S = 5.0
MB = 1_000_000


def throughput(say: Say) -> Iterator[Line]:
    """Greedy ends on /dev/urandom."""
    first = 0.0
    for count in COUNTS:
        with (
            folder() as place,
            serving(place, [Group("vm", count)], "/dev/urandom", say, extra="") as (
                hostd,
                fleet,
            ),
        ):
            fleet.wait("seeded", say)
            time.sleep(1)
            say(f"{count} ends: measures for {MEASURE_S:.0f} s")
            before, begun_s = fleet.mark(), hostd.cpu_s()
            time.sleep(MEASURE_S)
            after, cpu_s = fleet.mark(), hostd.cpu_s() - begun_s
        total = sum(after.taken.values()) - sum(before.taken.values())
        rate = total / ((after.ns - before.ns) / 1e9)
        first = first or rate
        yield Line(
            f"{count} greedy on /dev/urandom",
            f"{rate / MB:.1f} MB/s, {cpu_s / total * MB:.3f} CPU s per MB, {rate / first:.0%} of 16 ends'",
            "for information", True,
        )  # fmt: skip
