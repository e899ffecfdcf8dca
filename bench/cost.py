# SPDX-License-Identifier: Apache-2.0
"""What all health tests together cost, in the CPU time of a CRC-32 over the same bytes."""

from __future__ import annotations

import os
import statistics
import time
import zlib
from collections.abc import Callable

from bench.line import Line
from netrng_hostd.core.health import HealthTests

PIECE = 16 << 10  # bytes at a time: the reader's largest read where the reservoir has its usual size
PIECES = 512  # in one round
ROUNDS = 8  # of each, in turns: 64 MiB
WANTED = 20
MB = 1_000_000


def cost_line(offset: int = 0) -> Line:
    """CPU time of HealthTests.feed by that of zlib.crc32: the median of the rounds' quotients.

    `offset`: how many bytes of a window were fed before; a reader's pieces seldom begin where a window does.
    """
    noise = os.urandom(PIECE * PIECES)
    pieces = [noise[start : start + PIECE] for start in range(0, len(noise), PIECE)]
    health = HealthTests()
    health.feed(os.urandom(1024 + offset))
    tests, checksums, quotients = [], [], []
    for _ in range(ROUNDS):
        checksums.append(_cpu_s(zlib.crc32, pieces))
        tests.append(_cpu_s(health.feed, pieces))
        quotients.append(tests[-1] / checksums[-1])
    quotient = statistics.median(quotients)
    per_mb = [statistics.median(times) * MB / len(noise) * 1000 for times in (tests, checksums)]
    return Line(
        f"cost of all health tests, {ROUNDS * len(noise) >> 20} MiB in pieces of {PIECE >> 10} KiB",
        f"{quotient:.1f} x CRC-32 ({per_mb[0]:.2f} and {per_mb[1]:.2f} ms/MB)",
        f"<= {WANTED} x CRC-32",
        quotient <= WANTED,
    )


def _cpu_s(function: Callable[[bytes], object], pieces: list[bytes]) -> float:
    begun = time.process_time_ns()
    for piece in pieces:
        function(piece)
    return (time.process_time_ns() - begun) / 1e9
