# SPDX-License-Identifier: Apache-2.0
"""When a source's bytes become available: (nanoseconds, bytes), one after another, without end.

hostd's reader gives bytes to the reservoir a whole test window at a time (`core.health`), however the
device delivers them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random

from netrng_hostd.core.bucket import NS_PER_S
from netrng_hostd.core.health import BYTE_WINDOW

Trace = Iterator[tuple[int, int]]


def steady(rate: int, lump: int = BYTE_WINDOW) -> Trace:
    """`rate` bytes per second, `lump` bytes at a time."""
    return ((k * lump * NS_PER_S // rate, lump) for k in count(1))


def bursty(rate: int, random: Random, most: int = 16) -> Trace:
    """`rate` bytes per second in the long run, in heaps of 1 to `most` test windows after as long a wait."""
    total = 0
    while True:
        lump = random.randint(1, most) * BYTE_WINDOW
        total += lump
        yield total * NS_PER_S // rate, lump


def stalling(trace: Trace, every_s: int, for_s: int) -> Trace:
    """`trace`, but that after every `every_s` seconds nothing comes for `for_s`."""
    for at_ns, lump in trace:
        yield at_ns + at_ns // (every_s * NS_PER_S) * for_s * NS_PER_S, lump
