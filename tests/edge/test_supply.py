# SPDX-License-Identifier: Apache-2.0
"""From the readers to the reservoir: who may read, what is kept of whom, and what an alarm destroys."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import cast

import pytest
from tests.edge.supplied import delivered, make_supply

from netrng_hostd.core.health import Alarm
from netrng_hostd.core.ledger import Ledger
from netrng_hostd.core.policy import COMBINE, FAILOVER, XOR, Standing
from netrng_hostd.core.reservoir import Reservoir
from netrng_hostd.core.vetting import Vetting
from netrng_hostd.sources.reader import Delivery, SourceReader
from netrng_hostd.supply import MIX_BYTES, Supply

ALARM = Alarm("repetition-count", "6 equal bytes in a row, alarm from 6")
A, B, MIX = ("a",), ("b",), ("a", "b")


class Reader:
    """What the supply uses of a reader: it is told how far it may read, and says how it fares."""

    def __init__(self, rate: int | None = None, min_entropy: float = 8.0) -> None:
        self.allowed: tuple[int, int] = (0, 0)
        self.alarms = 0
        self.read_size = 512
        self.capacity = SimpleNamespace(rate=rate)
        self.vetting = Vetting(min_entropy)

    def allow(self, total: int, replaceable: int = 0) -> None:
        self.allowed = (total, replaceable)


def attach(supply: Supply, name: str, reader: Reader) -> Reader:
    supply.attach(name, cast(SourceReader, reader))
    return reader


def alarm(discarded: int = 0) -> Delivery:
    return Delivery(discarded, bytearray(), discarded, 0, ALARM)


def check(supply: Supply) -> None:
    supply.ledger.check(supply.held, supply.reservoir.stored)


def stand(supply: Supply, **healthy: bool) -> None:
    supply.review([Standing(name, healthy=well, proved=well) for name, well in healthy.items()])


def test_failover_one_reads_and_what_the_other_gives_in_a_probe_is_destroyed() -> None:
    supply = make_supply("a", "b")
    first, second = attach(supply, "a", Reader()), attach(supply, "b", Reader())
    assert supply.serving == A
    assert first.allowed == (65536, 0)
    assert second.allowed == (0, 0)
    supply.deliver("a", delivered(b"a" * 600))
    supply.deliver("b", delivered(b"b" * 512))
    assert supply.reservoir.stored == {A: 600}
    assert supply.ledger.source("b").destroyed == 512
    assert first.allowed == (65536, supply.reservoir.available), "what it read has taken its room"
    check(supply)


def test_failover_what_the_former_one_gave_stays_and_it_reads_no_further() -> None:
    supply = make_supply("a", "b")
    first, second = attach(supply, "a", Reader()), attach(supply, "b", Reader())
    supply.deliver("a", delivered(b"a" * 600))
    stand(supply, a=False, b=True)
    assert first.allowed == (0, 0)
    assert second.allowed[0] == 65536 - 600
    supply.deliver("b", delivered(b"b" * 512))
    assert supply.reservoir.stored == {A: 600, B: 512}
    stand(supply, a=False, b=False)
    assert supply.serving == ()
    assert second.allowed == (0, 0)
    check(supply)


def test_combine_the_sources_share_the_room() -> None:
    supply = make_supply("a", "b", policy=COMBINE)
    first, second = attach(supply, "a", Reader()), attach(supply, "b", Reader())
    assert first.allowed == second.allowed == (32768, 0)
    supply.deliver("a", delivered(b"a" * 30_000))
    supply.deliver("b", Delivery(500, bytearray(), 0, 500))
    room = supply.reservoir.room
    assert first.allowed == (30_000 + room // 2, supply.reservoir.available // 2)
    assert second.allowed == (room // 2, supply.reservoir.available // 2), "what it holds needs room too"
    stand(supply, a=True, b=False)
    assert first.allowed[0] == 30_000 + room
    check(supply)


def test_one_that_had_more_room_than_there_is_now_replaces_the_oldest() -> None:
    supply = make_supply("a", "b", policy=COMBINE)
    supply.deliver("a", delivered(b"a" * supply.reservoir.room))
    newer = delivered(b"b" * 512)
    supply.deliver("b", newer)
    assert supply.reservoir.room == 0
    assert supply.ledger.source("a").destroyed == 512
    assert not any(newer.released)
    check(supply)


def test_xor_mixes_equal_lengths_and_the_slower_one_sets_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    supply = make_supply("a", "b", policy=XOR, min_sources=2, size=2 * MIX_BYTES)
    mixes: list[bytearray] = []
    take = supply._mixer.take

    def watched() -> bytearray:
        mixes.append(take())
        return mixes[-1]

    monkeypatch.setattr(supply._mixer, "take", watched)
    first, second = attach(supply, "a", Reader()), attach(supply, "b", Reader())
    supply.deliver("a", delivered(b"\x0f" * 1_000))
    assert supply.reservoir.stored == {}
    assert supply.held == {"a": 1_000, "b": 0}
    assert first.allowed == (1_000 + MIX_BYTES - 1_000, 0)
    supply.deliver("b", delivered(b"\xff" * 600))
    assert supply.reservoir.stored == {MIX: 600}
    assert supply.held == {"a": 400, "b": 0}
    assert [len(mixed) for mixed in mixes] == [0, 600]
    assert not any(map(any, mixes)), "wiped"
    taken, (part,) = supply.reservoir.take(supply.reservoir.available)
    assert set(taken) == {0xF0}
    assert part.origin == MIX
    supply.ledger.sent("vm", part.n, part.origin)
    assert supply.ledger.source("a").sent == supply.ledger.source("b").sent == part.n
    assert second.allowed[0] > 600
    check(supply)


def test_xor_below_min_sources_nothing_is_given_out_and_what_waited_is_destroyed() -> None:
    supply = make_supply("a", "b", policy=XOR, min_sources=2)
    supply.deliver("a", delivered(b"a" * 1_000))
    stand(supply, a=True, b=False)
    assert supply.serving == ()
    assert supply.ledger.source("a").destroyed == 1_000
    supply.deliver("a", delivered(b"a" * 512))
    assert supply.reservoir.stored == {}
    check(supply)
    held_back = [supply.withheld]
    stand(supply, a=True, b=True)
    held_back.append(supply.withheld)
    assert held_back == [True, False], "nor what was mixed before"
    supply.deliver("b", delivered(b"b" * 512))
    assert supply.reservoir.stored == {}, "nothing of before its return"
    check(supply)


def test_xor_more_than_may_wait_is_destroyed_and_not_lost_from_the_books() -> None:
    supply = make_supply("a", "b", policy=XOR, min_sources=2)
    supply.deliver("a", delivered(b"a" * (MIX_BYTES + 100)))
    assert supply.ledger.source("a").destroyed == 100
    check(supply)


def test_more_than_fits_beside_the_seed_reserve_is_destroyed_and_not_lost_from_the_books() -> None:
    supply = make_supply("a", "b", policy=COMBINE, size=4096, seed_reserve=3072)
    supply.deliver("a", delivered(b"a" * 4096))
    late = delivered(b"b" * 1_500)  # allowed when there was room
    supply.deliver("b", late)
    assert supply.reservoir.stored == {A: 3072, B: 1024}
    assert supply.ledger.source("b").destroyed == 476
    assert not any(late.released)
    check(supply)


def give_as_allowed(supply: Supply, readers: dict[str, Reader], *names: str) -> None:
    """These sources give windows as long as they may."""
    read = {name: supply.ledger.source(name).read for name in names}
    for name in names:
        while read[name] + 512 <= readers[name].allowed[0]:
            supply.deliver(name, delivered(name.encode() * 512))
            read[name] += 512


@pytest.mark.parametrize("seed_reserve", [1024, 32_768])
@pytest.mark.parametrize("size", [4096, 65536, 262_144])
def test_xor_the_others_go_on_when_the_one_that_they_waited_for_is_gone(size: int, seed_reserve: int) -> None:
    seed_reserve = min(seed_reserve, size // 4)
    supply = make_supply("a", "b", "c", policy=XOR, min_sources=2, size=size, seed_reserve=seed_reserve)
    readers = {name: attach(supply, name, Reader()) for name in "abc"}
    give_as_allowed(supply, readers, "c", "b", "a")
    give_as_allowed(supply, readers, "c", "b", "a")
    parts = supply.reservoir.take(supply.reservoir.available)[1]
    for part in parts:
        supply.ledger.sent("vm", part.n, part.origin)
    supply.allow()
    give_as_allowed(supply, readers, "a", "b")
    waited = supply.held["a"]
    assert waited == supply.held["b"] >= min(supply.reservoir.room, MIX_BYTES) - 512
    filled: list[int] = []
    supply.filled = lambda: filled.append(supply.reservoir.stored[MIX])
    stand(supply, a=True, b=True, c=False)
    assert filled == [waited]
    assert supply.held == {"a": 0, "b": 0, "c": 0}
    assert supply.ledger.source("a").destroyed == 0
    check(supply)


def test_an_alarm_destroys_what_the_source_had_a_part_in_and_nothing_else() -> None:
    supply = make_supply("a", "b", policy=COMBINE)
    alarms: list[str] = []
    supply.alarmed = lambda: alarms.append("")
    for _ in range(3):
        supply.deliver("a", delivered(b"a" * 600))
        supply.deliver("b", delivered(b"b" * 500))
    supply.deliver("a", alarm(700))
    assert supply.reservoir.stored == {B: 1_500}
    assert supply.ledger.source("a").destroyed == 1_800
    assert supply.ledger.source("a").discarded == 2_500
    assert len(alarms) == 1
    supply.deliver("a", alarm(512))
    assert len(alarms) == 1, "nothing of it is anywhere, so no channel has to be cut"
    assert supply.reservoir.stored == {B: 1_500}
    check(supply)


def test_an_alarm_destroys_mixes_and_what_waits_for_one() -> None:
    supply = make_supply("a", "b", policy=XOR, min_sources=1)
    supply.deliver("a", delivered(b"a" * 700))
    supply.deliver("b", delivered(b"b" * 500))
    supply.deliver("a", alarm(30))
    assert supply.reservoir.stored == {}
    assert supply.ledger.source("a").destroyed == 700
    assert supply.ledger.source("b").destroyed == 500
    check(supply)


def test_nothing_is_sent_between_an_alarm_and_its_delivery() -> None:
    supply = make_supply("a", "b")
    attach(supply, "a", Reader())
    second = attach(supply, "b", Reader())
    pending = [supply.withheld]
    second.alarms += 1
    pending.append(supply.withheld)
    supply.deliver("b", alarm())
    pending.append(supply.withheld)
    supply.detach("b")
    third = attach(supply, "b", Reader())
    pending.append(supply.withheld)
    third.alarms += 1
    pending.append(supply.withheld)
    assert pending == [False, True, False, False, True], "each reader counts its own"


def test_what_an_abandoned_reader_held_is_discarded_and_the_next_one_begins_anew() -> None:
    supply = make_supply("a")
    attach(supply, "a", Reader())
    supply.deliver("a", Delivery(900, bytearray(b"a" * 512), 0, 388))
    supply.detach("a")
    assert supply.ledger.source("a").discarded == 388
    check(supply)
    reader = attach(supply, "a", Reader())
    assert reader.allowed[0] == supply.reservoir.room


def test_an_alarm_of_an_abandoned_reader_that_never_arrived_destroys_all_the_same() -> None:
    supply = make_supply("a", "b", policy=COMBINE)
    reader = attach(supply, "a", Reader())
    alarms: list[str] = []
    supply.alarmed = lambda: alarms.append("")
    supply.deliver("a", Delivery(900, bytearray(b"a" * 512), 0, 388))
    supply.deliver("b", delivered(b"b" * 512))
    reader.alarms += 1
    supply.detach("a")
    assert supply.reservoir.stored == {B: 512}
    assert len(alarms) == 1
    assert not supply.withheld
    check(supply)
    attach(supply, "a", Reader())
    supply.deliver("a", delivered(b"a" * 512))
    supply.detach("a")
    assert supply.reservoir.stored == {B: 512, A: 512}, "an alarm counts once"


def test_room_is_counted_in_noise_where_noise_is_conditioned() -> None:
    supply = make_supply("a")
    reader = attach(supply, "a", Reader(min_entropy=4.0))  # 80 noise bytes for each 32
    assert reader.allowed == (65536 * 80 // 32, 0)
    supply.deliver("a", Delivery(1_000, bytearray(b"a" * 384), 0, 40, conditioned=576))
    assert supply.ledger.source("a").conditioned == 576
    check(supply)


def test_a_read_of_noise_that_is_conditioned_brings_less() -> None:
    supply = make_supply("a")
    attach(supply, "a", Reader(min_entropy=4.0))  # 80 noise bytes for each 32
    assert supply.read_size == 512 * 32 // 80


@pytest.mark.parametrize(("policy", "together"), [(FAILOVER, 1_000), (COMBINE, 1_400), (XOR, 400)])
def test_the_capacity_is_that_of_those_that_serve(policy: str, together: int) -> None:
    supply = make_supply("a", "b", policy=policy)
    seen = [(supply.capacity, supply.read_size)]
    attach(supply, "a", Reader(rate=1_000))
    seen.append((supply.capacity, supply.read_size))
    attach(supply, "b", Reader(rate=1_000, min_entropy=4.0))
    assert supply.capacity_of("b") == 400
    seen.append((supply.capacity, supply.read_size))
    stand(supply, a=False, b=False)
    seen.append((supply.capacity, supply.read_size))  # the capacity stays what it was
    assert seen == [(None, 0), (1_000, 512), (together, 512), (together, 0)]


def test_a_change_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "netrng.source"):
        supply = make_supply("a", "b")
        stand(supply, a=False, b=True)
        stand(supply, a=False, b=True)
        stand(supply, a=True, b=True)
        stand(supply, a=False, b=False)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "failover: VMs are served from the source a"),
        ("WARNING", "failover: VMs are served from the source b"),
        ("INFO", "failover: VMs are served from the source a"),
        (
            "WARNING",
            "failover: no source is healthy: VMs get what is in store, then nothing",
        ),
    ]


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (FAILOVER, "failover: no source is healthy: VMs get what is in store, then nothing"),
        (XOR, "xor: nothing is given out: of 2 sources that count 0 are healthy, and 2 are needed"),
    ],
)
def test_who_serves_is_said_when_it_has_passed_its_start_up(
    policy: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    starting = [Standing(name, healthy=False, starting=True) for name in MIX]
    absent = [Standing(name, healthy=False) for name in MIX]
    healthy = [Standing(name, healthy=True) for name in MIX]
    with caplog.at_level(logging.INFO, "netrng.source"):
        supply = Supply(MIX, policy, 2, Reservoir(65536, 1024), Ledger())
        supply.review(starting)
        supply.review([absent[0], starting[1]])
        assert not caplog.records
        supply.review(absent)
        supply.review(absent)
        supply.review([starting[0], absent[1]])
        supply.review(healthy)
    said = [record.getMessage() for record in caplog.records]
    served = "the source a" if policy == FAILOVER else "the mix of a, b"
    assert said == [told, f"{policy}: VMs are served from {served}"]


def test_a_prng_that_serves_is_called_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "netrng.source"):
        supply = make_supply("a", "trial")
        supply.review([Standing("a", healthy=False), Standing("trial", healthy=True, prng=True)])
    assert caplog.records[-1].getMessage() == "failover: VMs are served from the source trial (PRNG)"


def test_an_alarm_names_its_test(caplog: pytest.LogCaptureFixture) -> None:
    make_supply("a").deliver("a", alarm(700))
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == (
        "source a: health test alarm: repetition-count: 6 equal bytes in a row, alarm from 6; "
        "700 bytes not yet handed out are destroyed"
    )


def test_a_single_source_says_all_by_its_own_state(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "netrng.source"):
        stand(make_supply("a"), a=False)
    assert not caplog.records


def test_after_the_end_everything_is_destroyed_and_nothing_taken() -> None:
    supply = make_supply("a", "b", policy=XOR)
    supply.deliver("a", delivered(b"a" * 600))
    supply.deliver("b", delivered(b"b" * 500))
    supply.stop()
    late = delivered(b"l" * 100)
    supply.deliver("a", late)
    assert not any(late.released)
    assert supply.reservoir.stored == {}
    check(supply)
