# SPDX-License-Identifier: Apache-2.0
"""The same on /dev/hwrng: what is read reaches the guests, and nobody could have read more."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from bench.fleet import BenchError, Fleet, Group
from bench.hostd import Hostd, Say, folder, serving
from bench.line import Line, skipped

DEVICE = "/dev/hwrng"
BLOCK = 2048
RUNS = 4
RUN_S = 10.0
WARM = 12  # blocks, before those that are counted
ACKED_S = 25.0
_SPOKEN = re.compile(r"^(\d+) bytes.* copied, ([\d.]+) s", re.MULTILINE)


def unusable() -> str:
    """Why there is no RNG to be measured here; "" if there is one."""
    try:
        fd = os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return f"{DEVICE}: {error.strerror}"
    try:
        os.read(fd, 1)
    except OSError as error:
        return f"{DEVICE}: {error.strerror}"
    finally:
        os.close(fd)
    return ""


def acknowledged(count: int, say: Say) -> Iterator[Line]:
    """Of what is read, what comes back as acknowledged."""
    what = f"{DEVICE}, {count} greedy: acknowledged of what is read"
    if why := unusable():
        skipped(what, why)
        return
    with folder() as place, serving(place, [Group("vm", count)], DEVICE, say, "device") as (hostd, fleet):
        fleet.wait("seeded", say)
        hostd.settle(say)
        say(f"measures for {ACKED_S:.0f} s")
        before = _books(hostd, fleet)
        time.sleep(ACKED_S)
        after = _books(hostd, fleet)
    part = (after[1] - before[1]) / (after[0] - before[0])
    yield Line(what, f"{part:.1%} of {after[0] - before[0]} B", "≥ 98%", part >= 0.98)


def read_rate(say: Say) -> Iterator[Line]:
    """hostd and dd by turns, each alone with the device, and counted once it has read for a while.

    For at first a device gives what it has saved up, and its rate's limiter what it was not asked for.
    """
    what = f"{DEVICE}: read by hostd and by dd in turn"
    if why := unusable():
        skipped(what, why)
        return
    _dd(BLOCK, 1)  # what the device has saved up
    count = max(1, int(RUN_S * _dd(BLOCK, 4) / BLOCK))
    runs: dict[Callable[[Say, int], float], list[float]] = {_dd_run: [], _hostd_run: []}
    for _ in range(RUNS):
        for kind, rates in runs.items():
            rates.append(kind(say, count))
    yield judge_rates(what, runs[_hostd_run], runs[_dd_run])


def judge_rates(what: str, hostd: Sequence[float], dd: Sequence[float]) -> Line:
    """Whether hostd's mean rate is no further below dd's than one program's own runs, in B/s, lie apart.

    Its own count only as far as they are steady: else a reader would be the better the less steadily it read.
    """
    steady = statistics.fmean(dd) / 100
    spread = max(max(dd) - min(dd), min(max(hostd) - min(hostd), steady))
    means = statistics.fmean(hostd), statistics.fmean(dd)
    figures = " ".join(f"{rate:.0f}" for rate in hostd), " ".join(f"{rate:.0f}" for rate in dd)
    return Line(
        what, f"hostd {means[0]:.0f} B/s ({figures[0]}), dd {means[1]:.0f} B/s ({figures[1]})",
        f"≥ dd's mean less the spread of one's own runs ({spread:.0f} B/s)", means[0] >= means[1] - spread,
    )  # fmt: skip


def _books(hostd: Hostd, fleet: Fleet) -> tuple[int, int]:
    """Bytes read and acknowledged so far, at an instant at which nothing is on its way."""
    fleet.mark()
    status = hostd.status()
    return status["sources"][0]["bytes_read"], sum(domain["bytes_acked"] for domain in status["domains"])


def _dd_run(say: Say, count: int) -> float:
    say(f"dd reads {count * BLOCK} bytes")
    _dd(BLOCK, WARM)
    return _dd(BLOCK, count)


def _dd(block: int, count: int) -> float:
    """Bytes per second, by dd's own clock."""
    done = subprocess.run(
        ["dd", f"if={DEVICE}", "of=/dev/null", f"bs={block}", f"count={count}"],
        capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    found = _SPOKEN.search(done.stderr)
    if done.returncode or found is None:
        raise BenchError(f"dd if={DEVICE}: {done.stderr.strip()}")
    return int(found[1]) / float(found[2])


def _hostd_run(say: Say, count: int) -> float:
    """Bytes per second, from the first status to one about as many bytes later."""
    with folder() as place, serving(place, [Group("vm", 16)], DEVICE, say, "device") as (hostd, fleet):
        fleet.wait("seeded", say)
        say(f"hostd reads {count * BLOCK} bytes")
        began = _read(hostd)
        while (now := _read(hostd))[0] < began[0] + count * BLOCK:
            time.sleep(0.5)  # to be asked costs hostd time
    return (now[0] - began[0]) / (now[1] - began[1])


def _read(hostd: Hostd) -> tuple[int, float]:
    """Bytes read so far, and when, in seconds: the moment at which they have just changed."""
    before = hostd.status()["sources"][0]["bytes_read"]
    while (after := hostd.status()["sources"][0]["bytes_read"]) == before:
        time.sleep(0.001)
    return after, time.monotonic()
