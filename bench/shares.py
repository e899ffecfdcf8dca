# SPDX-License-Identifier: Apache-2.0
"""Who gets how much of a slow source: equal shares, weights, limits, reservations, hostile neighbours.

The real daemon and protocol ends, on a FIFO that gives 10 kB/s.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.fleet import BenchError, Fleet, Group, Mark
from bench.hostd import SMALL_RESERVOIR, Hostd, Say, folder, serving
from bench.line import Line
from bench.measures import jain
from bench.series import error_anywhere, error_since_first, left_of_burst, most_above, most_below
from bench.throttle import Throttled, throttled
from netrng_hostd.core.bucket import NS_PER_S
from netrng_hostd.core.domain import SEED_SIZE

RATE = 10_000  # bytes per second
DUE = 16  # samples, from which Jain's index is judged
MARKS = 10  # looks at what everybody has, in one measurement
LEAST_S, MOST_S = 10.0, 60.0  # for one measurement
SPENT_S = 30.0  # by then an end that asks all the while has spent its burst
MANY, MANY_S = 1000, 20.0  # for more domains than that, DUE samples for each would take minutes
WEIGHTS = (1, 2, 4, 8)
HOSTILE = ("rubbish", "grants", "knocks", "deaf", "restless")


class Measured(NamedTuple):
    """Looks at what each end has, and the largest sample in force between the first and the last."""

    marks: list[Mark]
    sample_size: int

    @property
    def seconds(self) -> float:
        return (self.marks[-1].ns - self.marks[0].ns) / NS_PER_S

    def got(self, names: Sequence[str]) -> list[int]:
        """Bytes for each."""
        return [b - a for a, b in zip(self.marks[0].of(names), self.marks[-1].of(names))]

    def rows(self, names: Sequence[str]) -> list[list[int]]:
        return [mark.of(names) for mark in self.marks]


@contextlib.contextmanager
def scarce(
    groups: Sequence[Group], say: Say, quotas: str = "", sample_size: int = 512
) -> Iterator[tuple[Hostd, Fleet, Throttled]]:
    """hostd on the slow source, all ends seeded that ask already, the beginning over."""
    with folder() as place:
        fifo = place / "source"
        extra = f"sample_size = {sample_size}\n{SMALL_RESERVOIR}{quotas}"
        with (
            throttled(fifo, RATE) as source,
            serving(place, groups, str(fifo), say, extra=extra) as (hostd, fleet),
        ):
            fleet.wait("seeded", say)
            hostd.settle(say)
            yield hostd, fleet, source
        say(f"the source gave {source.written} B and {source.thrown_away} B in vain")


def quota(name: str, **keys: int) -> str:
    """The [[quota]] of a group."""
    lines = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return f'[[quota]]\nname = "{name}"\nmatch = ["{name}-*"]\n{lines}'


def measure(hostd: Hostd, fleet: Fleet, seconds: float, say: Say) -> Measured:
    """What each end gets in that time."""
    say(f"measures for {seconds:.0f} s")
    sample_size = hostd.sample_size
    began = time.monotonic()
    marks = [fleet.mark()]
    for number in range(1, MARKS + 1):
        time.sleep(max(0.0, began + seconds * number / MARKS - time.monotonic()))
        marks.append(fleet.mark())
    return Measured(marks, max(sample_size, hostd.sample_size))


def equal(count: int, say: Say) -> Iterator[Line]:
    """All alike and greedy."""
    group = Group("vm", count)
    with scarce([group], say) as (hostd, fleet, _):
        seconds = (DUE + 1) * count * hostd.sample_size / RATE
        most_s = MOST_S if count <= MANY else MANY_S
        measured = measure(hostd, fleet, min(max(seconds, LEAST_S), most_s), say)
    yield from judge_equal(measured, group.names)


def judge_equal(measured: Measured, names: Sequence[str]) -> Iterator[Line]:
    """Whether all that the source gives is handed out, and to all of ``names`` alike.

    Jain's index is not asked of more than MANY: it says little before each is due DUE samples.
    """
    count, got, size = len(names), measured.got(names), measured.sample_size
    what = f"{count} equal, greedy, {RATE // 1000} kB/s"
    part = sum(got) / (RATE * measured.seconds)
    yield Line(f"{what}: handed out", f"{part:.1%}", "≥ 98% of the source", part >= 0.98)
    if count == 1:
        return
    error = error_anywhere(measured.rows(names), [1] * count) / size
    yield Line(f"{what}: error in any interval", f"{error:.2f} samples of {size} B", "≤ 1", error <= 1)
    if count <= MANY:
        due, index = sum(got) / count / size, jain(got)
        yield Line(
            f"{what}: Jain, each due {due:.1f} samples", f"{index:.5f}", f"≥ 0.999, each due ≥ {DUE}",
            index >= 0.999 and due >= DUE,
        )  # fmt: skip


def weighted(say: Say) -> Iterator[Line]:
    """1:2:4:8, among modest ones and such as come and go.

    Those judged begin to ask in the same moment, when nothing is stored: from then on nobody is ever more
    than one sample from its exact share.  (Between two later instants it may be two: behind, then ahead.)
    """
    size = 256  # with all of them, and without those judged as well: no other sample is in force
    groups = [Group(f"weight{weight}", 4, waits=True) for weight in WEIGHTS]
    others = [Group("greedy", 2), Group("modest", 4, "modest", rate=50)]
    others += [Group(f"vanishing{after_s}", 1, "vanishing", after_s=after_s) for after_s in (2, 3, 5, 7)]
    quotas = "".join(quota(f"weight{weight}", weight=100 * weight) for weight in WEIGHTS)
    names = [name for group in groups for name in group.names]
    weights = [weight for weight in WEIGHTS for _ in range(4)]
    with scarce([*groups, *others], say, quotas, size) as (hostd, fleet, _):
        begun = fleet.mark()
        fleet.begin(names)
        measured = measure(hostd, fleet, 40, say)
    if any(begun.of(names)):
        raise BenchError("ends that were to wait were given bytes before they asked")
    seeded = [SEED_SIZE] * len(names)  # a seed is on top of what the weights give
    error = error_since_first([seeded, *measured.rows(names)], weights) / size
    share = [(now - SEED_SIZE) / weight for now, weight in zip(measured.marks[-1].of(names), weights)]
    yield Line(
        "weights 1:2:4:8, others modest and vanishing: error", f"{error:.2f} samples of {size} B",
        "≤ 1", error <= 1,
    )  # fmt: skip
    apart = max(share) / min(share) - 1
    yield Line("weights 1:2:4:8: bytes per weight, most to least", f"+{apart:.2%}", "for information", True)
    seeds_over = Measured(measured.marks[1:], measured.sample_size)
    due = sum(seeds_over.got(names)) / sum(weights)  # the greedy ones have the weight 1 of those judged
    yield judge_beside("weights 1:2:4:8: two greedy beside them", seeds_over.got(others[0].names), due, size)


def judge_beside(what: str, got: Sequence[int], due: float, size: int) -> Line:
    """Whether those who got ``got`` got what each was due, all in bytes, in samples of ``size``.

    Two samples are allowed, for between two instants one may be behind, then ahead; or 1 %.
    """
    error, most = max(abs(one - due) for one in got), max(2 * size, due / 100)
    return Line(
        what, f"error {error:.0f} B of {due:.0f} B due", f"≤ 2 samples or 1% ({most:.0f} B)", error <= most
    )  # fmt: skip


def limited(say: Say) -> Iterator[Line]:
    """Who asks for all it can get gets its limit, and no more."""
    limits = {200: 64, 500: 4096, 1000: 512}  # and their bursts
    groups = [Group(f"limit{limit}", 2, recorded=True) for limit in limits]
    quotas = "".join(quota(f"limit{limit}", limit=limit, burst=burst) for limit, burst in limits.items())
    least, most = [], []
    with scarce([*groups, Group("others", 2)], say, quotas) as (hostd, fleet, _):
        say("waits until the bursts are spent")
        for group, (limit, burst) in zip(groups, limits.items()):
            for name in group.names:
                _spend(hostd, fleet, name, limit, burst)
        measured = measure(hostd, fleet, 30, say)
        for group, (limit, burst) in zip(groups, limits.items()):
            least += [got / (limit * measured.seconds) for got in measured.got(group.names)]
            most += [most_above(*fleet.series(name), limit) - burst for name in group.names]
    size = measured.sample_size
    what = "limits of 200, 500 and 1,000 B/s"
    yield Line(f"{what}: delivered, at least", f"{min(least):.1%}", "≥ 95%", min(least) >= 0.95)
    yield Line(
        f"{what}: above burst + limit · w, in any interval", f"{max(most)} B", f"≤ 1 sample ({size} B)",
        max(most) <= size,
    )  # fmt: skip


def _spend(hostd: Hostd, fleet: Fleet, name: str, limit: int, burst: int) -> None:
    """Until less than a sample is left of the burst: from then on, what it gets is its limit's."""
    end_s = time.monotonic() + SPENT_S
    while (left := left_of_burst(*fleet.series(name), limit, burst, time.monotonic_ns())) > hostd.sample_size:
        if time.monotonic() > end_s:
            raise BenchError(f"{name} has {left} bytes left of its burst of {burst} after {SPENT_S:.0f} s")
        time.sleep(0.2)


