# SPDX-License-Identifier: Apache-2.0
"""The host's half of a session, against an agent that keeps the rules and one that does not."""

from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netrng_guest import wire
from netrng_guest.wire import Accept, Bye, Close, Grant, Hold, Knock, Open, Probe, Status, encode
from netrng_hostd.channels.session import (
    Acked,
    AgentStatus,
    Ended,
    Event,
    Granted,
    HostSession,
    Lost,
    Opened,
    Violation,
)

SECOND = 1_000_000_000
G, G2 = b"guest--1", b"guest--2"
GOLDEN = Path(__file__).parent / "golden"


def nonce(n: int) -> bytes:
    return struct.pack(">Q", n)


class Bench:
    """A host half with nonces 1, 2, 3 … and a clock."""

    def __init__(
        self, max_window: int = 65536, versions: tuple[int, int] = (1, 1), renew: bool = True
    ) -> None:
        numbers = itertools.count(1)
        self.now = 0
        self.host = HostSession(lambda: nonce(next(numbers)), max_window, versions)
        if renew:
            assert self.host.renew(0) == []

    def receive(self, *frames: wire.Control) -> list[Event]:
        return self.host.receive(b"".join(map(encode, frames)), self.now)

    def output(self) -> list[wire.Frame]:
        return wire.Decoder(True, wire.GUEST_MAX_PAYLOAD).feed(self.host.take_output())

    def wait(self, ns: int) -> list[Event]:
        """Lets time pass, tick by tick."""
        until, events = self.now + ns, []
        while self.host.next_tick_ns is not None and self.host.next_tick_ns <= until:
            self.now = max(self.now, self.host.next_tick_ns)
            events += self.host.tick(self.now)
        self.now = until
        return events

    def open(self, granted: int = 0, guest_nonce: bytes = G) -> Bench:
        self.receive(Open(self.host.session, guest_nonce, 1, 1))
        assert self.host.state == "open"
        self.output()
        if granted:
            self.grant(granted)
        return self

    def grant(self, granted: int, acked: int = 0, lost: int = 0) -> list[Event]:
        return self.receive(Grant(self.host.session, granted, acked, lost))


def test_the_window_has_bounds() -> None:
    for wrong in (63, 65537):
        with pytest.raises(ValueError, match="64 to 65536"):
            HostSession(lambda: G, wrong)


# --- the handshake


def test_nothing_is_said_before_renew() -> None:
    bench = Bench(renew=False)
    assert bench.receive(Knock(G), Open(b"", G, 1, 1)) == []
    assert (bench.host.state, bench.host.take_output(), bench.host.next_tick_ns) == ("closed", b"", None)


def test_a_session_opens() -> None:
    bench = Bench()
    assert bench.host.state == "probing"
    assert bench.output() == [Probe(nonce(1), 1, 1)]
    opened_ns: int | None = bench.host.opened_ns
    assert opened_ns is None
    bench.now = 5
    assert bench.receive(Open(nonce(1), G, 1, 1)) == [Opened(G, 1)]
    assert bench.output() == [Accept(nonce(1), G, 1, 65536)]
    assert bench.host.state == "open"
    assert [bench.host.opened_ns, bench.host.last_heard_ns] == [5, 5]
    assert bench.output() == []


def test_an_open_in_the_same_moment_makes_the_probe_superfluous() -> None:
    bench = Bench()
    bench.receive(Open(nonce(1), G, 1, 1))
    assert bench.output() == [Accept(nonce(1), G, 1, 65536)]


GUEST_FRAMES = st.one_of(
    st.builds(Knock, st.just(G)),
    st.builds(Open, st.sampled_from([nonce(7), bytes(8)]), st.just(G), st.just(1), st.just(1)),
    st.builds(Grant, st.sampled_from([nonce(1), nonce(7)]), st.just(4096), st.just(0), st.just(0)),
    st.builds(Status, st.sampled_from([nonce(1), nonce(7)]), st.just(b"{}")),
    st.builds(Bye, st.sampled_from([nonce(1), nonce(7)])),
)


