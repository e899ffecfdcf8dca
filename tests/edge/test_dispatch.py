# SPDX-License-Identifier: Apache-2.0
"""The dispatcher between a real scheduler, reservoir and ledger, with channels that only take samples."""

from __future__ import annotations

import asyncio
import functools
import os
from typing import cast

from tests.edge.rig import until, wait_for
from tests.edge.supplied import SOURCE, delivered, make_supply

from netrng_hostd.channels.channel import Channel
from netrng_hostd.core.health import BYTE_WINDOW, Alarm
from netrng_hostd.core.policy import COMBINE
from netrng_hostd.core.quota import Quota
from netrng_hostd.core.scheduler import Scheduler
from netrng_hostd.core.vetting import Vetting
from netrng_hostd.dispatch import Dispatcher
from netrng_hostd.sources.reader import Delivery, SourceReader


class Taker:
    """What the dispatcher uses of a channel."""

    def __init__(self, body: int = 0) -> None:
        self.wanted = (0, body)
        self.taken = 0
        self.destroyed = 0
        self.acknowledges = True
        self.sent = 1
        self.in_flight = 0

    def send_sample(self, data: bytearray) -> None:
        self.taken += len(data)
        self.in_flight += len(data)
        self.wanted = (0, self.wanted[1] - len(data))

    def destroy_unsent(self) -> None:
        self.destroyed += 1


def as_channel(taker: Taker) -> Channel:
    return cast(Channel, taker)


def make(*takers: Taker, quota: Quota | None = None) -> Dispatcher:
    dispatcher = Dispatcher(make_supply(), Scheduler(512))
    for number, taker in enumerate(takers):
        dispatcher.add(f"uuid-{number}", as_channel(taker), quota or Quota())
        dispatcher.wants_changed(as_channel(taker))
    return dispatcher


def test_one_that_stops_asking_without_a_word_stops_no_other() -> None:
    async def scenario() -> None:
        silent, good = Taker(100_000), Taker(100_000)
        dispatcher = make(silent, good, quota=Quota(limit=100_000))
        silent.wanted = (0, 0)
        dispatcher.supply.deliver(SOURCE, delivered(bytes(30_000)))
        await until(lambda: good.taken >= 20_000)
        assert silent.taken == 0
        dispatcher.check()
        dispatcher.stop()

    asyncio.run(scenario(), debug=True)


def test_a_limit_is_waited_for_with_a_full_reservoir_and_no_delivery() -> None:
    async def scenario() -> None:
        taker = Taker(100_000)
        dispatcher = make(taker, quota=Quota(limit=50_000))
        dispatcher.supply.deliver(SOURCE, delivered(bytes(60_000)))
        await until(lambda: taker.taken >= 20_000)  # the burst is 4 KiB: the rest came by the timer
        dispatcher.stop()

    asyncio.run(scenario(), debug=True)


class GoodThenStuck:
    """A source of 20,000 random bytes, and then zeros until it is mended."""

    def __init__(self) -> None:
        self.given = 0
        self.mended = False

    def open(self) -> None: ...
    def close(self) -> None: ...
    def kernel_name(self) -> None: ...

    def read_into(self, view: memoryview) -> int:
        good = self.given < 20_000 or self.mended
        view[:] = os.urandom(len(view)) if good else bytes(len(view))
        self.given += len(view)
        return len(view)


def test_nothing_is_sent_once_the_reader_knows_of_an_alarm_until_the_source_has_recovered() -> None:
    async def scenario() -> None:
        taker = Taker(60_000)
        dispatcher = make(taker)
        source = GoodThenStuck()
        reader = SourceReader(
            source, Vetting(), asyncio.get_running_loop(),
            deliver=functools.partial(dispatcher.supply.deliver, SOURCE), state_changed=lambda _: None,
            max_read=512,
        )  # fmt: skip
        reader.start()
        dispatcher.supply.attach(SOURCE, reader)
        try:
            wait_for(lambda: reader.alarms, "an alarm")  # the loop is busy all the while
            await until(lambda: taker.destroyed)
            assert taker.taken == 0
            assert dispatcher.reservoir.available + dispatcher.reservoir.seed_available == 0
            source.mended = True
            await until(lambda: taker.taken >= 20_000)
        finally:
            await asyncio.to_thread(reader.stop)
            dispatcher.stop()

    asyncio.run(scenario(), debug=True)


def test_a_probe_replaces_the_oldest_bytes_and_the_books_say_so() -> None:
    async def scenario() -> None:
        dispatcher = make()
        reservoir = dispatcher.reservoir
        dispatcher.supply.deliver(SOURCE, delivered(bytes(reservoir.room)))
        newer = delivered(b"n" * 500)
        dispatcher.supply.deliver(SOURCE, newer)
        assert reservoir.room == 0
        assert dispatcher.ledger.source(SOURCE).destroyed == 500
        assert not any(newer.released)
        dispatcher.check()
        reservoir.take(reservoir.available - 500)
        assert reservoir.take(500)[0] == b"n" * 500
        dispatcher.stop()

    asyncio.run(scenario(), debug=True)


