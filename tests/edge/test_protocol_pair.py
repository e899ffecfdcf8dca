# SPDX-License-Identifier: Apache-2.0
"""Both halves of a session, joined by a link that drops, repeats, cuts, flips, echoes and replays.

What holds, whatever the link does: no byte is delivered twice; what is delivered is whole samples of what the
host took, in order; the host's books add up; and once the link is clean, data flows again.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netrng_guest import wire
from netrng_guest.session import Data, GuestSession, SessionEnded
from netrng_hostd.channels.session import Acked, Ended, Event, HostSession, Lost, Violation

SECOND = 1_000_000_000
STEP = SECOND // 4
HERE = Path(__file__).parent

Fault = Callable[["World", bytes, bytearray, bytearray], bytes]


def split(stream: bytes) -> list[bytes]:
    """The frames of a stream that was not damaged."""
    frames = []
    while stream:
        size = wire.OVERHEAD + int.from_bytes(stream[4:8], "big")
        frames.append(stream[:size])
        stream = stream[size:]
    return frames


class World:
    """A host half and a guest half, the two pipes between them, and the books of both ends."""

    def __init__(
        self, seed: int = 0, window: int = 4096, chunk: int = 0, guest: GuestSession | None = None
    ) -> None:
        self.random = random.Random(seed)
        self.window, self.chunk, self.now = window, chunk, 0
        self.to_guest, self.to_host = bytearray(), bytearray()
        self.written: dict[int, list[bytes]] = {id(self.to_guest): [], id(self.to_host): []}
        self.fault: Fault | None = None
        self.delivered: dict[bytes, bytearray] = {}  # by session
        self.delivered_bytes = self.sink_took = self.acked = self.lost = self.taken = 0
        self.samples: dict[bytes, list[bytes]] = {}  # by session
        self.violations = 0
        self.serve = True
        self.guest = guest or self.new_guest()
        self.host = self.new_host()
        self.book(self.host.renew(0))

    def nonce(self) -> bytes:
        return self.random.randbytes(8)

    def new_guest(self) -> GuestSession:
        return GuestSession(self.nonce, self.window)

    def new_host(self) -> HostSession:
        return HostSession(self.nonce)

    # --- what happens

    def restart_host(self) -> None:
        """The daemon was killed: what was in flight is lost, what is in the pipes stays there."""
        self.lost += self.host.in_flight
        self.host = self.new_host()
        self.book(self.host.renew(self.now))

    def restart_guest(self) -> None:
        self.guest = self.new_guest()

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds * SECOND / STEP)):
            self.step()

    def step(self) -> None:
        self.now += STEP
        self.host_acts()
        self.guest_acts()

    def host_acts(self) -> None:
        self.book(self.host.tick(self.now))
        for piece in self.pieces(self.to_host):
            self.book(self.host.receive(piece, self.now))
        self.write(self.host.take_output(), self.to_guest, self.to_host)
        for _ in range(4):
            wanted = self.host.wanted_seed or self.host.wanted
            if not (self.serve and wanted):
                break
            data = bytearray(self.random.randbytes(min(wanted, self.random.choice([32, 100, 512]))))
            self.samples.setdefault(self.host.session, []).append(bytes(data))
            self.taken += len(data)
            self.write(self.host.sample(data), self.to_guest, self.to_host)
        self.check_books()

    def guest_acts(self) -> None:
        self.guest.tick(self.now)
        for piece in self.pieces(self.to_guest):
            for event in self.guest.receive(piece, self.now):
                if isinstance(event, Data):
                    self.delivered.setdefault(event.session, bytearray()).extend(event.data)
                    self.delivered_bytes += len(event.data)
        spent = self.guest.outstanding
        if self.guest.outstanding < 200:  # a sink that takes whole blocks
            spent = self.guest.outstanding // 2
        self.guest.ack(spent)
        self.sink_took += spent
        self.guest.grant(self.guest.received + 1000)
        self.write(self.guest.take_output(), self.to_host, self.to_guest)

    def write(self, data: bytes | bytearray, pipe: bytearray, back: bytearray) -> None:
        if data:
            self.written[id(pipe)].append(bytes(data))
            pipe += self.fault(self, bytes(data), pipe, back) if self.fault else data

    def pieces(self, pipe: bytearray) -> list[bytes]:
        data = bytes(pipe)
        pipe.clear()
        size = self.chunk or len(data) or 1
        return [data[i : i + size] for i in range(0, len(data), size)]

    # --- what has to hold

    def book(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Acked):
                self.acked += event.n
            elif isinstance(event, Lost):
                self.lost += event.n
            elif isinstance(event, Ended):
                self.lost += event.lost
            elif isinstance(event, Violation):
                self.violations += 1

    def check_books(self) -> None:
        host = self.host
        assert host.sent == host.acked + host.lost + host.in_flight
        assert self.taken == self.acked + self.lost + host.in_flight
        assert self.acked <= self.sink_took <= self.delivered_bytes

    def check_once(self) -> None:
        """What each session delivered is some of its samples, each whole and at most once, in order."""
        for session, delivered in self.delivered.items():
            ends = {0}
            for sample in self.samples[session]:
                ends |= {end + len(sample) for end in ends if delivered.startswith(sample, end)}
            assert len(delivered) in ends

    def flows_within(self, seconds: float) -> None:
        """The link is clean from now on: so much later at most, both are in one session and data flows."""
        self.fault = None
        before, deadline = (self.host.session, self.host.acked), self.now + int(seconds * SECOND)
        while (
            self.host.session != self.guest.session
            or self.host.acked < 1000 + (before[1] if self.host.session == before[0] else 0)
        ):
            assert self.now < deadline, (self.host.state, self.guest.state)
            self.step()
        self.check_once()


def test_data_flows() -> None:
    world = World()
    world.run(60)
    world.check_once()
    assert world.acked > 50_000
    assert world.lost == world.violations == 0
    assert len(world.delivered) == 1


def test_the_smallest_window() -> None:
    world = World(window=64)
    world.run(60)
    world.check_once()
    assert world.acked > 5_000
    assert world.lost == 0


# --- one kind of frame lost

KINDS = ["PROBE", "ACCEPT", "SAMPLE", "HOLD", "CLOSE", "KNOCK", "OPEN", "GRANT", "BYE"]


def losing(kind: str, first: int, count: int) -> Fault:
    """Loses ``count`` frames of a kind, from the ``first``-th on."""
    seen = itertools.count()

    def fault(world: World, data: bytes, pipe: bytearray, back: bytearray) -> bytes:
        kept = []
        for frame in split(data):
            if frame[2] != getattr(wire, kind) or not first <= next(seen) < first + count:
                kept.append(frame)
        return b"".join(kept)

    return fault


@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.parametrize("first", [0, 1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_frame_stalls_nothing(kind: str, first: int, count: int) -> None:
    world = World()
    world.fault = losing(kind, first, count)
    world.run(12)
    if kind == "BYE":
        world.guest.close()
        world.run(1)
        world.restart_guest()
    elif kind == "CLOSE":
        world.book(world.host.close("shutdown", world.now))
        world.run(15)
        world.book(world.host.renew(world.now))
    elif kind in ("PROBE", "ACCEPT", "OPEN"):
        world.restart_host()
    world.run(12)
    world.flows_within(12 if count < 10 else 35)


def test_the_last_frames_lost_are_noticed_by_the_next_hold() -> None:
    world = World()
    world.run(5)
    world.fault = lambda world, data, pipe, back: b""
    world.run(2)
    assert world.host.in_flight > 0
    world.fault = None
    world.run(11)
    assert world.host.lost > 0
    assert world.guest.session == world.host.session
    world.flows_within(1)


# --- either end begins again


def test_the_agent_restarts_in_mid_session() -> None:
    world = World()
    world.run(5)
    world.restart_guest()
    world.flows_within(3)
    assert len(world.delivered) == 2


def test_the_host_restarts_in_mid_sample() -> None:
    world = World()
    world.run(5)
    world.to_guest += wire.encode_sample(world.host.session, world.host.sent, bytes(512))[:100]
    world.restart_host()
    world.flows_within(2)
    assert len(world.delivered) == 2


def test_the_host_restarts_and_its_probe_is_lost() -> None:
    world = World()
    world.run(5)
    world.restart_host()
    world.host.take_output()
    world.flows_within(13)  # the guest's keep-alive, and the answer


def test_both_restart() -> None:
    world = World()
    world.run(5)
    world.restart_guest()
    world.restart_host()
    world.flows_within(3)


def test_nobody_there_for_an_hour() -> None:
    world = World()
    world.run(5)
    world.serve = False
    for _ in range(3600):
        world.now += SECOND
        world.guest_acts()
    world.restart_host()
    world.serve = True
    world.flows_within(3)


# --- a guest whose memory is a copy


def test_two_clones_share_neither_session_nor_seed_nor_what_was_parked() -> None:
    origin = World(seed=1)
    origin.run(5)
    origin.host_acts()  # a window of bytes is parked in the ring …
    parked = bytes(origin.to_guest)
    assert len(parked) > 500
    saved = copy.deepcopy(origin.guest)
    sessions, seeds = set(), set()
    for seed in (2, 3):
        clone = World(seed=seed, guest=copy.deepcopy(saved))
        clone.to_guest += parked  # … and is there when the image is restored, twice
        clone.delivered = {origin.host.session: bytearray()}
        clone.samples = {origin.host.session: []}
        clone.host_acts()
        clone.flows_within(3)
        assert clone.delivered.pop(origin.host.session) == b""
        ((session, delivered),) = clone.delivered.items()
        sessions.add(session)
        seeds.add(bytes(delivered[:64]))
    assert len(sessions) == len(seeds) == 2


def test_a_clone_that_is_told_of_it_drops_what_was_parked() -> None:
    world = World()
    world.run(5)
    world.host_acts()
    before = world.delivered_bytes
    assert world.guest.flush() == [SessionEnded("flushed")]
    world.guest_acts()
    assert world.delivered_bytes == before
    world.flows_within(3)


def test_a_guest_reverted_in_place_gets_a_new_session() -> None:
    world = World()
    world.run(5)
    saved = copy.deepcopy(world.guest)
    world.run(5)
    world.guest = saved  # and nobody told either end
    session = world.host.session
    world.flows_within(15)
    assert world.host.session != session
    assert world.violations <= 1


# --- echoes and stale bytes


def test_a_terminal_that_echoes_everything_changes_nothing() -> None:
    def echo(world: World, data: bytes, pipe: bytearray, back: bytearray) -> bytes:
        back += data
        return data

    plain, echoed = World(), World()
    echoed.fault = echo
    for world in (plain, echoed):
        world.run(30)
        world.check_once()
    assert echoed.delivered == plain.delivered
    assert echoed.guest.decoder.echoed_frames > 100 < echoed.host.decoder.echoed_frames


def test_a_megabyte_of_stale_frames_in_both_directions() -> None:
    old = World(seed=1)
    old.run(30)
    stale_host = b"".join(old.written[id(old.to_guest)])
    stale_guest = b"".join(old.written[id(old.to_host)])
    world = World(seed=2)
    while len(world.to_guest) < 1_000_000:
        world.to_guest += stale_host
    while len(world.to_host) < 1_000_000:
        world.to_host += stale_guest
    world.chunk = 4096
    world.flows_within(15)
    assert world.violations == 0
    assert not set(world.delivered) & set(old.samples)


# --- however chopped


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 19, 20, 21, 23, 24, 25, 40, 100, 543, 544, 545])
def test_chopped_evenly(chunk: int) -> None:
    whole, chopped = World(), World(chunk=chunk)
    for world in (whole, chopped):
        world.run(8)
    assert chopped.delivered == whole.delivered
    assert (chopped.acked, chopped.lost) == (whole.acked, 0)


def test_cut_once_at_every_offset() -> None:
    class Cut(World):
        """The stream to the guest arrives a step late from one offset on."""

        at = passed = 0

        def pieces(self, pipe: bytearray) -> list[bytes]:
            if pipe is not self.to_guest:
                return super().pieces(pipe)
            here = self.at - self.passed
            data = bytes(pipe[:here]) if 0 <= here < len(pipe) else bytes(pipe)
            del pipe[: len(data)]
            self.passed += len(data)
            if here == 0:
                self.passed += 1  # cut only once
            return [data]

    for offset in range(700):
        world = Cut()
        world.at = offset
        world.run(3)
        world.check_once()
        assert world.lost == 0
        assert world.acked > 1000
        assert len(world.delivered) == 1


# --- everything at once


def any_fault(world: World, data: bytes, pipe: bytearray, back: bytearray) -> bytes:
    r = world.random
    kind = r.choice(["none", "none", "drop", "repeat", "cut", "behead", "flip", "echo", "replay", "garbage"])
    place = r.randrange(len(data))
    if kind == "drop":
        return b""
    if kind == "repeat":
        return data * r.randrange(2, 4)
    if kind == "cut":
        return data[:place]
    if kind == "behead":
        return data[place:]
    if kind == "flip":
        return data[:place] + bytes([data[place] ^ 1 << r.randrange(8)]) + data[place + 1 :]
    if kind == "echo":
        back += data
    if kind == "replay":
        return b"".join(r.choices(world.written[id(pipe)], k=5)) + data
    if kind == "garbage":
        return wire.MAGIC * r.randrange(3) + r.randbytes(r.randrange(50)) + data
    return data


DEEDS = ["clean", "dirty", "dirty", "restart host", "restart guest", "renew", "flush", "away"]


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    deeds=st.lists(
        st.tuples(st.sampled_from(DEEDS), st.sampled_from([0.25, 1, 3, 12])), min_size=1, max_size=8
    ),
    window=st.sampled_from([64, 300, 4096, 65536]),
    chunk=st.sampled_from([0, 1, 37, 600]),
)
def test_whatever_the_link_does(seed: int, deeds: list[tuple[str, float]], window: int, chunk: int) -> None:
    world = World(seed, window, chunk)
    for deed, seconds in deeds:
        world.fault = any_fault if deed == "dirty" else None
        if deed == "restart host":
            world.restart_host()
        elif deed == "restart guest":
            world.restart_guest()
        elif deed == "renew":
            world.book(world.host.renew(world.now))
        elif deed == "flush":
            world.guest.flush()
        elif deed == "away":  # the VM is paused
            world.now += 100 * SECOND
            world.host_acts()
        world.run(seconds)
        world.check_once()
    world.flows_within(200)
