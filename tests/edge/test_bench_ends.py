# SPDX-License-Identifier: Apache-2.0
"""The benchmark's protocol ends and its slow source are honest, and its judges see what they should."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from bench.fleet import Fleet, Group, Mark
from bench.hardware import judge_rates
from bench.hostd import serving
from bench.series import error_anywhere, error_since_first, left_of_burst, most_above, most_below
from bench.shares import DUE, LEAST_S, MANY, Measured, judge_beside, judge_cost, judge_equal, judge_reserved
from bench.shares import RATE as SOURCE_RATE
from bench.storm import AGENTS, SLACK_S
from bench.storm import judge as judge_storm
from bench.throttle import RECOVERED_NS, Throttled, throttled
from hypothesis import given
from hypothesis import strategies as st
from tests.edge.rig import wait_for

from netrng_hostd.core.bucket import NS_PER_S
from netrng_hostd.core.domain import SEED_SIZE
from netrng_hostd.core.health import STARTUP

RATE = 20_000  # bytes per second
PATIENCE_S = 120.0  # processes that take all of the machine's time take turns as well


def _accumulated(gaps: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Instants from gaps, and sizes."""
    now_ns, times_ns = NS_PER_S, []
    for gap_ns, _ in gaps:
        now_ns += gap_ns
        times_ns.append(now_ns)
    return times_ns, [size for _, size in gaps]


GAPS = st.lists(st.tuples(st.integers(0, 3 * NS_PER_S), st.integers(1, 600)), max_size=12)
ARRIVALS = GAPS.map(_accumulated)
RATES = st.integers(1, 2000)


def _all_taken(fleet: Fleet) -> int:
    return sum(fleet.mark().taken.values())


def _share_error(fleet: Fleet) -> float:
    """Over 15 kB, in bytes."""
    before = fleet.mark()
    enough = sum(before.taken.values()) + 15_000
    wait_for(lambda: _all_taken(fleet) > enough, "15 kB", PATIENCE_S)
    return error_anywhere([before.of(fleet.names), fleet.mark().of(fleet.names)], [1] * len(fleet.names))


