# SPDX-License-Identifier: Apache-2.0
"""What the quotas promise, each in the situation that is hardest for it. Every function yields its lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import log2
from random import Random

from bench import behaviours, traces
from bench.line import Line
from bench.measures import Excess, Seeds, Shares, Shortfall, Totals, Waits, jain
from bench.simulator import ORIGIN, Behaviour, Simulation
from netrng_hostd.core.bucket import NS_PER_S
from netrng_hostd.core.domain import MIN_SAMPLE, SEED_SIZE
from netrng_hostd.core.granularity import sample_size
from netrng_hostd.core.health import BYTE_WINDOW
from netrng_hostd.core.quota import DEFAULT_QUOTA, Quota
from netrng_hostd.core.reservoir import Reservoir
from netrng_hostd.dispatch import GAPS
from netrng_hostd.sources.pace import ReadSize
from netrng_hostd.sources.reader import MAX_READ

RATE = 10_000  # bytes per second
SAMPLE = 512
MS = NS_PER_S // 1000
# At every instant, not only in the end: see Shares._judge.
BUT_FOR_OTHERS = "≤ 1 sample + 1 for all together from each that comes or leaves"
RESERVOIR, SEED_RESERVE = 65536, 16384  # bytes


def all_lines() -> Iterator[Line]:
    """Every scenario, at full size: about half a minute."""
    for domains in (16, 256, 1000):
        yield from equal(domains)
        yield from equal(domains, adaptive=True)
    yield from equal(10_000, rate=1_000_000)
    yield from weights(seconds=400)
    yield from weights(seconds=400, hectic=True)
    yield from limits(seconds=60)
    yield from heavy(100, seconds=300)
    for adaptive in (False, True):
        yield from reservations(seconds=60, adaptive=adaptive)
    yield from reservations(seconds=20, adaptive=True, rate=100_000)
    yield from hostile(seconds=60)
    yield from boot_storm(500)
    yield from boot_storm(500, within_ms=1000)
    yield from boot_storm(500, neighbours=0, stored=RESERVOIR)
    for source in ("steady", "in heaps", "stalling"):
        yield from mixture(1000, 64, 300, source)
        yield from mixture(RATE, 1000, 120, source)
    yield from mixture(30_000_000, 1, 1)
    yield from mixture(30_000_000, 10_000, 3)
    yield from any_quotas(40, seconds=300)
    yield from cost((10, 100, 1000, 10_000))


def equal(domains: int, rate: int = RATE, adaptive: bool = False) -> Iterator[Line]:
    """Equal weights, all greedy, until each was due 17 samples."""
    sample = sample_size(rate, domains, 32, SAMPLE) if adaptive else SAMPLE
    sim = Simulation(traces.steady(rate), adaptive=adaptive, rate=rate)
    shares, waits = Shares(), Waits()
    sim.watches += [shares, waits]
    for i in range(domains):
        sim.add(f"vm{i}", DEFAULT_QUOTA, behaviours.greedy())
    sim.run(domains * sample * 17 / rate)
    waits.close(sim.now_ns)
    what = f"{domains:,} equal, {_kb(rate)}, {_samples(sim, adaptive)}"
    yield _at_most(f"{what}: worst error", shares.worst_samples, 1, "samples", decimals=3)
    index = jain(shares.got.values())
    yield Line(f"{what}: Jain's index", f"{index:.6f}", "≥ 0.999", index >= 0.999)
    # A round of turns, and until the bytes of the last window in it are there.
    most_s = (domains * sample + BYTE_WINDOW + SAMPLE) / rate
    yield _at_most(f"{what}: longest wait", waits.worst_ns / NS_PER_S, most_s, "s")


def heavy(domains: int, seconds: float) -> Iterator[Line]:
    """One that has half of all weight, among equals: it may not be served far ahead of its share."""
    sim = Simulation(traces.steady(RATE))
    shares = Shares()
    sim.watches.append(shares)
    sim.add("heavy", Quota(weight=domains), behaviours.greedy())
    for i in range(domains):
        sim.add(f"light{i}", Quota(weight=1), behaviours.greedy())
    sim.run(seconds)
    what = f"one as heavy as {domains} others together: worst error of all"
    yield _at_most(what, shares.worst_samples, 1, "samples", decimals=3)


def weights(seconds: float, hectic: bool = False) -> Iterator[Line]:
    """Weights 1:2:4:8 among thirty of all weights that come, go, reboot, and ask for little or for all.

    Hectic: the others have up to fifty times the weight, and one of them leaves four times a second.
    """
    random = Random(1)
    sim = Simulation(traces.steady(RATE), adaptive=not hectic)
    steady = {f"weight{k}": k for k in (1, 2, 4, 8)}
    shares = Shares(judged=steady.__contains__)
    sim.watches.append(shares)
    for name, k in steady.items():
        sim.add(name, Quota(weight=100 * k), behaviours.greedy())
    on_s, off_s = (3, 2) if hectic else (30, 10)
    for i in range(10):
        others = (
            behaviours.vanishing(random, on_s, off_s),
            behaviours.bursty(random, on_s, off_s),
            behaviours.modest(2500, 100, NS_PER_S),
        )
        for kind, behaviour in zip(("vanishing", "bursty", "modest"), others):
            weight = random.choice([1, 300, 5000] if hectic else [1, 30, 100, 300])
            sim.add(f"{kind}{i}", Quota(weight=weight), behaviour)
    sim.run(seconds)
    what = f"weights 1:2:4:8 among 30 that come and go{' hectically' if hectic else ''}"
    for name, k in steady.items():
        due = shares.due(name, sim.now_ns)
        error = abs(shares.got[name] - due)
        ok, wanted = error <= max(SAMPLE, due / 100), f"≤ {SAMPLE} B or 1 %"
        yield Line(f"{what}: share of {k}", f"{error:.0f} B, {100 * error / due:.2f} %", wanted, ok)
    errors = shares.errors(sim.now_ns, 16 * SAMPLE)
    if errors:
        worst = max(errors)
        measured = f"{shares.worst_samples:.2f} samples, {100 * worst:.2f} % at the end"
        yield Line(f"{what}: worst error", measured, BUT_FOR_OTHERS, shares.worst_part <= 1)
    unit = sum(shares.got[name] for name in steady) / sum(steady.values())
    worst = max(abs(shares.got[name] - k * unit) for name, k in steady.items())
    yield _at_most(f"{what}: shares among themselves", worst, SAMPLE, "B", why="a sample")


def limits(seconds: float) -> Iterator[Line]:
    """Limits far below and just below the proportional share, with bursts of all sizes."""
    for burst in (64, 512, 4096):
        for lumpy in (False, True):
            trace = traces.bursty(RATE, Random(2)) if lumpy else traces.steady(RATE)
            sim = Simulation(trace)
            excess, totals = Excess(), Totals()
            sim.watches += [excess, totals]
            for i in range(16):
                sim.add(f"greedy{i}", DEFAULT_QUOTA, behaviours.greedy())
            limited = {f"limited{limit}": limit for limit in (50, 475, 499)}
            for name, limit in limited.items():
                sim.add(name, Quota(limit=limit, burst=burst), behaviours.reloaded(5 * MS))
            reconnecting = Quota(limit=300, burst=burst)
            sim.add("loop", reconnecting, behaviours.reconnecting(10 * MS))
            sim.run(seconds / 2)
            before = dict(totals.bytes)  # with the burst, which is not to be taken for the rate
            sim.run(seconds / 2)
            source = "in heaps" if lumpy else "steady"
            what = f"limits below and just below the share, burst {burst}, {source}"
            if not lumpy:
                least = min(
                    (totals.bytes[name] - before[name]) / (limit * seconds / 2)
                    for name, limit in limited.items()
                )
                yield Line(f"{what}: delivered", f"{100 * least:.1f} %", "≥ 95 %", least >= 0.95)
            worst = max(excess.worst.values())
            yield _at_most(f"{what}: above limit · w", worst, burst + SAMPLE, "B", why="burst + sample")


def reservations(
    seconds: float, adaptive: bool = False, greedy: int = 100, rate: int = RATE
) -> Iterator[Line]:
    """All that may be promised, among greedy ones and ten that reconnect, flood or never read.

    The seed reserve is empty at first, and wants its part of the source.
    """
    sim = Simulation(
        traces.steady(rate, read_size(rate)), adaptive=adaptive, gap_ns=gap_ns(rate), rate=rate,
        reservoir=Reservoir(RESERVOIR, SEED_RESERVE),
    )  # fmt: skip
    rates = [own * rate // RATE for own in (4000, 2000, 900, 100, *[20] * 100)]
    shortfall = Shortfall(since_ns=3 * NS_PER_S)  # once what is kept for them is there
    sim.watches.append(shortfall)
    for i, own in enumerate(rates):
        behaviour = behaviours.reloaded(5 * MS) if i == 2 else behaviours.greedy()
        sim.add(f"reserved{i}", Quota(reservation=own, weight=1), behaviour)
    for i in range(greedy):
        sim.add(f"greedy{i}", DEFAULT_QUOTA, behaviours.greedy())
    add_hostile(sim, 10)
    sim.run(seconds)
    shortfall.close(sim.vms.values(), sim.now_ns)
    source = "" if rate == RATE else f"{rate} B/s, "
    what = f"reservations among {greedy} greedy and 10 hostile, {source}{_samples(sim, adaptive)}"
    most = max(sim.scheduler.sample_size, 2 * MIN_SAMPLE)
    why = "one sample" if most == sim.scheduler.sample_size else "two grains of 32 B"
    refilled = min(SEED_RESERVE, rate / 10 * (seconds - 5) * 0.9)  # once what is kept is there
    stored = sim.reservoir.seed_available
    enough = stored >= refilled
    yield Line(f"{what}: seed reserve meanwhile", f"{stored} B", f"≥ {refilled:.0f} B", enough)
    for reserved in sorted(set(rates), reverse=True):
        worst = max(shortfall.worst[f"reserved{i}"] for i, own in enumerate(rates) if own == reserved)
        count = rates.count(reserved)
        name = f"{reserved} B/s" if count == 1 else f"{count} of {reserved} B/s"
        yield _at_most(f"{what}: {name}, worst shortfall", worst, most, "B", why=why)


def read_size(rate: int) -> int:
    """How many bytes of such a source come at a time, once its reader has found its pace."""
    size = ReadSize(MAX_READ)
    for _ in range(20):
        size.took(size.bytes, size.bytes, size.bytes * NS_PER_S // rate)
    return max(BYTE_WINDOW, size.bytes)


def gap_ns(rate: int) -> int:
    """The time that hostd's scheduler keeps bytes for."""
    return GAPS * read_size(rate) * NS_PER_S // rate


