# SPDX-License-Identifier: Apache-2.0
"""A boot storm: 500 VMs whose agents begin in the same second, among greedy ones, on 10 kB/s."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from tests.edge.rig import ENVIRONMENT

from bench.agents import MUCH
from bench.fleet import BenchError, Fleet, Group, allow_files
from bench.hostd import Hostd, Say, config, folder
from bench.line import Line, skipped
from bench.shares import RATE
from bench.throttle import throttled
from netrng_hostd.core.domain import SEED_SIZE

AGENTS = 500
READY_S = 60.0
SLACK_S = 1.0  # for a source read a test window at a time, and for two cores that run 500 agents at once


def boot_storm(say: Say) -> Iterator[Line]:
    what = f"{AGENTS} agents at once, {RATE // 1000} kB/s, 10 greedy"
    if os.geteuid() != 0:
        skipped(what, "only root may credit the kernel")
        return
    greedy = Group("greedy", 10, waits=True)
    names = [f"agent-{number}" for number in range(AGENTS)]
    allow_files(2 * AGENTS)
    with folder() as place, throttled(place / "source", RATE), Fleet(place, [greedy]) as fleet:
        agents = subprocess.Popen(
            [sys.executable, "-m", "bench.agents", str(place), str(AGENTS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then ends this
        )  # fmt: skip
        assert agents.stdin is not None and agents.stdout is not None
        with agents, Hostd(place, config(place, [*fleet.names, *names], str(place / "source"))) as hostd:
            _expect(agents.stdout.readline(), "listening")
            hostd.start()
            _expect(agents.stdout.readline(), "accepted")
            say("waits for a full seed reserve")
            _until_full(hostd)
            fleet.begin(greedy.names)
            say("waits until the greedy have taken the rest")
            reserve = _until_drained(hostd)
            say("all agents begin")
            agents.stdin.write("begin\n")
            agents.stdin.flush()
            told = json.loads(agents.stdout.readline() or "null")
            agents.stdin.close()
    if told is None:
        raise BenchError("the agents' process has ended")
    yield from judge(what, told, reserve)


def judge(what: str, told: dict[str, Any], reserve: int) -> Iterator[Line]:
    """What the agents ``told`` (see agents.py), the seed reserve having held ``reserve`` bytes.

    The last seed may take as long as the source needs for the bytes that the reserve lacked, after the last
    agent began; and SLACK_S.
    """
    credited_s = [(time_ns - told["signal"]) / 1e9 for time_ns in told["credited"]]
    if len(credited_s) < AGENTS:
        refused = f", {told['denied']} refused by the kernel" if told["denied"] else ""
        yield Line(f"{what}: seeds credited", f"{len(credited_s)}{refused}", f"{AGENTS}", False)
        return
    least_s = max(0, AGENTS * SEED_SIZE - reserve) / RATE
    cuts = statistics.quantiles(credited_s, n=20)
    began_s = (told["began"][-1] - told["signal"]) / 1e9
    most_s = least_s + began_s + SLACK_S
    yield Line(
        f"{what} (the last after {began_s:.2f} s): seed credited after",
        f"{credited_s[0]:.2f} s, median {cuts[9]:.2f}, 95% {cuts[18]:.2f}, last {credited_s[-1]:.2f} s",
        f"the last ≤ {most_s:.2f} s: {least_s:.2f} s for the bytes beyond a reserve of {reserve} B, "
        f"{began_s:.2f} s to begin, {SLACK_S:.0f} s on top", credited_s[-1] <= most_s,
    )  # fmt: skip
    early = sum(time_ns < told["credited"][-1] for time_ns in told["beyond"])
    yield Line(f"{what}: had over {MUCH} B before the last seed", f"{early}", "0", early == 0)


def _until_full(hostd: Hostd) -> None:
    end_s = time.monotonic() + READY_S
    while (stored := hostd.status()["reservoir"])["seed_stored"] + SEED_SIZE <= stored["seed_reserve"]:
        if time.monotonic() > end_s:
            raise BenchError(f"the seed reserve holds {stored['seed_stored']} bytes after {READY_S:.0f} s")
        time.sleep(0.2)


def _until_drained(hostd: Hostd) -> int:
    """Bytes in the seed reserve, once little else is stored and that is full."""
    end_s = time.monotonic() + READY_S
    while True:
        stored = hostd.status()["reservoir"]
        seeds: int = stored["seed_stored"]
        if stored["stored"] - seeds < 1024 and seeds + SEED_SIZE > stored["seed_reserve"]:
            return seeds
        if time.monotonic() > end_s:
            raise BenchError(f"{stored['stored']} bytes are stored after {READY_S:.0f} s, {seeds} for seeds")
        time.sleep(0.2)


def _expect(line: str, word: str) -> None:
    if line.strip() != word:
        raise BenchError(f"the agents' process has ended before it was {word}")
