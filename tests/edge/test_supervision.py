# SPDX-License-Identifier: Apache-2.0
"""What the loop knows of a source, without ever looking at the device itself."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.edge.rig import PATIENCE_S, until
from tests.edge.supplied import make_supply

from netrng_hostd.config import SourceConfig
from netrng_hostd.core.policy import Standing
from netrng_hostd.sources import SourceFailure
from netrng_hostd.sources.pace import FIRST_RETRY_NS
from netrng_hostd.sources.reader import LOOK_NS, Delivery, SourceReader, SourceState
from netrng_hostd.supervision import LATE_NS, MAX_ABANDONED, MEMORY_NS, PROBE_NS, TRICKLE, SourceWatch

HWRNG = SourceConfig("hwrng", "device", "/dev/hwrng")
STALL_NS = int(HWRNG.stall_timeout * 1e9)


class Device:
    """A device whose name in the kernel a test chooses; at first it has nothing to read."""

    def __init__(self) -> None:
        self.name: str | None = "tpm-rng-0"
        self.absent = False
        self.broken = False
        self.gives = False
        self.opened = 0
        self.hangs = threading.Event()
        self.answers = threading.Event()
        self.hung = threading.Event()  # one look does hang, whatever `hangs` says from then on
        self.looks: list[threading.Thread] = []
        self.looks_when_broken: int | None = None

    def open(self) -> None:
        self.opened += 1
        if self.absent:
            raise SourceFailure("absent", "cannot open /dev/hwrng: No such file or directory")

    def read_into(self, view: memoryview) -> int:
        time.sleep(0.001)
        if self.broken:
            self.broken = False
            self.looks_when_broken = len(self.looks)
            raise SourceFailure("error", "cannot read /dev/hwrng: Input/output error")
        if self.gives:
            view[:] = os.urandom(len(view))
            return len(view)
        return 0

    def kernel_name(self) -> str | None:
        self.looks.append(threading.current_thread())
        if self.hangs.is_set():
            self.hung.set()
            assert self.answers.wait(60.0)
        return self.name

    def close(self) -> None:
        pass


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns


def watch_of(device: Device, clock: Clock, changed: Callable[[], None]) -> SourceWatch:
    return SourceWatch(
        HWRNG, make_supply("hwrng"), changed=changed, failed=lambda _error: None, max_read=512,
        make=lambda _config: device, clock=clock,
    )  # fmt: skip


class Watched:
    """A watch, its reader, and what they share, inside a running loop.

    Not ``reading``: nothing may be read, and nothing is probed.
    """

    def __init__(self, reading: bool = True) -> None:
        self.device, self.clock = Device(), Clock()
        self.changes = 0
        self.watch = watch_of(self.device, self.clock, self._changed)
        self._reading = reading

    def __enter__(self) -> Watched:
        with pytest.MonkeyPatch.context() as patched:
            if not self._reading:
                patched.setattr(SourceReader, "probe", lambda _reader: None)
                self.watch._supply.review([Standing("hwrng", healthy=False)])
            self.watch.start()
        return self

    @property
    def reader(self) -> SourceReader:
        assert self.watch.reader is not None
        return self.watch.reader

    def tick(self, now_ns: int) -> None:
        """As the daemon does all the time, and now."""
        for past_ns in range(self.watch._ticked_ns, now_ns, LATE_NS):
            self.watch.tick(past_ns)
        self.watch.tick(now_ns)

    def _changed(self) -> None:
        self.changes += 1

    async def looked(self) -> None:
        """Until a look at this time is over: a clock that is moved before that moves the next one away."""
        await until(lambda: self.reader._looked_ns == self.clock.now_ns)

    async def next_look(self) -> None:
        seen = len(self.device.looks)
        self.clock.now_ns += LOOK_NS
        await self.looked()
        assert len(self.device.looks) == seen + 1

    def __exit__(self, *_: object) -> None:
        self.device.answers.set()
        self.watch.stop(PATIENCE_S)
        assert self.watch.reader is None or not self.watch.reader.alive


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.INFO, "netrng.source"):
        yield lambda: [record.getMessage() for record in caplog.records if record.name == "netrng.source"]


def test_the_loop_never_looks_at_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def look(path: Path, *_: object, **__: object) -> str:
        looked.append(str(path))
        raise OSError

    async def scenario() -> None:
        with Watched() as it, monkeypatch.context() as patched:
            patched.setattr(Path, "stat", look)
            patched.setattr(Path, "read_text", look)
            it.watch.tick(it.clock.now_ns)

    asyncio.run(scenario(), debug=True)
    assert not looked


@pytest.mark.parametrize("reading", [True, False], ids=["reading", "waiting for room"])
def test_a_change_is_seen_within_a_second_and_said_once(
    reading: bool, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netrng_hostd.sources.reader.WAKE_S", 0.005)

    async def scenario() -> None:
        with Watched(reading) as it:
            await until(lambda: it.watch.rng_current == "tpm-rng-0")
            assert "virtual" not in it.watch.describe()
            await it.looked()
            opened = it.device.opened
            it.device.name = "virtio_rng.0"
            it.clock.now_ns += LOOK_NS
            await until(lambda: it.watch.rng_current == "virtio_rng.0")
            await until(lambda: it.device.opened == opened + 1)  # what follows is another device's
            assert it.watch.virtual
            assert "/dev/hwrng, virtio_rng.0 (virtual: its host's word)" in it.watch.describe()
            await it.looked()
            for _ in range(3):
                await it.next_look()
                it.watch.tick(it.clock.now_ns)
            assert threading.main_thread() not in it.device.looks

    asyncio.run(scenario(), debug=True)
    assert lines() == [
        "source hwrng: the kernel's hardware RNG is tpm-rng-0",
        "source hwrng: the kernel's hardware RNG changed from tpm-rng-0 "
        "to virtio_rng.0 (virtual: its host's word)",
    ]


def test_there_is_one_look_a_second_at_most_and_one_at_each_opening() -> None:
    async def scenario() -> None:
        with Watched() as it:
            await until(lambda: len(it.device.looks) == 1)
            it.clock.now_ns += LOOK_NS - 1
            it.device.broken = True
            await until(lambda: len(it.device.looks) == 2)  # the retry
            assert it.device.looks_when_broken == 1  # some reads, and no second look before the failure

    asyncio.run(scenario(), debug=True)


def test_what_is_gone_has_no_name(lines: Callable[[], list[str]]) -> None:
    async def scenario() -> None:
        with Watched() as it:
            await until(lambda: it.watch.rng_current == "tpm-rng-0")
            it.device.absent = it.device.broken = True
            await until(lambda: it.watch.state.name == "absent")
            assert it.watch.rng_current is None

    asyncio.run(scenario(), debug=True)
    assert "source hwrng: the kernel's hardware RNG changed from tpm-rng-0 to none" in lines()


def test_a_kernel_that_does_not_answer_is_a_stalled_source_and_holds_nobody_up(
    lines: Callable[[], list[str]],
) -> None:
    async def scenario() -> None:
        it = Watched(reading=False)  # nothing may be read: what does not return is the look
        it.device.hangs.set()
        supply, delays = it.watch._supply, list[int]()
        with it:
            it.watch.capacity.rate = 1_000
            for attempt in range(1, MAX_ABANDONED + 1):
                await until(lambda attempt=attempt: len(it.device.looks) == attempt)  # type: ignore[misc]
                it.tick(it.clock.now_ns + STALL_NS)
                hung = it.reader
                supply.deliver("hwrng", Delivery(700, bytearray(), 0, 700))
                it.watch.tick(it.clock.now_ns + STALL_NS + 1)
                assert it.watch.state.name == "stalled"
                assert supply.held == {"hwrng": 0}, "what the one that hangs held is gone"
                if it.watch.reader is not None:
                    delays.append(it.reader._delay_ns)
                    assert it.reader._retry is hung._retry, "alarms are remembered"
                    assert it.reader.capacity is it.watch.capacity is not hung.capacity
                    assert it.watch.capacity.rate == 1_000
            assert delays == [FIRST_RETRY_NS, 2 * FIRST_RETRY_NS]
            for _ in range(3):  # so many threads hang, and no more
                it.watch.tick(it.clock.now_ns + STALL_NS + 1)
                assert it.watch.reader is None
            it.device.hangs.clear()
            it.device.answers.set()
            await until(lambda: not any(thread.is_alive() for thread in it.device.looks))
            assert it.watch.rng_current is None  # what they bring is nobody's any more
            it.watch.tick(it.clock.now_ns)
            await until(lambda: it.watch.rng_current == "tpm-rng-0")

    asyncio.run(scenario(), debug=True)
    assert lines() == [
        "source hwrng: stalled: a read of /dev/hwrng has not returned for 5 s; it is left behind",
        "source hwrng: the kernel's hardware RNG is tpm-rng-0",
    ]


def test_at_the_end_it_is_said_what_is_left_behind(lines: Callable[[], list[str]]) -> None:
    async def scenario() -> None:
        it = Watched(reading=False)
        it.device.hangs.set()
        with it:
            await until(it.device.hung.is_set)
            it.device.hangs.clear()
            it.tick(it.clock.now_ns + STALL_NS + 1)
            it.watch.stop(PATIENCE_S)
            assert not it.reader.alive, "this one is not"
            assert lines()[-1] == "a read of /dev/hwrng does not return; it is left behind"

    asyncio.run(scenario(), debug=True)


def test_a_read_that_stood_still_with_the_daemon_has_all_its_time_again() -> None:
    async def scenario() -> None:
        it = Watched(reading=False)
        it.device.hangs.set()
        with it:
            await until(it.device.hung.is_set)  # not in the opening, which is over in a moment
            hung, woke_ns = it.reader, it.clock.now_ns + 60 * STALL_NS
            it.watch.tick(woke_ns)
            it.tick(woke_ns + STALL_NS)
            assert it.watch.reader is hung
            it.watch.tick(woke_ns + STALL_NS + 1)
            assert it.watch.reader is not hung
            assert it.watch.state.name == "stalled"

    asyncio.run(scenario(), debug=True)


def test_a_source_that_gives_nothing_is_stalled_and_proves_itself_before_it_counts_again(
    lines: Callable[[], list[str]],
) -> None:
    async def scenario() -> None:
        with Watched() as it:
            it.watch._state_changed(SourceState("healthy"))
            it.watch.capacity.measured_ns = it.clock.now_ns + 1
            assert it.watch.standing == Standing("hwrng", healthy=True, proved=True)
            await until(lambda: it.reader.read_since_ns is not None)
            await until(lambda: it.watch.rng_current)  # its line in the log is before those that count
            changes = it.changes
            it.clock.now_ns += STALL_NS
            it.tick(it.clock.now_ns)
            assert it.watch.state.name == "healthy"
            it.clock.now_ns += 1
            it.reader._probing = False
            await until(lambda: it.reader.busy_since_ns in (None, it.clock.now_ns))
            it.watch.tick(it.clock.now_ns)
            assert it.watch.state == SourceState("stalled", "no byte from /dev/hwrng for 5 s")
            assert it.watch.standing == Standing("hwrng", healthy=False)
            assert it.reader._probing
            it.device.gives = True
            # None as long as it takes to test what has come: the next read begins at this time.
            await until(lambda: it.reader.read_since_ns in (None, it.clock.now_ns))
            it.watch.tick(it.clock.now_ns)
            assert it.watch.standing == Standing("hwrng", healthy=True)
            assert it.changes == changes + 2

    asyncio.run(scenario(), debug=True)
    assert lines()[-2:] == [
        "source hwrng: stalled: no byte from /dev/hwrng for 5 s",
        "source hwrng: healthy",
    ]


def test_a_trickle_is_a_stalled_source_until_a_window_has_passed() -> None:
    async def scenario() -> None:
        with Watched() as it:
            it.watch._state_changed(SourceState("healthy"))
            await until(lambda: it.reader.passed_since_ns is not None)
            for _ in range(TRICKLE):  # a byte now and then, and each in time
                it.watch.tick(it.clock.now_ns)
                assert it.watch.state.name == "healthy"
                it.clock.now_ns += STALL_NS
                it.reader.read_since_ns = it.reader.busy_since_ns = None
                it.watch._ticked_ns = it.clock.now_ns  # the clock went on without standing still
            it.clock.now_ns += 1
            await until(lambda: it.reader.busy_since_ns in (None, it.clock.now_ns))
            it.reader.read_since_ns = None
            it.watch.tick(it.clock.now_ns)
            why = "no window of the health tests from /dev/hwrng in 60 s"
            assert it.watch.state == SourceState("stalled", why)
            it.device.gives = True
            await until(lambda: it.reader.passed_since_ns in (None, it.clock.now_ns))
            it.watch.tick(it.clock.now_ns)
            assert it.watch.state.name == "healthy"

    asyncio.run(scenario(), debug=True)


def test_one_that_has_begun_its_start_up_may_serve_where_no_other_does() -> None:
    async def scenario() -> None:
        with Watched(reading=False) as it:
            standings = [it.watch.standing]
            for state in ("healthy", "starting", "absent"):
                it.watch._state_changed(SourceState(state))
                standings.append(it.watch.standing)
            assert [standing.starting for standing in standings] == [True, False, True, False]
            assert [standing.healthy for standing in standings] == [False, True, False, False]

    asyncio.run(scenario(), debug=True)


def test_one_that_comes_and_goes_is_trusted_later_and_later() -> None:
    async def scenario() -> None:
        with Watched(reading=False) as it:
            holds = []
            for _ in range(8):
                it.watch._state_changed(SourceState("healthy"))
                it.watch._state_changed(SourceState("absent"))
                it.clock.now_ns += 100_000_000_000  # a trouble that lasts is no proof
                it.watch._state_changed(SourceState("healthy"))
                it.watch.capacity.measured_ns = it.clock.now_ns + 1
                begun_ns = it.clock.now_ns
                while not it.watch.standing.proved:
                    it.clock.now_ns += 1_000_000_000
                holds.append((it.clock.now_ns - begun_ns) // 1_000_000_000)
            assert holds == [0, 2, 4, 8, 16, 32, 60, 60]
            it.clock.now_ns += MEMORY_NS
            it.watch._state_changed(SourceState("absent"))
            it.watch._state_changed(SourceState("healthy"))
            it.watch.capacity.measured_ns = it.clock.now_ns + 1
            assert it.watch.standing.proved, "an hour is long enough"

    asyncio.run(scenario(), debug=True)


def test_an_old_capacity_is_measured_anew_of_a_healthy_source_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        it = Watched()
        probes: list[int] = []
        monkeypatch.setattr(SourceReader, "probe", lambda _reader: probes.append(it.clock.now_ns))
        with it:
            capacity = it.reader.capacity
            probes.clear()  # that of the start
            it.watch.tick(1)
            assert not probes
            it.watch._state_changed(SourceState("healthy"))
            it.watch.tick(1)
            capacity.rate, capacity.measured_ns = 1_000, 5
            it.watch.tick(5 + PROBE_NS)
            assert it.watch.capacity.rate == 1_000
            assert len(probes) == 1
            it.watch.tick(5 + PROBE_NS + 1)
            it.watch._state_changed(SourceState("failed"))
            it.watch.tick(5 + 2 * PROBE_NS)
            assert len(probes) == 2

    asyncio.run(scenario(), debug=True)