def add_hostile(sim: Simulation, count: int) -> None:
    """Half of them reconnect in a loop; the others flood with requests or never read."""
    random = Random(7)
    for i in range(count):
        kinds = (
            behaviours.reconnecting(10 * MS),
            behaviours.flooding(random, 20 * MS),
            behaviours.reconnecting(100 * MS),
            behaviours.never_reading(),
        )
        sim.add(f"hostile{i}", DEFAULT_QUOTA, kinds[i % 4])


def hostile(seconds: float) -> Iterator[Line]:
    """What twenty others get beside ten hostile ones, and beside ten more greedy ones."""
    least = {}
    for kind in ("hostile", "greedy"):
        sim = Simulation(traces.steady(RATE))
        totals = Totals()
        sim.watches.append(totals)
        for i in range(20):
            sim.add(f"vm{i}", DEFAULT_QUOTA, behaviours.greedy())
        if kind == "hostile":
            add_hostile(sim, 10)
        else:
            for i in range(10):
                sim.add(f"greedy{i}", DEFAULT_QUOTA, behaviours.greedy())
        sim.run(seconds)
        least[kind] = min(totals.bytes[f"vm{i}"] for i in range(20))
    # Each UUID's seed bucket is its own: 64 bytes and one a second, whoever is beside it.
    most = SAMPLE + 10 * (SEED_SIZE + seconds) / 20
    cost = least["greedy"] - least["hostile"]
    what = f"10 hostile beside 20, {seconds:.0f} s: cost them more than 10 greedy would"
    yield _at_most(what, cost, most, "B", why="a sample and their seeds")