def test_four_ends_get_what_the_source_gave_and_equally(tmp_path: Path) -> None:
    groups = [Group("vm", 3), Group("one", 1, recorded=True)]
    began_s = time.monotonic()
    with (
        throttled(tmp_path / "source", RATE) as told,
        serving(tmp_path, groups, str(tmp_path / "source"), say=lambda text: None) as (hostd, fleet),
    ):
        fleet.wait("seeded", say=lambda text: None)
        # Ends that stand still for a while have all they may; who then asks first is served first.
        assert any(_share_error(fleet) <= 2 * 512 for _ in range(3)), "15 kB, equally"
        after, status = fleet.mark(), hostd.status()
        sent = sum(domain["bytes_sent"] for domain in status["domains"])
        wait_for(lambda: _all_taken(fleet) >= sent, "all that was sent")
        times_ns, sizes = fleet.series("one-0")
    (source,) = status["sources"]
    assert sum(after.taken.values()) <= sent <= source["bytes_read"] <= told.written
    kept = status["reservoir"]["stored"] + source["bytes_discarded"]
    assert 0 <= source["bytes_read"] - sent - kept < STARTUP  # in the health tests
    # A measurement, at the start and once a minute, throws a second's bytes away where there is no room.
    assert source["bytes_discarded"] <= RATE * (2 + (time.monotonic() - began_s) // 60)
    assert sum(sizes) >= after.taken["one-0"] and times_ns == sorted(times_ns)


def test_who_waits_asks_when_told_and_who_is_hostile_comes_back(tmp_path: Path) -> None:
    late = Group("late", 1, waits=True)
    kinds = ("restless", "rubbish", "grants", "knocks", "deaf", "vanishing")
    groups = [late, Group("modest", 1, "modest", rate=200)]
    groups += [Group(kind, 1, kind, after_s=0.1) for kind in kinds]

    def more_than(n_bytes: int, name: str) -> bool:
        return fleet.mark().taken[name] > n_bytes

    def logged(text: str) -> bool:
        return text in hostd.log

    with (
        throttled(tmp_path / "source", RATE),
        serving(tmp_path, groups, str(tmp_path / "source"), say=lambda text: None) as (hostd, fleet),
    ):
        for kind in ("modest", "restless", "rubbish", "grants", "vanishing"):
            wait_for(partial(more_than, 128, f"{kind}-0"), kind, PATIENCE_S)
        assert not more_than(0, "late-0")
        fleet.begin(late.names)
        wait_for(partial(more_than, 4096, "late-0"), "what it asked for", PATIENCE_S)
        assert not more_than(0, "deaf-0")
        for kind in ("rubbish", "grants", "knocks"):
            wait_for(partial(logged, f"{kind}-0: the guest sends more than it may"), kind, PATIENCE_S)


def test_the_throttle_gives_its_rate_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "source"
    with throttled(path, RATE) as told, path.open("rb", buffering=0) as source:
        began_ns, first = time.monotonic_ns(), len(source.read(4096))
        found = 0
        while found < 12_000:
            found += len(source.read(4096))
        spent_ns = time.monotonic_ns() - began_ns
    # A page may have waited, and a turn that was due before we began and late is made up for.
    waiting = [late for at, late in told.late if at - late <= began_ns < at + RECOVERED_NS]
    late_ns = max(waiting, default=0)
    assert found <= RATE * (spent_ns + late_ns) / NS_PER_S + 4096
    assert told.written >= first + found


@given(ARRIVALS, RATES)
def test_above_is_the_worst_of_all_intervals(arrivals: tuple[list[int], list[int]], rate: int) -> None:
    times_ns, sizes = arrivals
    worst = 0
    for first in range(len(sizes)):
        for last in range(first, len(sizes)):
            w_ns = times_ns[last] - times_ns[first]
            worst = max(worst, sum(sizes[first : last + 1]) * NS_PER_S - rate * w_ns)
    assert most_above(times_ns, sizes, rate) == -(-worst // NS_PER_S)


@given(ARRIVALS, RATES, st.integers(0, 10 * NS_PER_S), st.integers(0, 10 * NS_PER_S))
def test_below_is_the_worst_of_all_intervals(
    arrivals: tuple[list[int], list[int]], rate: int, begun_ns: int, length_ns: int
) -> None:
    times_ns, sizes = arrivals
    ended_ns = begun_ns + length_ns
    inside = [(t, s) for t, s in zip(times_ns, sizes) if begun_ns <= t <= ended_ns]
    # Open intervals are worst between two arrivals, neither of which lies in them; of several at one instant
    # none does.
    ends_ns = [begun_ns, *(t for t, _ in inside), ended_ns]
    worst = 0
    for first in ends_ns:
        for last in ends_ns:
            got = sum(s for t, s in inside if first < t < last)
            worst = max(worst, rate * (last - first) - got * NS_PER_S)
    assert most_below(times_ns, sizes, rate, begun_ns, ended_ns) == -(-worst // NS_PER_S)


def test_a_burst_and_a_gap_by_hand() -> None:
    times_ns = [second * NS_PER_S for second in (0, 1, 2, 3, 6, 7)]
    sizes = [100, 100, 500, 100, 100, 100]
    assert most_above(times_ns, sizes, 100) == 500  # the 500 alone
    assert most_above(times_ns, sizes, 50) == 650  # 800 in three seconds, 1,000 in seven
    assert most_below(times_ns, sizes, 100, 0, 7 * NS_PER_S) == 300  # from 3 to 6
    assert most_below(times_ns, sizes, 100, 0, 20 * NS_PER_S) == 1500  # from 3 on: 1,700 less 200
    assert most_above([], [], 100) == 0
    assert most_below([], [], 100, 0, NS_PER_S) == 100


def test_shares_are_judged() -> None:
    even = [[0, 0, 0], [10, 20, 40], [20, 40, 80]]
    assert error_anywhere(even, [1, 2, 4]) == pytest.approx(0)
    assert error_anywhere([[0, 0], [30, 10], [40, 40]], [1, 1]) == 10
    swung = [[0, 0], [30, 10], [40, 60]]  # ahead by ten, then behind by ten
    assert error_anywhere(swung, [1, 1]) == 20 and error_since_first(swung, [1, 1]) == 10


def test_the_time_in_which_the_source_was_late_is_cut_out() -> None:
    source = Throttled(late=[(100, 5), (1000, 50), (1010, 5), (4000, 100)])
    assert Throttled().on_time(10, 20) == [(10, 20)]
    assert source.on_time(10, 20) == [(10, 20)]
    assert source.on_time(10, 200) == [(10, 95)]
    seconds = [(now_ns * NS_PER_S, late_ns) for now_ns, late_ns in source.late]
    assert Throttled(late=seconds).on_time(500 * NS_PER_S, 2000 * NS_PER_S) == [
        (500 * NS_PER_S, 1000 * NS_PER_S - 50),
        (1000 * NS_PER_S + RECOVERED_NS, 1010 * NS_PER_S - 5),
        (1010 * NS_PER_S + RECOVERED_NS, 2000 * NS_PER_S),
    ]


def test_a_reader_slower_than_dds_runs_lie_apart_is_short() -> None:
    dd = [9520, 9612, 9614]
    assert not judge_rates("rate", [9474, 9470, 9482], dd).ok
    assert not judge_rates("rate", [9000, 9474, 9900], dd).ok  # so wide a spread of its own is no excuse
    assert judge_rates("rate", [9500, 9480, 9490], dd).ok
    assert judge_rates("rate", [9700, 9700, 9700], dd).ok
    even = [9515, 9516, 9512, 9502]
    assert judge_rates("rate", [9454, 9488, 9528, 9487], even).ok
    assert not judge_rates("rate", [9470, 9471, 9472, 9470], even).ok


def _storm(last_s: float, count: int = AGENTS, beyond_s: float = 60.0) -> list[bool]:
    """Verdicts on a storm: the last agent begins after 2 s, and the source owes 1 s worth of seeds."""
    credited = [second * NS_PER_S for second in [1.0] * (count - 1) + [last_s]]
    told = {
        "signal": 0, "began": [NS_PER_S, 2 * NS_PER_S], "credited": credited, "beyond": [beyond_s * NS_PER_S],
        "denied": 0,
    }  # fmt: skip
    return [line.ok for line in judge_storm("storm", told, AGENTS * SEED_SIZE - SOURCE_RATE)]


def test_a_storm_whose_last_seed_is_late_or_missing_or_overtaken_is_short() -> None:
    assert _storm(2 + 1 + SLACK_S) == [True, True]
    assert _storm(2 + 1 + SLACK_S + 0.01) == [False, True]
    assert _storm(3.0, count=AGENTS - 1) == [False]
    assert _storm(3.0, beyond_s=2.9) == [True, False]


SIZE = 32  # bytes of a sample


def _measured(got: Sequence[int], seconds: float, size: int = SIZE) -> Measured:
    """Two looks at ends named by their numbers."""
    names = [str(number) for number in range(len(got))]
    begun = Mark(0, dict.fromkeys(names, 0))
    return Measured([begun, Mark(int(seconds * NS_PER_S), dict(zip(names, got)))], size)


def _equal(got: Sequence[int], part: float = 1.0) -> list[bool]:
    """Verdicts, where ``part`` of what the source gave was handed out."""
    measured = _measured(got, sum(got) / part / SOURCE_RATE)
    return [line.ok for line in judge_equal(measured, list(measured.marks[0].taken))]


def test_equal_shares_are_short_when_kept_back_or_uneven_or_too_few_to_tell() -> None:
    due = DUE * SIZE
    assert _equal([due]) == [True] and _equal([due], 0.97) == [False]
    assert _equal([due] * 16, 0.99) == [True, True, True]
    assert _equal([due] * 16, 0.97) == [False, True, True]
    assert _equal([due - SIZE, due + SIZE] * 8) == [True, True, False]  # 1 / (1 + 1 / 16²)
    assert _equal([due, due, due + 4 * SIZE, due]) == [True, False, False]
    assert _equal([due - SIZE] * MANY) == [True, True, False]  # nobody was due enough
    assert _equal([SIZE] * (MANY + 1)) == [True, True]


def test_those_beside_may_be_two_samples_or_a_hundredth_off() -> None:
    assert judge_beside("beside", [1000 - 2 * SIZE, 1000 + 2 * SIZE], 1000, SIZE).ok
    assert not judge_beside("beside", [1000, 1001 + 2 * SIZE], 1000, SIZE).ok
    assert not judge_beside("beside", [999 - 2 * SIZE, 1000], 1000, SIZE).ok
    assert judge_beside("beside", [99_000], 100_000, SIZE).ok
    assert not judge_beside("beside", [98_999], 100_000, SIZE).ok


def test_a_reservation_is_judged_where_the_source_was_on_time_long_enough() -> None:
    seconds = int(LEAST_S)
    times_ns = [second * NS_PER_S for second in range(1, 2 * seconds)]
    whole, second = [(0, seconds * NS_PER_S)], NS_PER_S

    def ok(size: int, parts: list[tuple[int, int]]) -> bool:
        return judge_reserved("reserved", times_ns, [100] * len(times_ns), 100, parts, size).ok

    assert ok(100, whole)
    assert not ok(99, whole)
    assert not ok(100, [(begun * second, (begun + 1) * second) for begun in range(2 * seconds)])  # fragments
    assert not ok(100, [])
    assert not ok(100, [*whole, (seconds * second, 2 * seconds * second + 1)])  # a byte too late, elsewhere


def test_the_hostile_may_cost_a_sample_or_a_hundredth() -> None:
    names, greedy = ["0", "1"], _measured([10_000, 10_000], 10)
    assert judge_cost(_measured([9_900, 10_000], 10), greedy, names).ok
    assert not judge_cost(_measured([9_899, 20_000], 10), greedy, names).ok
    assert judge_cost(_measured([9_700, 10_000], 10, 300), greedy, names).ok


def test_what_is_left_of_a_burst() -> None:
    assert left_of_burst([], [], 10, 100, NS_PER_S) == 100
    assert left_of_burst([NS_PER_S], [40], 10, 100, NS_PER_S) == 60
    assert left_of_burst([NS_PER_S], [40], 10, 100, 3 * NS_PER_S) == 80
    assert left_of_burst([NS_PER_S], [40], 10, 100, 20 * NS_PER_S) == 100  # no more than a burst
    assert left_of_burst([NS_PER_S, 11 * NS_PER_S], [20, 130], 10, 100, 12 * NS_PER_S) == -20
