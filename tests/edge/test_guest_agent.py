# SPDX-License-Identifier: Apache-2.0
"""The agent against the host's own half of the protocol, on a clock that the test moves."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.edge.guest_lab import Ended, FakePool, Lost, Opened, Rig, stream

from netrng_guest.agent import Agent
from netrng_guest.config import Settings
from netrng_guest.line import MAX_LOOK_NS
from netrng_guest.log import Log
from netrng_guest.loop import Loop
from netrng_guest.port import Port
from netrng_guest.rngd import RngdSink
from netrng_guest.sink import Sink


class Keeper(Sink):
    """Keeps what it takes in its hands until told to pass it on."""

    name = "keeper"

    def __init__(self) -> None:
        super().__init__()
        self.held = bytearray()
        self.passed = bytearray()
        self.stopped = False

    def offer(self, data: memoryview, now_ns: int) -> int:
        self.held += data
        return len(data)

    def pass_on(self) -> None:
        self.passed += self.held
        self._passed_on += len(self.held)
        self.held.clear()
        self.state = "ok"

    def flush(self, now_ns: int) -> None:
        self.held.clear()
        self._passed_on = 0

    def stop(self) -> None:
        self.stopped = True


def keeper(loop: Loop) -> Keeper:
    return Keeper()


def test_the_first_64_bytes_go_to_the_kernel_which_reseeds_whatever_the_sink(tmp_path: Path) -> None:
    with Rig(tmp_path, keeper, rate=None) as rig:
        rig.settle()
        assert rig.pool.given == stream(0, 64)
        assert rig.pool.reseeds == 1
        assert isinstance(rig.sink, Keeper)
        assert rig.sink.held == stream(64, 4096)


@pytest.mark.parametrize("chop", [1, 7, 100])
def test_the_same_however_chopped(tmp_path: Path, chop: int) -> None:
    with Rig(tmp_path, rate=1000, chop=chop) as rig:
        rig.settle()
        rig.pass_s(3)
        rig.settle(200)
        size = 64 + 2500 + 3000 // 512 * 512
        assert rig.pool.given == stream(0, size)
        assert rig.host.session.acked == size
        assert not rig.host.kinds(Lost)


def test_only_what_the_sink_took_is_acknowledged(tmp_path: Path) -> None:
    with Rig(tmp_path, keeper, rate=None) as rig:
        rig.settle()
        sink = rig.sink
        assert isinstance(sink, Keeper)
        assert (rig.host.session.sent, rig.host.session.acked) == (64 + 4096, 64)
        sink.pass_on()
        rig.settle()
        assert rig.host.session.acked == 64 + 4096
        assert rig.host.session.sent == 64 + 2 * 4096
        assert rig.agent.taken == 64 + 4096


def test_the_default_demand_a_seed_a_block_and_100_bytes_per_second(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        rig.settle()
        assert rig.host.session.sent == 64 + 2500
        rig.pass_s(60)
        assert rig.host.session.sent == 64 + 2500 + 6000
        assert rig.host.session.acked == rig.host.session.sent


def test_a_new_session_flushes_what_is_in_flight_and_gets_its_own_seed(tmp_path: Path) -> None:
    with Rig(tmp_path, keeper, rate=None) as rig:
        rig.settle()
        sink = rig.sink
        assert isinstance(sink, Keeper)
        assert sink.held
        spent = rig.host.spent
        rig.host.renew()
        rig.settle()
        assert rig.pool.given == stream(0, 64) + stream(spent, 64)
        assert rig.pool.reseeds == 2
        sink.pass_on()
        assert sink.passed == stream(spent + 64, 4096), "bytes of the old session reached the new one's"


def test_a_copied_vm_drops_everything_and_knocks(tmp_path: Path) -> None:
    kernel, uevents = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    uevents.setblocking(False)
    with kernel, uevents, Rig(tmp_path, keeper, rate=None, uevents=uevents) as rig:
        rig.settle()
        assert isinstance(rig.sink, Keeper)
        first, spent = rig.host.session, rig.host.spent
        assert rig.sink.held
        rig.host.paused = True
        kernel.send(b"change@/devices/x\0ACTION=change\0NEW_VMGENID=0\0")
        rig.settle()
        assert rig.sink.held
        kernel.send(b"change@/devices/x\0ACTION=change\0NEW_VMGENID=1\0SEQNUM=1\0")
        rig.settle()
        assert not rig.sink.held
        assert len(rig.agent._stock) == 0
        rig.host.paused = False
        rig.pass_s(3)
        assert len(rig.host.kinds(Opened)) == 2
        assert rig.pool.given == stream(0, 64) + stream(spent, 64)
        assert first is rig.host.session


def test_a_host_that_goes_is_looked_for_and_found(tmp_path: Path) -> None:
    with Rig(tmp_path, keeper) as rig:
        rig.settle()
        os.close(rig.host.link)
        for _ in range(5):
            rig.agent.step(rig.now_ns)
            rig.loop.wait(0)
        rig.now_ns += 1_100_000_000
        rig.agent.step(rig.now_ns)
        rig.host = rig.accept()
        rig.settle()
        assert rig.host.session.state == "open"
        assert rig.pool.reseeds == 2


def test_a_kernel_that_refuses_the_seed_loses_it(tmp_path: Path) -> None:
    pool = FakePool(OSError(5, "Input/output error"))
    with Rig(tmp_path, keeper, rate=None, pool=pool) as rig:
        rig.settle()
        assert rig.host.session.lost == 64
        assert rig.host.session.acked + rig.host.session.lost == 64


class Diary(FakePool):
    """Writes down when it is given something."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def credit(self, data: bytearray) -> None:
        super().credit(data)
        with self.path.open("a") as file:
            file.write("seed\n")


