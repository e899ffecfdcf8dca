# SPDX-License-Identifier: Apache-2.0
"""All sources go bad at once: nothing is given out, VMs do not hang, and it ends by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from bed.libvirtd import PrivateLibvirtd

from bench import feeds
from bench.feeds import FifoFeed
from bench.hostd import Say, folder
from bench.line import Line
from bench.trial import STALL_S, config, plugged, trial
from bench.watched import WatchedVM
from netrng_hostd.sources.pace import LAST_ALARM_RETRY_NS

A, B = "first", "second"
BAD_S = 10.0
ANSWER_S = 5.0  # an emulated machine beside others
CPU = 0.05
RECOVERED_S = LAST_ALARM_RETRY_NS / 1e9 + 5


class Outcome(NamedTuple):
    """`given`: bytes sent or come in `bad_s` seconds in which all sources were bad; `answer_s`: the slowest.

    `cpu`: of the busiest VM's agent, in that time; `recovered_s`: from good sources to bytes in all VMs.
    """

    given: int
    bad_s: float
    answer_s: float
    cpu: float
    recovered_s: float
    states: tuple[str, ...]


def measure(
    turns: tuple[str, str], host: PrivateLibvirtd, vms: list[WatchedVM], say: Say, *,
    bad_s: float = BAD_S, stall_s: float = STALL_S,
) -> Outcome:  # fmt: skip
    """``turns``: what each source gives when it is bad. Raises BenchError."""
    key = str(time.monotonic_ns()).encode()
    with folder() as place:
        a, b = FifoFeed(place / A, b"a" + key), FifoFeed(place / B, b"b" + key)
        toml = config(host.uri, [(A, a.kind, a.path), (B, b.kind, b.path)], stall_s)
        with plugged(a, b), trial(place, toml, vms, say) as run:
            run.wait_ready([A, B])
            run.wait_served(A)
            say(f"both go bad: {' and '.join(turns)}")
            for feed, turn in zip((a, b), turns):
                feed.turn(turn)
            run.wait_unhealthy([A, B])
            run.settle()
            sent, came, cpu_s = run.sent(), [vm.n_bytes for vm in vms], [vm.agent_cpu_s() for vm in vms]
            say(f"looks on for {bad_s:g} s")
            begun, answer_s = time.monotonic(), 0.0
            while (elapsed_s := time.monotonic() - begun) < bad_s:
                answer_s = max(answer_s, *(vm.answer_s() for vm in vms))
                time.sleep(1.0)
            cpu = max(vm.agent_cpu_s() - before for vm, before in zip(vms, cpu_s)) / elapsed_s
            states = tuple(run.source(name)["state"] for name in (A, B))
            more, sent = run.sent() - sent, run.sent()
            given = max(more, sum(vm.n_bytes - before for vm, before in zip(vms, came)))
            say("both are good again")
            good = time.time()
            for feed in (a, b):
                feed.turn(feeds.GOOD)
            now = [vm.n_bytes for vm in vms]
            run.wait_arrived(now, RECOVERED_S * 2)
            recovered_s = max(vm.arrival(before) for vm, before in zip(vms, now)) - good
            return Outcome(given, elapsed_s, answer_s, cpu, recovered_s, states)


def lines(turns: tuple[str, str], host: PrivateLibvirtd, vms: list[WatchedVM], say: Say) -> Iterator[Line]:
    """Three of such a time."""
    yield from judge(" and ".join(dict.fromkeys(turns)), measure(turns, host, vms, say))


def judge(turns: str, seen: Outcome) -> Iterator[Line]:
    """What was promised of it, line by line."""
    yield Line(
        f"all sources bad ({turns}): given out",
        f"{seen.given} B in {seen.bad_s:.0f} s ({', '.join(seen.states)})", "0 B", seen.given == 0,
    )  # fmt: skip
    yield Line(
        f"all sources bad ({turns}): VMs do not hang, their agents do not spin",
        f"a command answered in {seen.answer_s:.2f} s, {seen.cpu:.1%} of a CPU",
        f"≤ {ANSWER_S:g} s, ≤ {CPU:.0%}", seen.answer_s <= ANSWER_S and seen.cpu <= CPU,
    )  # fmt: skip
    yield Line(
        f"all sources bad ({turns}): VMs are served again by itself, once the sources are good",
        f"after {seen.recovered_s:.1f} s", f"≤ {RECOVERED_S:.0f} s", seen.recovered_s <= RECOVERED_S,
    )  # fmt: skip