def reserved(say: Say) -> Iterator[Line]:
    """A reservation among 100 greedy and ten hostile, and what the hostile cost those 100."""
    rate = 2000
    one, others = Group("reserved", 1, recorded=True), Group("greedy", 100)
    quotas = quota("reserved", reservation=rate)
    what = f"reservation of {rate} B/s among 100 greedy"
    runs: list[Measured] = []
    for neighbours, last in (
        ("10 hostile", [Group(kind, 2, kind) for kind in HOSTILE]),
        ("10 more greedy", [Group("more", 10)]),
    ):
        with scarce([one, others, *last], say, quotas) as (hostd, fleet, source):
            measured = measure(hostd, fleet, 40, say)
            times_ns, sizes = fleet.series(one.names[0])
        runs.append(measured)
        # As long as the source can pay: not while this machine holds it up (and then hostd as well).
        parts = source.on_time(measured.marks[0].ns, measured.marks[-1].ns)
        size = measured.sample_size
        yield judge_reserved(f"{what} and {neighbours}: shortfall", times_ns, sizes, rate, parts, size)
    hostile, greedy = runs
    yield judge_cost(hostile, greedy, others.names)


def judge_reserved(
    what: str,
    times_ns: Sequence[int],
    sizes: Sequence[int],
    rate: int,
    parts: Sequence[tuple[int, int]],
    size: int,
) -> Line:
    """Whether in each of ``parts`` (begun, ended: ns) ``rate`` was kept up to a sample of ``size`` bytes.

    Fragments show no shortfall that builds up: one part at least has to be LEAST_S long.
    """
    longest_s = max((ended_ns - begun_ns for begun_ns, ended_ns in parts), default=0) / NS_PER_S
    shortfall = max((most_below(times_ns, sizes, rate, *part) for part in parts), default=0)
    return Line(
        what, f"{shortfall} B, the source on time for {longest_s:.0f} s at a stretch",
        f"≤ 1 sample ({size} B), {LEAST_S:.0f} s at a stretch or more",
        shortfall <= size and longest_s >= LEAST_S,
    )  # fmt: skip


def judge_cost(hostile: Measured, greedy: Measured, names: Sequence[str]) -> Line:
    """Whether ``names`` got among hostile ones what they got among as many more greedy ones."""
    mean = sum(greedy.got(names)) / len(names) / greedy.seconds
    least = min(hostile.got(names)) / hostile.seconds
    slack = max(hostile.sample_size / hostile.seconds, mean / 100)
    return Line(
        "10 hostile ones cost 100 others: the least share", f"{least:.1f} B/s",
        f"≥ {mean:.1f} B/s, as among 10 more greedy, less 1 sample or 1% ({slack:.1f} B/s)",
        least >= mean - slack,
    )  # fmt: skip