def test_the_seed_does_not_wait_for_a_slow_rngd_to_say_what_it_is(tmp_path: Path) -> None:
    rngd, diary = tmp_path / "rngd", tmp_path / "diary"
    rngd.write_text(f'#!/bin/sh\necho "rngd $1" >>{diary}\nsleep 0.3\n')
    rngd.chmod(0o755)

    def find() -> str:
        with diary.open("a") as file:
            file.write("looked for\n")
        return str(rngd)

    def slow(loop: Loop) -> Sink:
        return RngdSink(loop, lambda line: None, find)

    with Rig(tmp_path, slow, pool=Diary(diary)) as rig:
        for n in range(100):
            rig.agent.step(rig.now_ns + n * 10**9)
        assert not diary.exists(), "rngd was looked for without a session"
        rig.until(lambda: rig.sink.state == "absent", "rngd is looked for")
    assert diary.read_text().splitlines() == ["seed", "looked for", "rngd --help", "rngd --version"]


def test_a_seed_that_the_kernel_refused_is_followed_by_another_in_the_same_session(tmp_path: Path) -> None:
    pool = FakePool(OSError(5, "Input/output error"))
    with Rig(tmp_path, keeper, pool=pool) as rig:
        rig.settle()
        assert isinstance(rig.sink, Keeper)
        assert rig.sink.held == stream(64, 2500)
        pool.error = None
        rig.settle()
        assert not pool.given, "without waiting"
        rig.pass_s(1.5)
        assert len(pool.given) == 64
        assert pool.reseeds == 1
        rig.pass_s(60)
        assert len(pool.given) == 64, "one seed is enough"
        came = stream(0, rig.host.spent)
        place = came.index(pool.given)
        assert rig.sink.held == came[64:place] + came[place + 64 :]
        rig.sink.pass_on()
        rig.settle()
        assert len(rig.host.kinds(Opened)) == 1
        assert rig.host.session.lost == 64
        assert rig.host.session.acked == 64 + len(rig.sink.passed)


def test_a_kernel_that_refuses_every_seed_costs_one_a_minute(tmp_path: Path) -> None:
    with Rig(tmp_path, keeper, pool=FakePool(OSError(5, "Input/output error"))) as rig:
        rig.settle()
        assert isinstance(rig.sink, Keeper)
        for _ in range(60):
            rig.pass_s(10)
            rig.sink.pass_on()
            rig.settle(4)
        assert 10 * 64 <= rig.host.session.lost <= 17 * 64
        assert len(rig.sink.passed) > 50_000, "the sink goes without"
        assert len(rig.host.kinds(Opened)) == 1


@pytest.mark.parametrize(
    ("can_reseed", "told"),
    [(True, "credited and reseeded\n"), (False, "credited; this kernel cannot be told to reseed\n")],
)
def test_what_became_of_the_seed_is_said_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], can_reseed: bool, told: str
) -> None:
    pool = FakePool()
    pool.can_reseed = can_reseed
    with Rig(tmp_path, keeper, pool=pool) as rig:
        rig.settle()
    assert "64 bytes for the kernel, " + told in capsys.readouterr().err