def test_samples_and_what_is_kept_follow_the_source_and_those_who_ask() -> None:
    async def scenario() -> None:
        dispatcher = make(*(Taker(10_000) for _ in range(100)), quota=Quota(reservation=10))
        scheduler = dispatcher.scheduler
        dispatcher.adapt(None, 512)
        assert (scheduler.sample_size, scheduler.gap_ns) == (32, 0)
        dispatcher.adapt(10_240, 512)
        assert (scheduler.sample_size, scheduler.gap_ns) == (64, 100_000_000)
        dispatcher.adapt(1 << 20, 512)
        assert (scheduler.sample_size, scheduler.gap_ns) == (512, 976_562)
        dispatcher.adapt(1, 512)  # what is kept leaves room for a start-up
        assert scheduler.kept == dispatcher.reservoir.general_size - 1024 - 32
        dispatcher.stop()

    asyncio.run(scenario(), debug=True)


def test_what_is_kept_lasts_from_one_read_of_a_source_to_the_one_after_the_next() -> None:
    """One of 17 kB/s or more is read more than a window at a time: so long nothing comes."""

    async def scenario() -> None:
        for rate in (10_000, 50_000, 100_000, 400_000):
            dispatcher = make(Taker(100_000), quota=Quota(reservation=rate // 2))
            reader = SourceReader(
                GoodThenStuck(), Vetting(), asyncio.get_running_loop(),
                deliver=functools.partial(dispatcher.supply.deliver, SOURCE), state_changed=lambda _: None,
                max_read=12_288,
            )  # fmt: skip
            for _ in range(20):  # as it finds for itself how much to read at once
                want = reader._size.bytes
                reader._size.took(want, want, want * 1_000_000_000 // rate)
            dispatcher.supply.attach(SOURCE, reader)
            dispatcher.adapt(rate, 512)
            assert dispatcher.scheduler.kept >= max(512, reader._size.bytes)  # half of what two reads bring
            dispatcher.adapt(1, 512)  # as much as may be kept: the tests hold 511 bytes, and a read has room
            room = dispatcher.reservoir.general_size - dispatcher.scheduler.kept - 511
            assert room >= max(512, reader._size.bytes)
            dispatcher.stop()

    asyncio.run(scenario(), debug=True)


def test_beside_what_is_kept_there_is_room_for_a_read_of_each_source_that_shares_it() -> None:
    async def scenario() -> None:
        supply = make_supply("a", "b", "c", policy=COMBINE)
        dispatcher = Dispatcher(supply, Scheduler(512))
        readers = []
        for name in ("a", "b", "c"):
            reader = SourceReader(
                GoodThenStuck(), Vetting(), asyncio.get_running_loop(),
                deliver=functools.partial(supply.deliver, name), state_changed=lambda _: None,
                max_read=4096,
            )  # fmt: skip
            for _ in range(10):
                reader._size.took(reader.read_size, reader.read_size, 0)
            supply.attach(name, reader)
            readers.append(reader)
        dispatcher.add("uuid", as_channel(Taker()), Quota(reservation=1_000_000))
        dispatcher.adapt(1, 512)  # as much as may be kept
        assert dispatcher.scheduler.kept
        room = supply.reservoir.general_size - dispatcher.scheduler.kept
        share = room // len(readers) - (BYTE_WINDOW - 1)  # the tests of each hold so much
        assert all(share >= reader.read_size == 4096 for reader in readers)
        dispatcher.stop()

    asyncio.run(scenario(), debug=True)


def test_a_reader_that_probes_replaces_what_the_dispatcher_has() -> None:
    async def scenario() -> None:
        dispatcher = make()
        reservoir = dispatcher.reservoir
        source = GoodThenStuck()
        source.mended = True
        reader = SourceReader(
            source, Vetting(), asyncio.get_running_loop(),
            deliver=functools.partial(dispatcher.supply.deliver, SOURCE), state_changed=lambda _: None,
            max_read=512,
        )  # fmt: skip
        dispatcher.supply.attach(SOURCE, reader)
        reader.start()
        try:
            await until(lambda: reservoir.room < 512)
            before = bytes(reservoir._general._places)
            reader.probe()
            await until(lambda: dispatcher.ledger.source(SOURCE).destroyed > 2 * reservoir.general_size)
            assert sum(a == b for a, b in zip(before, reservoir._general._places)) < len(before) // 20
            await until(lambda: reader.capacity.rate)
            dispatcher.check()
        finally:
            await asyncio.to_thread(reader.stop)
            dispatcher.stop()

    asyncio.run(scenario(), debug=True)


def test_an_alarm_destroys_what_is_unsent_everywhere() -> None:
    async def scenario() -> None:
        taker = Taker()
        dispatcher = make(taker)
        dispatcher.supply.deliver(SOURCE, delivered(bytes(5_000)))
        assert dispatcher.reservoir.available + dispatcher.reservoir.seed_available == 5_000
        last = Delivery(700, bytearray(), 700, 0, Alarm("repetition-count", "6 equal bytes in a row"))
        dispatcher.supply.deliver(SOURCE, last)
        assert dispatcher.reservoir.available + dispatcher.reservoir.seed_available == 0
        assert taker.destroyed == 1
        assert dispatcher.ledger.source(SOURCE).discarded == 5_700
        dispatcher.check()
        dispatcher.stop()

    asyncio.run(scenario(), debug=True)


def test_a_delivery_after_the_end_is_overwritten_and_goes_nowhere() -> None:
    async def scenario() -> None:
        taker = Taker(1_000)
        dispatcher = make(taker)
        dispatcher.stop()
        late = delivered(b"l" * 500)
        dispatcher.supply.deliver(SOURCE, late)
        assert not any(late.released)
        assert taker.taken == 0

    asyncio.run(scenario(), debug=True)
