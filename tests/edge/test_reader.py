# SPDX-License-Identifier: Apache-2.0
"""The reader's thread against real descriptors: FIFOs, /dev/zero, /dev/full, files, what is not there."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from tests.edge.rig import PATIENCE_S, until, wait_for

from netrng_hostd.config import SourceConfig
from netrng_hostd.core.vetting import Vetted, Vetting
from netrng_hostd.sources import Source, SourceFailure, make_source
from netrng_hostd.sources.delivery import Outbox
from netrng_hostd.sources.pace import ALARM_MEMORY_NS, FIRST_RETRY_NS, SETTLED_NS
from netrng_hostd.sources.reader import LOOK_NS, MAX_READ, Delivery, SourceReader, SourceState


def noise(length: int, key: bytes = b"netrng") -> bytes:
    """Bytes that pass the health tests and are the same each time."""
    return hashlib.shake_256(key).digest(length)


class Collector:
    """What a reader told the loop."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.states: list[SourceState] = []
        self.failures: list[BaseException] = []
        self.released = bytearray()

    def deliver(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self.released += delivery.released

    @property
    def read(self) -> int:
        return sum(delivery.read for delivery in self.deliveries)

    @property
    def discarded(self) -> int:
        return sum(delivery.discarded for delivery in self.deliveries)

    @property
    def names(self) -> list[str]:
        return [state.name for state in self.states]


class Script:
    """A source whose reads bring, one after the other, what ``reads`` yields; then nothing more."""

    def __init__(self, reads: Iterable[bytes | Exception]) -> None:
        self._reads = iter(reads)
        self.opened = 0
        self.closed = 0

    def open(self) -> None:
        self.opened += 1

    def read_into(self, view: memoryview) -> int:
        data = next(self._reads, b"")
        if isinstance(data, Exception):
            raise data
        if not data:
            time.sleep(0.002)
        assert len(data) <= len(view)
        view[: len(data)] = data
        return len(data)

    def kernel_name(self) -> str | None:
        return None

    def close(self) -> None:
        self.closed += 1


def pieces(data: bytes) -> Iterator[bytes]:
    """In reads so small that each fits, however slow the machine makes the reader think the source is."""
    for start in range(0, len(data), 32):
        yield data[start : start + 32]


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns


@contextlib.contextmanager
def reading(
    source: Source,
    collector: Collector,
    allowance: int = 1 << 30,
    clock: Callable[[], int] = time.monotonic_ns,
    vetting: Vetting | None = None,
) -> Iterator[SourceReader]:
    reader = SourceReader(
        source,
        vetting or Vetting(),
        asyncio.get_running_loop(),
        deliver=collector.deliver,
        state_changed=collector.states.append,
        failed=collector.failures.append,
        clock=clock,
    )
    reader.start()
    reader.allow(allowance)
    try:
        yield reader
    finally:
        assert reader.stop(PATIENCE_S)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def feed(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def test_what_passed_arrives_in_order_and_everything_adds_up(fifo: Path) -> None:
    data = noise(20_000)

    async def scenario() -> None:
        collector = Collector()
        with reading(make_source(SourceConfig(kind="prng", path=str(fifo))), collector):
            await asyncio.to_thread(feed, fifo, data)
            await until(lambda: collector.read == len(data))
            await until(lambda: collector.names == ["healthy"])
        held = collector.deliveries[-1].held
        assert len(collector.released) + held == len(data)
        assert data.startswith(bytes(collector.released))

    asyncio.run(scenario(), debug=True)


def test_it_reads_no_further_than_it_is_allowed_and_goes_on_when_it_is(fifo: Path) -> None:
    data = noise(8_000)

    async def scenario() -> None:
        collector = Collector()
        source = make_source(SourceConfig(kind="prng", path=str(fifo)))
        with reading(source, collector, allowance=3_000) as reader:
            writer = asyncio.create_task(asyncio.to_thread(feed, fifo, data))
            await until(lambda: collector.read == 3_000)
            await writer  # the pipe has room for the rest: only the allowance held the reader back
            assert collector.read == 3_000
            reader.allow(2_000)  # what is read is read
            reader.allow(8_000)
            await until(lambda: collector.read == 8_000)
        assert data.startswith(bytes(collector.released))

    asyncio.run(scenario(), debug=True)


def test_a_stuck_source_gives_nothing_out_and_is_failed_after_the_second_alarm() -> None:
    async def scenario() -> None:
        collector = Collector()
        with reading(make_source(SourceConfig(kind="device", path="/dev/zero")), collector):
            await until(lambda: "failed" in collector.names)
            read_then = collector.read
            await until(lambda: collector.read > read_then)  # it is tried again
        assert not collector.released
        assert collector.names[:2] == ["starting", "failed"]
        assert collector.states[-1].detail == (
            "health test: repetition-count: 6 equal bytes in a row, alarm from 6"
        )
        alarms = [delivery.alarm for delivery in collector.deliveries if delivery.alarm]
        assert alarms

    asyncio.run(scenario(), debug=True)


def test_a_source_that_goes_bad_recovers_by_itself(fifo: Path) -> None:
    good = noise(4_096)
    later = noise(8_192, b"later")

    async def scenario() -> None:
        collector = Collector()
        keep_open = os.open(fifo, os.O_RDWR)
        try:
            with reading(make_source(SourceConfig(kind="prng", path=str(fifo))), collector):
                await asyncio.to_thread(feed, fifo, good)
                await until(lambda: collector.names == ["healthy"])
                await asyncio.to_thread(feed, fifo, bytes(300))  # in one window: one alarm
                await until(lambda: collector.names == ["healthy", "starting"])
                before = len(collector.released)
                await asyncio.to_thread(feed, fifo, later)
                await until(lambda: collector.names == ["healthy", "starting", "healthy"])
        finally:
            os.close(keep_open)
        assert collector.released[before:] in later
        assert bytes(8) not in collector.released

    asyncio.run(scenario(), debug=True)


GOOD = noise(2_048)
STUCK = bytes(512)  # a whole window, so that what follows is at a window's start: one alarm


def test_a_second_alarm_within_the_hour_is_a_failure_even_after_bytes_passed() -> None:
    script = Script([*pieces(GOOD + STUCK + GOOD + bytes(32) + GOOD)])

    async def scenario() -> None:
        collector, clock = Collector(), Clock()
        with reading(script, collector, clock=clock):
            await until(lambda: len(collector.states) >= 4)
            assert collector.names[:4] == ["healthy", "starting", "healthy", "failed"]
            await until(lambda: collector.names[4:] == ["healthy"])
        assert script.opened == 2

    asyncio.run(scenario(), debug=True)


def test_an_alarm_is_known_before_its_delivery_arrives() -> None:
    async def scenario() -> None:
        collector = Collector()
        with reading(Script(pieces(GOOD + bytes(32))), collector) as reader:
            wait_for(lambda: reader.alarms == 1, "the alarm")  # the loop stands still
            assert not collector.deliveries
            await until(lambda: any(delivery.alarm for delivery in collector.deliveries))

    asyncio.run(scenario(), debug=True)


def test_a_minute_without_a_failure_makes_the_waits_short_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waits = Clock(), list[int]()

    def wait(_reader: SourceReader, wait_ns: int) -> None:
        waits.append(wait_ns)
        clock.now_ns += wait_ns

    def reads() -> Iterator[bytes | Exception]:
        yield from [SourceFailure("error", "I/O error")] * 3
        clock.now_ns += SETTLED_NS
        yield from pieces(GOOD)
        while True:
            yield SourceFailure("error", "I/O error")

    monkeypatch.setattr(SourceReader, "_wait", wait)

    async def scenario() -> None:
        with reading(Script(reads()), Collector(), clock=clock):
            await until(lambda: len(waits) >= 6)
        assert waits[:6] == [0, *(FIRST_RETRY_NS * times for times in (1, 2, 4, 1, 2))]

    asyncio.run(scenario(), debug=True)


def test_alarms_more_than_an_hour_apart_are_chance() -> None:
    clock = Clock()

    def reads() -> Iterator[bytes]:
        for _ in range(4):
            yield from pieces(GOOD + STUCK)
            clock.now_ns += ALARM_MEMORY_NS
        yield from pieces(GOOD)

    async def scenario() -> None:
        collector, script = Collector(), Script(reads())
        with reading(script, collector, clock=clock):
            await until(lambda: len(collector.states) >= 9)
        assert collector.names == ["healthy", "starting"] * 4 + ["healthy"]
        assert script.opened == 1

    asyncio.run(scenario(), debug=True)


@pytest.mark.parametrize(
    "trouble",
    [
        bytes(32),
        SourceFailure("error", "cannot read: I/O error"),
        SourceFailure("absent", "no program writes", soon=True),
    ],
    ids=["alarm", "error", "writers that come and go"],
)
def test_a_source_that_fails_for_ever_fills_no_log(
    trouble: bytes | SourceFailure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three simulated hours of a source that passes each start-up and then fails."""
    clock = Clock()
    minutes: dict[int, int] = {}

    def passing(_reader: SourceReader, wait_ns: int) -> None:
        clock.now_ns += wait_ns

    def reads() -> Iterator[bytes | Exception]:
        while clock.now_ns < 3 * ALARM_MEMORY_NS:
            for good in pieces(GOOD):
                clock.now_ns += 1_000_000
                yield good
            yield trouble

    def line() -> None:
        minute = clock.now_ns // 60_000_000_000
        minutes[minute] = minutes.get(minute, 0) + 1

    # Counted in the reader's thread: the loop would run later, at another simulated time.
    real_report = SourceReader._report

    def report(reader: SourceReader, state: SourceState) -> None:
        if state != reader._state:
            line()
        real_report(reader, state)

    monkeypatch.setattr(SourceReader, "_wait", passing)
    monkeypatch.setattr(SourceReader, "_report", report)

    async def scenario() -> None:
        collector = Collector()
        with reading(Script(reads()), collector, clock=clock):
            await until(lambda: clock.now_ns >= 3 * ALARM_MEMORY_NS)

    asyncio.run(scenario())
    first, *later = (minutes.get(minute, 0) for minute in range(180))
    assert first <= 20
    assert max(later) <= 5


@pytest.mark.parametrize(
    ("kind", "path", "state"),
    [
        ("device", "/nonexistent/hwrng", "absent"),
        ("device", "/dev/urandom", "error"),
        ("device", "/dev/null", "error"),
        ("prng", "/nonexistent/stream", "absent"),
    ],
)
def test_trouble_is_a_state_and_is_tried_again(kind: str, path: str, state: str) -> None:
    async def scenario() -> None:
        collector = Collector()
        with reading(make_source(SourceConfig(kind=kind, path=path)), collector):
            await until(lambda: bool(collector.states))
            assert collector.names == [state]
            assert path in collector.states[0].detail
        assert collector.read == 0

    asyncio.run(scenario(), debug=True)


def test_a_device_that_appears_later_is_found(tmp_path: Path) -> None:
    path = tmp_path / "late"

    async def scenario() -> None:
        collector = Collector()
        with reading(make_source(SourceConfig(kind="prng", path=str(path))), collector):
            await until(lambda: collector.names == ["absent"])
            whole = tmp_path / "whole"
            whole.write_bytes(noise(4_096))
            whole.rename(path)  # never seen empty
            await until(lambda: collector.names == ["absent", "healthy"])
            await until(lambda: collector.read == 4_096)

    asyncio.run(scenario(), debug=True)


def test_a_file_is_never_read_from_its_start_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(noise(2_048))

    async def scenario() -> None:
        collector = Collector()
        with reading(make_source(SourceConfig(kind="prng", path=str(path))), collector):
            await until(lambda: collector.read == 2_048)
            with path.open("ab") as file:
                file.write(noise(1_024, b"more"))
            await until(lambda: collector.read == 3_072)
        assert (noise(2_048) + noise(1_024, b"more")).startswith(bytes(collector.released))

    asyncio.run(scenario(), debug=True)

    source = make_source(SourceConfig(kind="prng", path=str(path)))
    source.open()
    source.close()
    with pytest.raises(Exception, match="would repeat"):
        source.open()


def test_a_fifo_in_the_place_of_a_device_does_not_hang(fifo: Path) -> None:
    async def scenario() -> None:
        collector = Collector()
        with reading(make_source(SourceConfig(kind="device", path=str(fifo))), collector):
            await until(lambda: collector.names == ["error"])
        assert "is a FIFO" in collector.states[0].detail

    asyncio.run(scenario(), debug=True)


def test_a_waiting_read_is_visible_and_stopping_is_not_held_up(fifo: Path) -> None:
    async def scenario() -> None:
        collector = Collector()
        keep_open = os.open(fifo, os.O_RDWR)
        try:
            with reading(make_source(SourceConfig(kind="prng", path=str(fifo))), collector) as reader:
                # Its first look at the device, which counts as a read while it lasts, is over.
                await until(lambda: reader._looked_ns and reader.read_since_ns)
                since = reader.read_since_ns
                await asyncio.sleep(0.5)  # two polls of the empty FIFO pass
                assert reader.read_since_ns == since
                await asyncio.to_thread(feed, fifo, noise(2_048))
                await until(lambda: collector.read == 2_048)
        finally:
            os.close(keep_open)

    asyncio.run(scenario(), debug=True)


def test_a_delivery_shows_no_bytes() -> None:
    delivery = Delivery(3, bytearray(b"key"), 0, 0, None)
    assert "key" not in repr(delivery)


def test_a_mistake_in_the_thread_is_told_and_leaves_nothing_behind() -> None:
    vetting = Remembering()

    async def scenario() -> None:
        collector = Collector()
        script = Script([*pieces(GOOD + noise(160)), ZeroDivisionError("of ours")])
        with reading(script, collector, vetting=vetting) as reader:
            await until(lambda: bool(collector.failures))
            assert [type(error) for error in collector.failures] == [ZeroDivisionError]
            assert collector.names == ["healthy", "error"]
            assert collector.states[-1].detail == "internal error: ZeroDivisionError; please report it"
            await until(lambda: collector.discarded == 160)  # the books are right to the end
            assert reader.read_since_ns is None  # which would show it as a stalled source
        assert script.closed == 1

    asyncio.run(scenario(), debug=True)
    assert not any(vetting.buffer)


def test_a_mistake_without_anybody_to_tell_is_a_state() -> None:
    async def scenario() -> None:
        states: list[SourceState] = []
        reader = SourceReader(
            Script([ZeroDivisionError()]), Vetting(), asyncio.get_running_loop(),
            deliver=lambda _delivery: None, state_changed=states.append,
        )  # fmt: skip
        reader.allow(64)
        reader.start()
        await until(lambda: [state.name for state in states] == ["error"])
        assert reader.stop(PATIENCE_S)

    asyncio.run(scenario(), debug=True)


class Remembering(Vetting):
    """Shows what a test may want to see wiped."""

    def __init__(self) -> None:
        super().__init__()
        self.released: list[bytearray] = []
        self.fed: list[memoryview] = []

    @property
    def buffer(self) -> bytearray:
        return self._health._buffer

    def feed(self, noise: bytes | bytearray | memoryview) -> Vetted:
        vetted = super().feed(noise)
        if isinstance(noise, memoryview):
            self.fed.append(noise[:])
        self.released.append(vetted.released)
        return vetted


def test_what_is_held_when_the_reader_stops_is_wiped() -> None:
    vetting = Remembering()

    async def scenario() -> None:
        collector = Collector()
        with reading(Script(pieces(noise(160))), collector, vetting=vetting):
            await until(lambda: collector.read == 160)
            assert any(vetting.buffer)
        assert not any(vetting.buffer)
        assert not any(any(view) for view in vetting.fed)

    asyncio.run(scenario(), debug=True)


def test_a_delivery_that_the_loop_can_no_longer_take_is_wiped() -> None:
    vetting = Remembering()

    async def scenario() -> None:
        collector = Collector()
        with reading(Script(pieces(GOOD)), collector, vetting=vetting):
            # No await: the loop runs nothing of what the thread hands over, and after stop() it must not.
            wait_for(lambda: sum(map(len, vetting.released)) == len(GOOD), "all that is good")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not collector.deliveries

    asyncio.run(scenario(), debug=True)
    assert not any(map(any, vetting.released))


def test_a_delivery_that_nobody_takes_any_more_is_wiped() -> None:
    async def scenario() -> None:
        arrived: list[Delivery] = []
        outbox = Outbox(asyncio.get_running_loop(), arrived.append)
        outbox.close()
        late = Delivery(3, bytearray(b"abc"), 0, 0)
        assert not outbox.send(late)
        assert not any(late.released)
        await asyncio.sleep(0)
        assert not arrived

    asyncio.run(scenario(), debug=True)


def test_a_delivery_to_a_closed_loop_is_wiped_and_ends_the_thread() -> None:
    vetting = Remembering()
    go_on = threading.Event()

    def reads() -> Iterator[bytes]:
        assert go_on.wait(60.0)
        yield from pieces(GOOD)

    loop = asyncio.new_event_loop()
    reader = SourceReader(
        Script(reads()), vetting, loop, deliver=lambda _delivery: None, state_changed=lambda _state: None
    )
    reader.allow(1 << 30)
    reader.start()
    loop.close()
    go_on.set()
    wait_for(lambda: not reader.alive, "its end")
    assert vetting.released
    assert not any(map(any, vetting.released))
    assert not any(vetting.buffer)
    assert reader.stop(PATIENCE_S)


def test_a_read_that_comes_back_after_the_stop_is_thrown_away() -> None:
    vetting = Remembering()
    reached, go_on = threading.Event(), threading.Event()

    def reads() -> Iterator[bytes]:
        yield from pieces(noise(160))
        reached.set()
        assert go_on.wait(60.0)
        yield from pieces(GOOD)

    async def scenario() -> None:
        collector = Collector()
        with reading(Script(reads()), collector, vetting=vetting) as reader:
            await asyncio.to_thread(reached.wait, 60.0)
            assert not reader.stop(0.01)
            assert not any(vetting.buffer)  # without waiting for the read
            fed = len(vetting.fed)
            go_on.set()
            await until(lambda: not reader.alive)
        assert len(vetting.fed) == fed
        assert not any(vetting.buffer)

    asyncio.run(scenario(), debug=True)


class Steady:
    """A source that gives so many bytes in a second of a clock that only it moves."""

    def __init__(self, clock: Clock, rate: int = 10_000) -> None:
        self._clock = clock
        self._rate = rate
        self.given = self.looks = 0

    def open(self) -> None: ...
    def close(self) -> None: ...

    def kernel_name(self) -> None:
        self.looks += 1

    def read_into(self, view: memoryview) -> int:
        view[:] = noise(len(view), b"%d" % self.given)
        self.given += len(view)
        self._clock.now_ns += len(view) * 1_000_000_000 // self._rate
        return len(view)


class Immediate(Steady):
    """A source that takes no time, and remembers how much was asked of it."""

    def __init__(self) -> None:
        super().__init__(Clock(), 1 << 40)
        self.asked: list[int] = []

    def read_into(self, view: memoryview) -> int:
        self.asked.append(len(view))
        return super().read_into(view)


DOUBLED = [64 << n for n in range(10)]  # up to MAX_READ


def test_where_a_source_is_fast_room_is_waited_for_a_whole_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would be read a sample at a time."""
    monkeypatch.setattr("netrng_hostd.sources.reader.WAKE_S", PATIENCE_S)

    async def scenario() -> None:
        collector, source = Collector(), Immediate()
        with reading(source, collector, allowance=sum(DOUBLED), clock=Clock()) as reader:
            await until(lambda: collector.read == sum(DOUBLED))
            for room in range(512, MAX_READ + 1, 512):
                assert source.asked == DOUBLED, f"with room for {room} bytes"
                reader.allow(sum(DOUBLED) + room)
                await asyncio.sleep(0.001)  # in which it would read less, if it did
            await until(lambda: collector.read == sum(DOUBLED) + MAX_READ)
            assert source.asked == [*DOUBLED, MAX_READ]

    asyncio.run(scenario(), debug=True)


def test_room_for_a_part_of_a_read_is_filled_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may never be more: where reservations keep most of a small reservoir."""
    monkeypatch.setattr("netrng_hostd.sources.reader.WAKE_S", 0.005)

    async def scenario() -> None:
        collector, source = Collector(), Immediate()
        with reading(source, collector, allowance=sum(DOUBLED), clock=Clock()) as reader:
            await until(lambda: collector.read == sum(DOUBLED))
            reader.allow(sum(DOUBLED) + 100)
            await until(lambda: collector.read == sum(DOUBLED) + 100)
            assert source.asked == [*DOUBLED, 100]

    asyncio.run(scenario(), debug=True)


class Ceasing(Immediate):
    """That source, which gives ``last`` bytes in one more read and then nothing, each time a second later."""

    def __init__(self, clock: Clock, last: int) -> None:
        super().__init__()
        self._clock = clock
        self.ceased = threading.Event()
        self.asked_in_vain = 0
        self._last = last

    def read_into(self, view: memoryview) -> int:
        if not self.ceased.is_set():
            return super().read_into(view)
        count, self._last = self._last, 0
        view[:count] = noise(count)
        self._clock.now_ns += 1_000_000_000
        self.asked_in_vain += not count
        return count


@pytest.mark.parametrize("last", [0, 10])
@pytest.mark.parametrize("room", [300, 20_000, MAX_READ])
def test_a_silence_lasts_whatever_room_there_is(
    last: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a source that falls silent beside VMs that ask for little would seem healthy for minutes."""
    monkeypatch.setattr("netrng_hostd.sources.reader.WAKE_S", 0.005)

    async def scenario() -> None:
        clock, collector = Clock(), Collector()
        source = Ceasing(clock, last)
        with reading(source, collector, allowance=sum(DOUBLED), clock=clock) as reader:
            await until(lambda: collector.read == sum(DOUBLED))
            source.ceased.set()
            reader.allow(sum(DOUBLED) + room)
            await until(lambda: source.asked_in_vain)
            began = reader.read_since_ns, reader.passed_since_ns
            assert None not in began
            asked = source.asked_in_vain
            while source.asked_in_vain < asked + 20:
                assert (reader.read_since_ns, reader.passed_since_ns) == began
                await asyncio.sleep(0.001)

    asyncio.run(scenario(), debug=True)


def test_a_probe_measures_though_nobody_has_room_and_then_stops_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("netrng_hostd.sources.reader.WAKE_S", 0.005)

    async def scenario() -> None:
        clock, collector = Clock(), Collector()
        source, vetting = Steady(clock), Remembering()
        with reading(source, collector, allowance=2_000, clock=clock, vetting=vetting) as reader:
            await until(lambda: collector.read == 2_000)
            assert not reader.capacity.measured_ns
            before = len(collector.released)
            reader.probe()
            await until(lambda: reader.capacity.rate is not None and collector.read == source.given)
            assert reader.capacity.rate == 10_000
            given = source.given
            assert given > 10_000
            assert len(collector.released) == before  # nobody has room: tested, and thrown away
            delivered = {id(delivery.released) for delivery in collector.deliveries}
            assert not any(any(released) for released in vetting.released if id(released) not in delivered)
            looked = source.looks

            def three_looks() -> bool:
                clock.now_ns += LOOK_NS
                return source.looks >= looked + 3

            await until(three_looks)  # it looks whether it may read on, and may not
            assert source.given == given
            reader.allow(collector.read + 5_000)
            await until(lambda: len(collector.released) > before)
        assert collector.read == len(collector.released) + collector.discarded + collector.deliveries[-1].held

    asyncio.run(scenario(), debug=True)


def test_a_source_that_may_be_read_no_more_before_anything_came_is_not_silent() -> None:
    async def scenario() -> None:
        with reading(Script([]), Collector(), allowance=1_000) as reader:
            await until(lambda: reader.read_since_ns is not None)
            reader.allow(0)
            await until(lambda: reader.read_since_ns is None)
            reader.allow(1_000)
            await until(lambda: reader.read_since_ns is not None)

    asyncio.run(scenario(), debug=True)


class Unplugged(Steady):
    """That source, which fails once on the way."""

    failing = True

    def read_into(self, view: memoryview) -> int:
        if self.failing and self.given >= 1_500:
            self.failing = False
            raise SourceFailure("absent", "unplugged")
        return super().read_into(view)


class Flawed(Steady):
    """That source, with one read on the way that raises an alarm, or two of them."""

    flawed = twice = False

    def read_into(self, view: memoryview) -> int:
        count = super().read_into(view)
        if not self.flawed and self.given > 1_500:
            self.flawed = True
            view[:10] = bytes(10)
            if self.twice:  # in the next window
                view[-10:] = bytes(10)
        return count


def test_after_an_alarm_a_source_passes_its_start_up_though_nobody_has_room() -> None:
    async def scenario() -> None:
        clock, collector = Clock(), Collector()
        with reading(Flawed(clock), collector, allowance=2_000, clock=clock):
            await until(lambda: collector.names == ["healthy", "starting", "healthy"])

    asyncio.run(scenario(), debug=True)


def test_two_alarms_in_one_read_are_proof() -> None:
    async def scenario() -> None:
        clock, collector = Clock(), Collector()
        source = Flawed(clock)
        source.twice = True
        with reading(source, collector, allowance=2_000, clock=clock):
            await until(lambda: collector.names[:2] == ["healthy", "failed"])

    asyncio.run(scenario(), debug=True)


class Hanging(Script):
    """A source one of whose calls does not return until it is let go."""

    def __init__(self, call: str) -> None:
        super().__init__([SourceFailure("error", "so that it is closed")])
        self._call = call
        self.hangs, self.let_go = threading.Event(), threading.Event()

    def _hang(self, call: str) -> None:
        if call == self._call:
            self.hangs.set()
            assert self.let_go.wait(60.0)

    def open(self) -> None:
        self._hang("open")

    def read_into(self, view: memoryview) -> int:
        self._hang("read_into")
        return super().read_into(view)

    def kernel_name(self) -> None:
        self._hang("kernel_name")

    def close(self) -> None:
        self._hang("close")


@pytest.mark.parametrize("call", ["open", "read_into", "kernel_name", "close"])
def test_a_call_that_does_not_return_is_known_by_its_time(call: str) -> None:
    async def scenario() -> None:
        clock, source = Clock(), Hanging(call)
        with reading(source, Collector(), clock=clock) as reader:
            await until(source.hangs.is_set)
            assert reader.busy_since_ns == clock.now_ns
            source.let_go.set()
        assert reader.busy_since_ns is None

    asyncio.run(scenario(), debug=True)


def test_the_first_attempt_comes_after_the_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    source = Script([])

    def wait(_reader: SourceReader, wait_ns: int) -> None:
        assert not source.opened
        waits.append(wait_ns)

    monkeypatch.setattr(SourceReader, "_wait", wait)

    async def scenario() -> None:
        reader = SourceReader(
            source, Vetting(), asyncio.get_running_loop(),
            deliver=lambda _: None, state_changed=lambda _: None, delay_ns=7,
        )  # fmt: skip
        reader.start()
        await until(lambda: source.opened)
        assert reader.stop(PATIENCE_S)
        assert waits == [7]

    asyncio.run(scenario(), debug=True)


def test_a_source_that_is_opened_again_is_measured_and_passes_its_start_up_though_nobody_has_room() -> None:
    async def scenario() -> None:
        clock, collector = Clock(), Collector()
        source = Unplugged(clock)
        with reading(source, collector, allowance=2_000, clock=clock) as reader:
            await until(lambda: reader.capacity.rate == 10_000)
            await until(lambda: collector.read == source.given)
            assert collector.names[-3:] == ["healthy", "absent", "healthy"]
            assert collector.read > 10_000

    asyncio.run(scenario(), debug=True)


def test_a_slow_source_that_is_opened_again_is_read_until_it_has_passed_its_start_up_though_nobody_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("netrng_hostd.sources.reader.WAKE_S", 0.005)

    async def scenario() -> None:
        clock, collector = Clock(), Collector()
        source = Unplugged(clock, rate=200)  # its start-up takes five measurements
        with reading(source, collector, allowance=1_600, clock=clock):
            await until(lambda: collector.names[-3:] == ["healthy", "absent", "healthy"])
            await until(lambda: collector.read == source.given)
            assert collector.read < 1_500 + 1_024 + 3 * 200, "and no further than to its next measurement"

    asyncio.run(scenario(), debug=True)


def test_in_a_probe_older_bytes_make_room_for_newer_ones_while_the_loop_keeps_up() -> None:
    async def scenario() -> None:
        clock, collector = Clock(), Collector()
        with reading(Steady(clock), collector, allowance=2_000, clock=clock) as reader:
            await until(lambda: collector.read == 2_000)
            reader.allow(2_000, replaceable=3_000)
            reader.probe()
            await until(lambda: reader.capacity.rate == 10_000)
            await until(lambda: collector.discarded > 0)
        assert 4_000 < len(collector.released) <= 5_000

    asyncio.run(scenario(), debug=True)