@given(st.lists(GUEST_FRAMES, max_size=30), st.integers(1, 4 * SECOND))
def test_nothing_but_the_probe_is_written_before_a_valid_open(frames: list[wire.Control], step: int) -> None:
    bench = Bench()
    for frame in frames:
        assert bench.receive(frame) == bench.wait(step) == []
        assert set(bench.output()) <= {Probe(nonce(1), 1, 1)}
    assert bench.host.wanted_seed == bench.host.wanted == 0
    assert bench.receive(Open(nonce(1), G, 1, 1)) == [Opened(G, 1)]


def test_signs_of_an_agent_without_our_probe_repeat_the_probe_once_a_second() -> None:
    bench = Bench()
    assert bench.output() == [Probe(nonce(1), 1, 1)]
    for _ in range(1000):
        bench.receive(Knock(G), Grant(nonce(9), 0, 0, 0), Open(nonce(9), G, 1, 1))
    assert bench.output() == []
    bench.wait(SECOND - 1)
    assert bench.output() == []
    bench.wait(1)
    assert bench.output() == [Probe(nonce(1), 1, 1)]
    bench.wait(10 * SECOND)
    assert bench.output() == []
    bench.receive(Knock(G))
    assert bench.output() == [Probe(nonce(1), 1, 1)], "whenever the next repetition by time is due"


def test_a_probe_is_repeated_seldom_while_nothing_is_heard() -> None:
    """Another program may have read it, and an agent at a terminal that hears nothing says nothing."""
    bench = Bench()
    assert bench.output() == [Probe(nonce(1), 1, 1)]
    for minutes in (1, 2, 4, 8, 16, 32, 60, 60):
        bench.wait(60 * minutes * SECOND - 1)
        assert bench.output() == []
        bench.wait(1)
        assert bench.output() == [Probe(nonce(1), 1, 1)]
    bench.open()
    for _ in range(400):
        bench.wait(10 * SECOND)
        assert not any(isinstance(frame, Probe) for frame in bench.output()), "in a session there is none"
    bench.receive(wire.Bye(nonce(1)))
    assert bench.output() == [Probe(nonce(2), 1, 1)]
    bench.wait(60 * SECOND)
    assert bench.output() == [Probe(nonce(2), 1, 1)], "the gaps begin anew"


def test_an_agent_that_falls_silent_is_asked_again_a_minute_later() -> None:
    """However often it knocked, while another program took the answers."""
    bench = Bench()
    bench.output()
    for _ in range(40):
        bench.wait(2 * SECOND)
        bench.receive(Knock(G))
        assert bench.output() == [Probe(nonce(1), 1, 1)]
    bench.wait(60 * SECOND - 1)
    assert bench.output() == []
    bench.wait(1)
    assert bench.output() == [Probe(nonce(1), 1, 1)]


def test_a_late_open_cancels_the_repeated_probe() -> None:
    bench = Bench()
    bench.output()
    bench.receive(Knock(G), Open(nonce(1), G, 1, 1))
    bench.wait(5 * SECOND)
    assert bench.output() == [Accept(nonce(1), G, 1, 65536)]


def test_an_open_again_is_accepted_again_once_a_second() -> None:
    bench = Bench().open()
    for _ in range(1000):
        assert bench.receive(Open(nonce(1), G, 1, 1)) == []
    assert bench.output() == []
    bench.wait(SECOND)
    assert bench.output() == [Accept(nonce(1), G, 1, 65536)]


@pytest.mark.parametrize("frame", [Knock(G2), Open(nonce(1), G2, 1, 1)])
def test_another_agent_gets_a_session_of_its_own(frame: wire.Control) -> None:
    bench = Bench().open(1000)
    bench.host.sample(bytearray(100))
    bench.now = 2 * SECOND
    assert bench.receive(frame) == [Ended("the agent started anew", 100)]
    assert bench.output() == [Probe(nonce(2), 1, 1)]
    assert bench.host.state == "probing"
    assert bench.receive(Open(nonce(2), G2, 1, 1)) == [Opened(G2, 1)]


def test_a_stale_knock_of_the_agent_in_session_is_ignored() -> None:
    bench = Bench().open()
    assert bench.receive(Knock(G)) == []
    assert (bench.host.state, bench.output()) == ("open", [])


