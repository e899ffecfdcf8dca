# SPDX-License-Identifier: Apache-2.0
"""python -m bench.pictures FOLDER: draws docs/fairness.md's pictures from simulated runs.

The same code draws the same bytes. Only this module needs matplotlib; `make pictures` installs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bench import behaviours, traces
from bench.measures import Shares
from bench.scenarios import RATE, boot_storm_run, gap_ns, seed_bounds
from bench.simulator import Behaviour, Simulation, Vm, Watch
from netrng_hostd.core.bucket import NS_PER_S
from netrng_hostd.core.quota import DEFAULT_QUOTA, Quota
from netrng_hostd.core.scheduler import Pick

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#666666"
STYLE = {
    "svg.hashsalt": "netrng",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "path.simplify_threshold": 0.5,
}


class Rates(Watch):
    """Bytes to each in each interval."""

    def __init__(self, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self._sent: dict[tuple[str, int], int] = {}

    def sent(self, vm: Vm, now_ns: int, pick: Pick) -> None:
        key = (vm.name, now_ns // self._interval_ns)
        self._sent[key] = self._sent.get(key, 0) + pick.n_bytes

    def of(self, name: str, until_s: float) -> tuple[list[float], list[float]]:
        """The middles of the intervals in seconds, and bytes per second in each."""
        seconds = self._interval_ns / NS_PER_S
        count = int(until_s / seconds)
        return (
            [(k + 0.5) * seconds for k in range(count)],
            [self._sent.get((name, k), 0) / seconds for k in range(count)],
        )


def present(*stays: tuple[float, float]) -> Behaviour:
    """Greedy from and to these seconds, and gone between."""

    def act(vm: Vm) -> Iterator[int]:
        for from_s, to_s in stays:
            if from_s:
                yield int(from_s * NS_PER_S)
            vm.come(0)
            vm.ask()
            yield int(to_s * NS_PER_S)
            vm.go()

    return act


def weights() -> Figure:
    """Four domains of weights 1:2:4:8 come and go."""
    stays = {
        1: ((0, 120),), 2: ((0, 80), (100, 120)), 4: ((0, 120),), 8: ((20, 60),),
    }  # fmt: skip
    sim = Simulation(traces.steady(RATE), sample=128)
    rates = Rates(NS_PER_S)
    sim.watches.append(rates)
    for weight, when in stays.items():
        sim.add(str(weight), Quota(weight=100 * weight), present(*when))
    sim.run(120)
    figure, axes = _axes("time (s)", "given to the domain (kB/s)")
    marks = [0, 20, 60, 80, 100, 120]
    for (weight, when), colour in zip(stays.items(), (BLUE, ORANGE, GREEN, PURPLE)):
        for start_s, end_s in when:
            x, y = rates.of(str(weight), 120)
            part = [k for k, at in enumerate(x) if start_s < at < end_s]
            axes.plot([x[k] for k in part], [y[k] / 1000 for k in part], color=colour, lw=1.6)
            here = [(a, b) for a, b in zip(marks, marks[1:]) if start_s <= a and b <= end_s]
            for a, b in here:
                asking = sum(w for w, its in stays.items() if any(s <= a and b <= e for s, e in its))
                axes.plot([a, b], [RATE / 1000 * weight / asking] * 2, color="black", lw=0.8, ls="--")
    for weight, at_s, height, colour in (
        (1, 2, 1.65, BLUE), (2, 2, 3.15, ORANGE), (4, 2, 6.0, GREEN), (8, 22, 5.65, PURPLE),
    ):  # fmt: skip
        axes.text(at_s, height, f"weight {weight}00", color=colour)
    axes.text(119, 9.2, "dashed: the exact share", ha="right")
    axes.set(xlim=(0, 120), ylim=(0, 10))
    return figure


def reservation() -> Figure:
    """A reservation is held while a hundred greedy neighbours come."""
    until_s, reserved = 60, 2000
    sim = Simulation(traces.steady(RATE), sample=128, gap_ns=gap_ns(RATE))
    rates = Rates(NS_PER_S)
    sim.watches.append(rates)
    sim.add("reserved", Quota(reservation=reserved), behaviours.greedy())
    sim.add("plain", DEFAULT_QUOTA, behaviours.greedy())
    for i in range(100):
        sim.add(f"greedy{i}", DEFAULT_QUOTA, behaviours.greedy((20 + i // 2) * NS_PER_S // 2))
    sim.run(until_s)
    figure, axes = _axes("time (s)", "given to the domain (kB/s)")
    for name, colour in (("reserved", BLUE), ("plain", ORANGE)):
        x, y = rates.of(name, until_s)
        axes.plot(x, [rate / 1000 for rate in y], color=colour, lw=1.8)
    axes.axhline(reserved / 1000, color="black", lw=0.8, ls="--")
    axes.text(59, 2.15, "its reservation, 2 kB/s", ha="right")
    axes.text(20, 2.55, "with the reservation", color=BLUE)
    axes.text(20, 0.85, "the same weight, without", color=ORANGE)
    axes.annotate("100 greedy neighbours\ncome, two at a time", (10, 4.6), (14, 4.2), va="center",
                  arrowprops={"arrowstyle": "->", "color": GREY}, color=GREY)  # fmt: skip
    axes.set(xlim=(0, until_s), ylim=(0, 5.5))
    return figure


def limit() -> Figure:
    """What was saved comes at once, up to the burst, and then the limit's rate."""
    until_s, rate, burst = 40, 500, 4096
    stays = ((2.0, 14.0), (20.0, 40.0))
    sim = Simulation(traces.steady(RATE))
    total, steps = 0, [(0.0, 0)]

    class Curve(Watch):
        def sent(self, vm: Vm, now_ns: int, pick: Pick) -> None:
            nonlocal total
            if vm.name == "limited":
                total += pick.n_bytes
                steps.append((now_ns / NS_PER_S, total))

    sim.watches.append(Curve())
    for i in range(4):
        sim.add(f"greedy{i}", DEFAULT_QUOTA, behaviours.greedy())

    def act(vm: Vm) -> Iterator[int]:
        vm.come(0)
        for from_s, to_s in stays:
            yield int(from_s * NS_PER_S)
            vm.ask()
            yield int(to_s * NS_PER_S)
            vm.stop()

    sim.add("limited", Quota(limit=rate, burst=burst), act)
    sim.run(until_s)
    steps.append((until_s, total))
    figure, axes = _axes("time (s)", "given to the domain so far (kB)")
    axes.step([at for at, _ in steps], [got / 1000 for _, got in steps], where="post", color=BLUE, lw=1.8)
    for from_s, to_s in stays:
        axes.axvspan(from_s, to_s, color="#eef4f9", lw=0)
    for (from_s, _), end_s in zip(stays, (20, until_s)):
        had = max(got for at, got in steps if at < from_s)
        bound = [had + burst, had + burst + rate * (end_s - from_s)]
        axes.plot([from_s, end_s], [most / 1000 for most in bound], color="black", lw=0.8, ls="--")
    axes.annotate("burst + limit · w", (6, 6.1), (8, 3.2), arrowprops={"arrowstyle": "->", "color": "black"})
    axes.text(16.9, 5, "asks\nnothing", ha="center", color=GREY)
    axes.text(8, 0.5, "asks for all it can get", ha="center", color=GREY)
    axes.text(30, 0.5, "asks again", ha="center", color=GREY)
    axes.text(39.5, 12.3, "limit 500 B/s, burst 4 KiB", ha="right", color=BLUE)
    axes.set(xlim=(0, until_s), ylim=(0, 25))
    return figure