def test_a_kernel_that_does_not_credit_shows_in_the_status(tmp_path: Path) -> None:
    with Rig(tmp_path, keeper, pool=FakePool(denied="RNDADDENTROPY: Operation not permitted")) as rig:
        rig.pass_s(2)
        assert rig.host.status["sink_state"] == "no-permission"
        assert rig.host.status["detail"] == "RNDADDENTROPY: Operation not permitted"


def test_the_status_follows_the_sink_at_most_once_a_second(tmp_path: Path) -> None:
    with Rig(tmp_path, keeper) as rig:
        rig.settle()
        rig.pass_s(2)
        before = len(rig.host.statuses)
        for n in range(20):
            rig.sink.state, rig.sink.detail = ("parked", "dying")[n % 2], str(n)
            rig.settle(4)
        assert len(rig.host.statuses) <= before + 1
        rig.pass_s(3)
        last = rig.host.status
        assert (last["sink"], last["sink_state"], last["detail"], last["taken"]) == (
            "keeper",
            "dying",
            "19",
            64,
        )
        assert set(last) == {"version", "sink", "sink_state", "detail", "taken"}


def test_stopping_says_bye_wipes_and_stops_the_sink(tmp_path: Path) -> None:
    with Rig(tmp_path, keeper, rate=None) as rig:
        rig.settle()
        rig.stop()
        assert isinstance(rig.sink, Keeper)
        assert rig.sink.stopped and not rig.sink.held
        rig.host.turn()
        rig.host.turn()
        ended = rig.host.kinds(Ended)
        assert len(ended) == 1 and isinstance(ended[0], Ended)
        assert "bye" in ended[0].reason.lower() or "stop" in ended[0].reason.lower()


def test_a_flood_of_garbage_stops_nothing(tmp_path: Path) -> None:
    with Rig(tmp_path, rate=1000) as rig:
        rig.settle()
        rig.host._output += os.urandom(300_000)
        rig.settle(100)
        rig.pass_s(10)
        assert rig.host.session.sent > 64 + 2500
        assert rig.host.session.acked == rig.host.session.sent


class HostlessPort(Port):
    """A virtio-serial port without a host, as the kernel shows it: end of input at once, no room to write.

    A FIFO with nobody at its other end reads like that.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        os.mkfifo(path)
        self.reads = self.writes = 0

    def open(self) -> int:
        self.fd = os.open(str(self._channel), os.O_RDONLY | os.O_NONBLOCK)
        return self.fd

    def read_all(self) -> tuple[bytearray, bool, bool]:
        self.reads += 1
        return super().read_all()

    def write(self, data: bytes | bytearray) -> int:
        self.writes += 1
        return 0


def steps_of(agent: Agent, loop: Loop, seconds: int) -> int:
    """How often the agent wakes in ``seconds`` of its own clock."""
    now_ns, end_ns, steps = 10**12, 10**12 + seconds * 10**9, 0
    while now_ns < end_ns:
        due_ns = agent.step(now_ns)
        steps += 1
        before = agent._line._readable
        loop.wait(0)
        if agent._line._readable and not before:
            continue  # an event: another step at the same moment
        assert due_ns is None or due_ns > now_ns, "the agent spins"
        now_ns = end_ns if due_ns is None else due_ns
        assert steps < 1000, "the agent spins"
    return steps


def test_without_a_host_it_looks_every_two_seconds_and_never_spins(tmp_path: Path) -> None:
    loop, pool = Loop(), FakePool()
    port = HostlessPort(tmp_path / "port")
    agent = Agent(Settings("keeper", None, None, 4096), loop, port, Keeper(), pool, Log())
    assert steps_of(agent, loop, 60) <= 60 // (MAX_LOOK_NS // 10**9) + 10
    assert port.reads <= 40
    assert port.writes == 0
    agent.stop(10**12)
    loop.close()


def test_without_a_channel_it_looks_every_ten_seconds(tmp_path: Path) -> None:
    loop, pool = Loop(), FakePool()
    port = Port(None, sysfs=str(tmp_path))
    agent = Agent(Settings("keeper", None, None, 4096), loop, port, Keeper(), pool, Log())
    assert steps_of(agent, loop, 600) <= 66
    agent.stop(10**12)
    loop.close()


@pytest.mark.parametrize("make", [keeper, None])
def test_an_idle_agent_sleeps(tmp_path: Path, make: Callable[[Loop], Sink] | None) -> None:
    with Rig(tmp_path, make, rate=1) as rig:
        rig.settle()
        due_ns = rig.turn()
        assert due_ns is not None
        assert due_ns - rig.now_ns >= 500_000_000
        assert not select.select([rig.loop._epoll.fileno()], [], [], 0)[0], "an event is pending for ever"