def test_knocks_are_answered_once_a_second() -> None:
    bench, probes = Bench(), 0
    for n in range(1000):
        bench.receive(Knock(nonce(n)), Open(bench.host.session, nonce(n), 1, 1))
        bench.wait(SECOND // 100)
        probes += sum(isinstance(frame, Probe) for frame in bench.output())
    assert probes == 10


def test_versions_are_negotiated() -> None:
    bench = Bench(versions=(2, 5))
    assert bench.output() == [Probe(nonce(1), 2, 5)]
    assert bench.receive(Open(nonce(1), G, 1, 3)) == [Opened(G, 3)]
    assert bench.output() == [Accept(nonce(1), G, 3, 65536)]


def test_no_common_version() -> None:
    bench = Bench(versions=(1, 2))
    bench.output()
    assert bench.receive(Open(nonce(1), G, 3, 9)) == [Ended("the agent speaks versions 3 to 9 alone", 0)]
    assert bench.host.state == "incompatible"
    assert bench.output() == [Close(nonce(1), 3)]
    for _ in range(1000):
        assert bench.receive(Open(nonce(1), G, 3, 9)) == []  # one event, however often it is tried
    assert bench.output() == []
    bench.wait(SECOND)
    assert bench.output() == [Close(nonce(1), 3)]
    bench.receive(Open(nonce(1), G, 9, 3))
    bench.receive(Knock(G2))
    assert bench.receive(Open(nonce(1), G2, 2, 2)) == [Opened(G2, 2)]
    assert bench.output() == [Accept(nonce(1), G2, 2, 65536)]


# --- what may be sent


def test_grants_and_the_window() -> None:
    bench = Bench(max_window=1000).open()
    assert bench.grant(10) == [Granted()]
    assert (bench.host.wanted_seed, bench.host.wanted) == (10, 0)
    assert bench.grant(100) == [Granted()]
    assert (bench.host.wanted_seed, bench.host.wanted) == (64, 36)
    assert bench.grant(2**64 - 1) == [Granted()]
    assert (bench.host.wanted_seed, bench.host.wanted) == (64, 936)
    assert bench.grant(50) == []  # what was granted is not taken back
    bench.host.sample(bytearray(60))
    assert (bench.host.wanted_seed, bench.host.wanted) == (4, 936)
    bench.host.sample(bytearray(940))
    assert (bench.host.wanted_seed, bench.host.wanted) == (0, 0)
    assert bench.grant(0, acked=300, lost=100) == [Acked(200), Lost(100), Granted()]
    assert (bench.host.wanted_seed, bench.host.wanted) == (0, 300)


def test_samples_carry_offsets_and_never_exceed_the_grant() -> None:
    bench = Bench().open(100)
    frames = [bench.host.sample(bytearray(b"a" * 60)), bench.host.sample(bytearray(b"b" * 40))]
    decoded = wire.Decoder(True, wire.GUEST_MAX_PAYLOAD).feed(b"".join(frames))
    assert decoded == [
        wire.Sample(nonce(1), 0, bytearray(b"a" * 60)),
        wire.Sample(nonce(1), 60, bytearray(b"b" * 40)),
    ]
    bench.grant(150)
    for size in (0, 51):
        with pytest.raises(ValueError, match="50 granted"):
            bench.host.sample(bytearray(size))
    bench.receive(Bye(nonce(1)))
    with pytest.raises(ValueError, match="0 granted"):
        bench.host.sample(bytearray(1))


def test_frames_of_other_sessions_mean_nothing() -> None:
    bench = Bench().open(100)
    bench.host.sample(bytearray(100))
    h = nonce(9)
    assert bench.receive(Grant(h, 999, 50, 0), Bye(h), Status(h, b"{}"), Open(h, G2, 1, 1)) == []
    assert (bench.host.state, bench.host.in_flight, bench.host.wanted) == ("open", 100, 0)


def test_counters_add_up() -> None:
    bench = Bench().open(1000)
    bench.host.sample(bytearray(500))
    assert bench.grant(1000, acked=300, lost=100) == [Acked(200), Lost(100)]
    assert (bench.host.sent, bench.host.acked, bench.host.lost, bench.host.in_flight) == (500, 200, 100, 200)
    assert bench.grant(1000, acked=300, lost=100) == []
    assert bench.grant(1000, acked=400, lost=200) == [Lost(100)]
    assert bench.host.renew(1) == [Ended("renewed", 100)]
    assert (bench.host.sent, bench.host.acked, bench.host.lost, bench.host.in_flight) == (0, 0, 0, 0)


def test_renew_names_a_new_session_at_once() -> None:
    bench = Bench().open()
    half = encode(Grant(nonce(1), 1, 0, 0))[:30]
    bench.host.receive(half, 0)
    bench.host.renew(1)
    assert bench.output() == [Probe(nonce(2), 1, 1)]
    assert bench.host.decoder._buffer == b""
    bench.host.renew(2)
    assert bench.output() == [Probe(nonce(3), 1, 1)]


def test_hold_every_ten_seconds_says_what_was_sent() -> None:
    bench = Bench().open(100)
    bench.wait(10 * SECOND)
    bench.host.sample(bytearray(70))
    assert bench.output() == [Hold(nonce(1), 70)]
    bench.wait(9 * SECOND)
    assert bench.output() == []
    bench.wait(SECOND)
    assert bench.output() == [Hold(nonce(1), 70)]
    bench.wait(1000 * SECOND)
    assert bench.output() == [Hold(nonce(1), 70)]  # one waits, however long nobody writes
    assert bench.host.state == "open"  # silence ends no session


@pytest.mark.parametrize(("reason", "code"), [("shutdown", 1), ("removed", 4), ("read failed", 0)])
def test_close(reason: str, code: int) -> None:
    bench = Bench().open(100)
    bench.host.sample(bytearray(70))
    assert bench.host.close(reason, 0) == [Ended(reason, 70)]
    assert bench.output() == [Close(nonce(1), code)]
    assert (bench.host.lost, bench.host.in_flight) == (70, 0)
    assert bench.host.opened_ns is None
    assert bench.receive(Knock(G2), Grant(nonce(1), 1, 0, 0)) == []
    assert (bench.host.state, bench.host.next_tick_ns, bench.output()) == ("closed", None, [])
    assert bench.host.renew(1) == []
    assert bench.output() == [Probe(nonce(2), 1, 1)]


def test_close_says_nothing_to_a_guest_that_did_not_open() -> None:
    bench = Bench()
    assert bench.host.close("shutdown", 0) == []
    assert bench.output() == []


def test_bye() -> None:
    bench = Bench().open(100)
    bench.host.sample(bytearray(70))
    bench.now = SECOND
    assert bench.receive(Bye(nonce(1))) == [Ended("the agent stopped", 70)]
    assert bench.output() == [Probe(nonce(2), 1, 1)]


# --- the agent's status


def test_status_once_a_second_and_the_newest() -> None:
    bench = Bench().open()
    assert bench.receive(Status(nonce(1), b'{"taken":0}')) == [AgentStatus({"taken": 0})]
    for n in range(1, 1000):
        assert bench.receive(Status(nonce(1), b'{"taken":%d}' % n)) == []
    assert bench.wait(SECOND) == [AgentStatus({"taken": 999})]
    assert bench.host.agent == {"taken": 999}
    assert bench.wait(20 * SECOND) == []
    assert bench.receive(Status(nonce(1), b"{}")) == [AgentStatus({})]
    bench.receive(Bye(nonce(1)))
    assert bench.host.agent is None


def test_a_bad_status_is_ignored() -> None:
    bench = Bench().open()
    assert bench.receive(Status(nonce(1), b'{"sink":"\\u001b"}')) == []
    assert bench.host.agent is None
    assert bench.host.state == "open"


# --- violations


@pytest.mark.parametrize(
    ("acked", "lost", "text"),
    [
        (501, 0, "acknowledged 501 bytes, 0 of them lost, of 500"),
        (2**64 - 1, 2**64 - 1, f"acknowledged {2**64 - 1} bytes, {2**64 - 1} of them lost, of 500"),
        (300, 301, "acknowledged 300 bytes, 301 of them lost, of 500"),
        (250, 100, "acknowledged 150 and lost 100 bytes after 200 and 100"),
        (300, 50, "acknowledged 250 and lost 50 bytes after 200 and 100"),
        (350, 200, "acknowledged 150 and lost 200 bytes after 200 and 100"),
    ],
)
def test_absurd_acknowledgements(acked: int, lost: int, text: str) -> None:
    bench = Bench().open(1000)
    bench.host.sample(bytearray(500))
    bench.grant(1000, acked=300, lost=100)
    assert bench.grant(5000, acked, lost) == [Violation(text), Ended("violation", 200)]
    assert bench.host.state == "violated"
    assert bench.output() == [Close(nonce(1), 2)]
    assert (bench.host.sent, bench.host.acked, bench.host.lost, bench.host.in_flight) == (500, 200, 300, 0)


def unknown_frame(session: bytes) -> bytes:
    fields = b"\xc7N\x3f\0\0\0\0\0" + session
    return fields + 2 * struct.pack(">I", zlib.crc32(fields))


def test_an_unknown_frame_that_is_not_optional() -> None:
    bench = Bench()
    assert bench.host.receive(unknown_frame(nonce(1)), 0) == []
    bench.open()
    assert bench.host.receive(unknown_frame(nonce(9)), 0) == []
    found = bench.host.receive(unknown_frame(nonce(1)), 0)
    assert found == [Violation("a frame of a kind or size that no version has"), Ended("violation", 0)]


def test_one_violation_per_session_and_deaf_until_the_back_off_is_over() -> None:
    bench = Bench().open()
    bad = Grant(nonce(1), 0, 1, 0)
    assert len(bench.receive(bad, bad, bad)) == 2
    bench.output()
    bench.wait(SECOND - 1)
    assert bench.receive(Knock(G2), bad, Open(nonce(1), G, 1, 1), Bye(nonce(1))) == []
    assert (bench.output(), bench.host.state) == ([], "violated")
    bench.wait(1)
    assert (bench.output(), bench.host.state) == ([Probe(nonce(2), 1, 1)], "probing")


def violate(bench: Bench) -> int:
    """Opens, violates, waits for the next PROBE; returns how long that took."""
    bench.open()
    bench.grant(0, acked=1)
    bench.output()
    start, due = bench.now, bench.host.next_tick_ns
    assert due is not None
    bench.wait(due - start)
    assert isinstance(bench.output()[0], Probe)
    return due - start


def test_the_back_off_doubles_to_a_minute_and_is_forgotten_after_a_minute() -> None:
    bench = Bench()
    assert [violate(bench) // SECOND for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    bench.wait(60 * SECOND - 1)
    assert violate(bench) == 60 * SECOND
    bench.wait(60 * SECOND)
    assert violate(bench) == SECOND


def test_a_new_connection_does_not_shorten_the_back_off() -> None:
    bench = Bench()
    violate(bench)
    bench.open()
    bench.grant(0, acked=1)
    bench.now += SECOND
    bench.host.close("connection lost", bench.now)
    bench.host.renew(bench.now)
    assert (bench.host.state, bench.output()) == ("violated", [])
    bench.wait(SECOND)
    assert isinstance(bench.output()[0], Probe)


# --- an agent without any rules

FIELD = st.one_of(st.integers(0, 5000), st.integers(0, 2**64 - 1))
BYTE = st.integers(0, 255)
NONCES = st.sampled_from([G, G2, bytes(8)])
HOSTILE = st.one_of(
    st.tuples(st.just("knock"), NONCES),
    st.tuples(st.just("open"), NONCES, st.sampled_from([(1, 1), (2, 3), (3, 0)])),
    st.tuples(st.just("grant"), FIELD, FIELD, FIELD),
    st.tuples(st.just("honest"), st.integers(0, 100_000), st.floats(0, 1)),
    st.tuples(st.just("status"), st.sampled_from([b"{}", b'{"taken":1}', b"[" * 512, b"x"])),
    st.tuples(st.just("bye")),
    st.tuples(st.just("unknown")),
    st.tuples(st.just("stale")),
    st.tuples(st.just("half"), st.integers(1, 40)),
    st.tuples(st.just("garbage"), st.binary(max_size=200)),
    st.tuples(st.just("wait"), st.integers(1, 5 * SECOND)),
    st.tuples(st.just("renew")),
)


def forge(host: HostSession, deed: str, args: list[Any]) -> bytes:
    """What the agent without rules writes."""
    h = host.session
    if deed == "knock":
        return encode(Knock(args[0]))
    if deed == "open":
        return encode(Open(h, args[0], *args[1]))
    if deed == "grant":
        return encode(Grant(h, *args))
    if deed == "honest":
        settled = host.acked + host.lost + int(host.in_flight * args[1])
        return encode(Grant(h, args[0], settled, host.lost))
    if deed == "status":
        return encode(Status(h, args[0]))
    if deed == "bye":
        return encode(Bye(h))
    if deed == "unknown":
        return unknown_frame(h)
    if deed == "half":
        return encode(Grant(h, 1, 0, 0))[: args[0]]
    return encode(Grant(G, 1, 1, 1)) if deed == "stale" else bytes(args[0])


@settings(max_examples=300)
@given(st.lists(HOSTILE, max_size=60), st.sampled_from([1, 7, 200]))
def test_hostile_input_costs_little_and_breaks_nothing(deeds: list[tuple[Any, ...]], repeat: int) -> None:
    bench = Bench()
    host = bench.host
    acked = lost = ended = taken = violations = renewals = 0
    probes: list[int] = []
    statuses: list[int] = []
    for deed, *args in deeds:
        if deed == "wait":
            events = bench.wait(args[0])
        elif deed == "renew":
            events, renewals = host.renew(bench.now), renewals + 1
        else:
            events = host.receive(forge(host, deed, args) * repeat, bench.now)
        for event in events:
            if isinstance(event, Acked):
                acked += event.n
            elif isinstance(event, Lost):
                lost += event.n
            elif isinstance(event, Ended):
                ended += event.lost
            elif isinstance(event, AgentStatus):
                statuses.append(bench.now)
        violations += sum(isinstance(event, Violation) for event in events)
        assert sum(isinstance(event, (Violation, Opened)) for event in events) <= 2
        while host.wanted_seed + host.wanted:
            n = min(host.wanted_seed or host.wanted, 4000)
            host.sample(bytearray(n))
            taken += n
        assert host.sent == host.acked + host.lost + host.in_flight
        assert 0 <= host.in_flight <= 65536
        assert taken == acked + lost + ended + host.in_flight
        assert len(host.decoder._buffer) <= wire.OVERHEAD + wire.HOST_MAX_PAYLOAD
        assert len(host._untrusted_status) <= wire.MAX_STATUS
        assert len(host._due) <= 4
        output = bench.output()
        assert len(output) <= 4
        probes += [bench.now for frame in output if isinstance(frame, Probe)]
    assert len(probes) <= 1 + renewals + bench.now // SECOND
    assert violations <= 1 + renewals + bench.now // SECOND
    assert all(b - a >= SECOND for a, b in zip(statuses, statuses[1:]))


# --- released versions


def test_hostd_still_speaks_version_1() -> None:
    lines = [
        line.split()
        for line in (GOLDEN / "version-1.txt").read_text(encoding="ascii").splitlines()
        if not line.startswith("#")
    ]
    nonces = iter([bytes.fromhex("1122334455667788"), bytes.fromhex("99aabbccddeeff00")])
    host = HostSession(lambda: next(nonces))
    host.renew(0)
    now = 0
    for sender, kind, text in lines:
        frame = bytes.fromhex(text)
        now += SECOND
        if sender == "guest":
            host.receive(frame, now)
            if kind == "KNOCK":
                continue
        elif kind == "SAMPLE":
            assert host.sample(bytearray(frame[28:-4])) == frame
        else:
            if kind == "HOLD":
                now += 10 * SECOND
                host.tick(now)
            assert host.take_output() == frame
    assert host.state == "incompatible"