def boot_storm() -> Figure:
    """500 agents in the same second: who has its seed, over time."""
    agents = 500
    figure, axes = _axes("time since the first agent came (s)", "agents")
    for within_ms, colour in ((0, BLUE), (1000, ORANGE)):
        _, seeds, began = boot_storm_run(agents, within_ms, neighbours=20)
        first = began[0]
        served = sorted((at - first) / NS_PER_S for at in seeds.served_ns)
        bounds = sorted(
            (start - first + wait) / NS_PER_S for start, wait in zip(began, seed_bounds(began, 16384))
        )
        counts = range(1, agents + 1)
        if within_ms:
            came = [(start - first) / NS_PER_S for start in began]
            axes.plot([0, *came], range(agents + 1), color=GREY, lw=1)
        axes.plot([0, 0, *served], [0, *_first(served, agents)], color=colour, lw=1.8)
        axes.plot(bounds, counts, color="black", lw=0.8, ls="--")
    axes.text(0.05, 398, "seeded, if all come at once", color=BLUE)
    axes.text(0.84, 465, "come within a second", color=GREY, ha="right")
    axes.text(1.15, 290, "seeded, if they come within a second", color=ORANGE)
    told = (
        "dashed: by arithmetic, 64 bytes each of the 16 KiB reserve,\n"
        "and of all 10 kB/s while anybody waits"
    )
    axes.text(2.08, 30, told, ha="right")
    axes.set(xlim=(0, 2.1), ylim=(0, 520))
    return figure


def _first(served: list[float], agents: int) -> list[int]:
    """For each who is served: the first point goes straight up."""
    at_once = sum(at <= 0 for at in served)
    return [at_once, *(max(at_once, k) for k in range(1, agents + 1))]


def error() -> Figure:
    """How far 1,000 domains are from their exact share, with samples of 512 bytes and of 32."""
    until_s, step_s = 110.0, 0.8
    figure, axes = _axes("time (s)", "given − due (bytes)")
    for sample, colour, label in ((512, ORANGE, "samples of 512 bytes"), (32, BLUE, "of 32 bytes")):
        sim = Simulation(traces.steady(RATE), sample=sample)
        shares = Shares()
        sim.watches.append(shares)
        for i in range(1000):
            sim.add(f"vm{i}", DEFAULT_QUOTA, behaviours.greedy())
        x, low, high = [0.0], [0.0], [0.0]
        while x[-1] < until_s:
            sim.run(step_s)
            off = [got - shares.due(name, sim.now_ns) for name, got in shares.got.items()]
            x.append(sim.now_ns / NS_PER_S)
            low.append(min(off))
            high.append(max(off))
        axes.fill_between(x, low, high, color=colour, lw=0, alpha=0.9 if sample == 32 else 0.35)
        axes.axhline(sample, color=colour, lw=0.8, ls="--")
        axes.axhline(-sample, color=colour, lw=0.8, ls="--")
        axes.text(until_s - 1, sample + 14, label, color=colour, ha="right")
    told = "shaded: from the one furthest behind to the one furthest ahead; dashed: one sample"
    axes.text(until_s - 1, -660, told, ha="right")
    axes.set(xlim=(0, until_s), ylim=(-700, 640))
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "fairness-weights": weights,
    "fairness-reservation": reservation,
    "fairness-limit": limit,
    "fairness-boot-storm": boot_storm,
    "fairness-error": error,
}


def _axes(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.2, 3.4), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def main(folder: Path, kind: str = "svg") -> None:
    """Draws them all into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, draw in PICTURES.items():
            path = folder / f"{name}.{kind}"
            draw().savefig(path, metadata={"Date": None} if kind == "svg" else None)
            print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