def boot_storm(
    agents: int, within_ms: int = 0, neighbours: int = 20, stored: int = SEED_RESERVE
) -> Iterator[Line]:
    """Agents that all start at once, or within that time, while greedy neighbours take the rest.

    `stored` bytes are there: the seed reserve alone, or without neighbours the whole reservoir.
    """
    sim, seeds, began = boot_storm_run(agents, within_ms, neighbours)
    waits = sorted(seeds.waits_ns)
    bounds = sorted(seed_bounds(began, stored))
    how = f"within {within_ms / 1000:.0f} s" if within_ms else "at once"
    what = f"boot storm, {agents} {how}, {stored // 1024} KiB there"
    slack_ns = BYTE_WINDOW * NS_PER_S // RATE  # the source's bytes come so many at a time
    for name, at in (("shortest", 0), ("median", agents // 2), ("95 %", agents * 95 // 100), ("longest", -1)):
        wait_ns = waits[at] if len(waits) == agents else sim.now_ns  # somebody still waits
        yield Line(
            f"{what}: {name} wait for the seed",
            f"{wait_ns / NS_PER_S:.3f} s",
            f"≤ {bounds[at] / NS_PER_S:.3f} s by arithmetic + {slack_ns / NS_PER_S:.3f} s",
            wait_ns <= bounds[at] + slack_ns,
        )
    most = seeds.most_before_last
    yield _at_most(f"{what}: most to anybody before the last seed", most, 1024, "B")


def boot_storm_run(agents: int, within_ms: int, neighbours: int) -> tuple[Simulation, Seeds, list[int]]:
    """The storm breaks after ten seconds; also returns when each agent comes."""
    random, storm_ns = Random(3), 10 * NS_PER_S
    sim = Simulation(traces.steady(RATE), reservoir=Reservoir(RESERVOIR, SEED_RESERVE))
    for i in range(neighbours):
        sim.add(f"greedy{i}", DEFAULT_QUOTA, behaviours.greedy())
    sim.reservoir.put(bytearray(RESERVOIR), ORIGIN)
    sim.run(storm_ns / NS_PER_S)
    seeds = Seeds()
    sim.watches.append(seeds)
    began = sorted(storm_ns + random.randint(0, within_ms * MS) for _ in range(agents))
    for i, start_ns in enumerate(began):
        agent = behaviours.modest(2500, 100, NS_PER_S, start_ns, SEED_SIZE)
        sim.add(f"agent{i}", DEFAULT_QUOTA, agent)
    sim.run(within_ms / 1000 + agents * SEED_SIZE / RATE + 1)
    return sim, seeds, began


def seed_bounds(began_ns: Sequence[int], stored: int) -> list[int]:
    """How long each waits for 64 bytes, in nanoseconds, by arithmetic.

    Not what a host could do that knew of the storm and held the source back for it.

    While nobody waits, a tenth of the source refills the reserve and the rest is not held back from the
    others; while somebody does, all of the source is for seeds.
    """
    bounds = []
    stock, at_ns = stored * NS_PER_S, began_ns[0]  # negative: owed
    for now_ns in began_ns:
        owed_ns = min(now_ns - at_ns, max(0, -stock) // RATE)
        stock += RATE * owed_ns + RATE // 10 * (now_ns - at_ns - owed_ns)
        stock, at_ns = min(stock, stored * NS_PER_S) - SEED_SIZE * NS_PER_S, now_ns
        bounds.append(max(0, -stock) // RATE)
    return bounds


def mixture(rate: int, domains: int, seconds: float, source: str = "steady") -> Iterator[Line]:
    """Greedy, modest, bursty and vanishing ones on a source that is steady, comes in heaps, or stalls.

    Five in ten are greedy, and judged; three ask for a quarter of a share, one is greedy at times, and one
    comes and goes.
    """
    random = Random(5)
    trace = traces.bursty(rate, random) if source == "in heaps" else traces.steady(rate)
    if source == "stalling":
        trace = traces.stalling(trace, every_s=5, for_s=2)
    sim = Simulation(trace, adaptive=True, rate=rate)
    shares, waits = Shares(judged=_is_greedy), Waits(_is_greedy)
    sim.watches += [shares, waits]
    quarter = max(1, rate // domains // 4)
    makers: dict[str, Callable[[], Behaviour]] = {
        "greedy": behaviours.greedy,
        "modest": lambda: behaviours.modest(quarter, quarter, NS_PER_S),
        "bursty": lambda: behaviours.bursty(random, seconds / 4, seconds / 4),
        "vanishing": lambda: behaviours.vanishing(random, seconds / 4, seconds / 8),
    }
    kinds = ["greedy"] * 5 + ["modest"] * 3 + ["bursty", "vanishing"]
    for i in range(domains):
        kind = kinds[i * 7 % 10]
        sim.add(f"{kind}{i}", Quota(weight=(100, 200, 400)[i % 3]), makers[kind]())
    sim.run(seconds)
    waits.close(sim.now_ns)
    what = f"{domains:,} of all kinds, {_kb(rate)}, {source}, {_samples(sim, True)}"
    errors = shares.errors(sim.now_ns, 16 * sim.scheduler.sample_size)
    percent = f", {100 * max(errors):.2f} % at the end" if errors else ""
    yield Line(
        f"{what}: worst error", f"{shares.worst_samples:.2f} samples{percent}", BUT_FOR_OTHERS,
        shares.worst_part <= 1,
    )  # fmt: skip
    if errors:
        names = [name for name in shares.got if _is_greedy(name)]
        index = jain(shares.got[name] / sim.vms[name].quota.weight for name in names)
        yield Line(f"{what}: Jain's index, by weight", f"{index:.6f}", "≥ 0.999", index >= 0.999)
    told = f"{waits.worst_ns / NS_PER_S:.2f} s, {sim.scheduler.operations / sim.picks:.1f}"
    yield Line(f"{what}: longest wait, operations per decision", told, "told alone", True)


def any_quotas(domains: int, seconds: float, seed: int = 4) -> Iterator[Line]:
    """Greedy domains with reservations, limits and weights of all sizes, against the exact clamped shares."""
    random = Random(seed)
    sim = Simulation(traces.steady(RATE), adaptive=True, gap_ns=gap_ns(RATE), rate=RATE)
    shares = Shares(rate=RATE)
    sim.watches.append(shares)
    room = RATE * 9 // 10
    for i in range(domains):
        reservation = random.choice([0, 0, room // 8, room // 40])
        room -= reservation
        limit = random.choice([None, reservation + random.randint(20, 400)])
        weight = random.choice([30, 100, 300, 1000])
        # Only then a burst, and so not full: what was saved up would blur the picture.
        vm = sim.add(f"vm{i}", Quota("", reservation, weight, limit, 64), behaviours.greedy())
        sim.run(0)
        vm.use(Quota("", reservation, weight, limit, 512))
    sim.run(seconds)
    within = True
    most_bytes, most = 0.0, 0.0
    for name, got in shares.got.items():
        due, limited = shares.due(name, sim.now_ns), sim.vms[name].quota.limit is not None
        error = abs(got - due)
        slack = 2 * sim.scheduler.sample_size + limited * sim.vms[name].quota.burst
        within = within and error <= max(slack, due / 100)
        most_bytes, most = max(most_bytes, error), max(most, error / due)
    what = f"{domains} with any reservations, limits and weights, {_samples(sim, True)}"
    wanted = "≤ 2 samples and the burst, or 1 %"
    yield Line(f"{what}: worst error", f"{most_bytes:.0f} B; {100 * most:.2f} %", wanted, within)


def cost(sizes: Sequence[int], decisions: int = 2000) -> Iterator[Line]:
    """Operations of the scheduler per decision, for domains of all kinds of quotas, against log₂ n."""
    first = 0.0
    for domains in sizes:
        random = Random(6)
        rate = domains * 10
        sim = Simulation(traces.steady(rate, 64))
        for i in range(domains):
            limit = (None, 20)[i % 3 == 0]
            quota = Quota(reservation=i % 2 * 9, weight=1 + i % 99, limit=limit, burst=64)
            modest = behaviours.modest(200, 4, NS_PER_S, random.randint(0, NS_PER_S))
            sim.add(f"vm{i}", quota, modest if i % 5 == 4 else behaviours.greedy())
        sim.run(domains * 64 * 1.5 / rate)  # everybody has had a turn
        before, picks = sim.scheduler.operations, sim.picks
        sim.run(decisions * 64 / rate)
        operations = (sim.scheduler.operations - before) / (sim.picks - picks)
        ratio = operations / log2(domains)
        first = first or ratio
        yield Line(
            f"cost: {domains:,} domains: operations per decision",
            f"{operations:.1f} = {ratio:.1f} · log₂ n",
            f"≤ {first:.1f} · log₂ n, as with {sizes[0]}",
            ratio <= first,
        )


def _is_greedy(name: str) -> bool:
    return name.startswith("greedy")


def _at_most(
    what: str, measured: float, most: float, unit: str, why: str = "", decimals: int | None = None
) -> Line:
    digits = decimals if decimals is not None else 0 if unit == "B" else 3
    told = f"{measured:.{digits}f} {unit}"
    unit = unit if most != 1 else unit.rstrip("s")
    wanted = f"≤ {most:.{0 if float(most).is_integer() else digits}f} {unit}" + (f" ({why})" if why else "")
    return Line(what, told, wanted, measured <= most)


def _kb(rate: int) -> str:
    return f"{rate // 1_000_000} MB/s" if rate >= 1_000_000 else f"{rate // 1000} kB/s"


def _samples(sim: Simulation, adaptive: bool) -> str:
    return f"{'shrinking samples, now' if adaptive else 'samples of'} {sim.scheduler.sample_size} B"
