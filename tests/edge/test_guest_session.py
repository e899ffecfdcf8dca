# SPDX-License-Identifier: Apache-2.0
"""The guest's half of a session, against a host that keeps the rules, an old one, and none."""

from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netrng_guest import wire
from netrng_guest.session import Data, Event, GuestSession, SessionEnded, SessionOpened
from netrng_guest.wire import (
    Accept,
    Bye,
    Close,
    Grant,
    Hold,
    Knock,
    Open,
    Probe,
    Status,
    encode,
    encode_sample,
)

SECOND = 1_000_000_000
H, H2 = b"session1", b"session2"
GOLDEN = Path(__file__).parent / "golden"


def nonce(n: int) -> bytes:
    return struct.pack(">Q", n)


class Bench:
    """A guest half with nonces 1, 2, 3 … and a clock."""

    def __init__(self, window: int = 4096, versions: tuple[int, int] = (1, 1)) -> None:
        numbers = itertools.count(1)
        self.now = 0
        self.guest = GuestSession(lambda: nonce(next(numbers)), window, versions)

    def receive(self, *frames: wire.Control | bytearray) -> list[Event]:
        encoded = [frame if isinstance(frame, bytearray) else encode(frame) for frame in frames]
        return self.guest.receive(b"".join(encoded), self.now)

    def output(self) -> list[wire.Frame]:
        return wire.Decoder(False, wire.HOST_MAX_PAYLOAD).feed(self.guest.take_output())

    def wait(self, ns: int) -> None:
        """Lets time pass, tick by tick."""
        until = self.now + ns
        while self.guest.next_tick_ns is not None and self.guest.next_tick_ns <= until:
            self.now = max(self.now, self.guest.next_tick_ns)
            self.guest.tick(self.now)
        self.now = until

    def open(self, granted: int = 64, max_window: int = 65536) -> Bench:
        """A session that may receive up to ``granted``."""
        self.receive(Probe(H, 1, 1))
        (answer,) = self.output()
        assert isinstance(answer, Open)
        window = min(max_window, self.guest._window)
        assert self.receive(Accept(H, answer.guest_nonce, 1, max_window)) == [SessionOpened(window, H)]
        self.guest.grant(granted)
        assert self.output() == [Grant(H, granted, 0, 0)]
        return self

    def seeded(self, granted: int = 4096) -> Bench:
        """A session whose seed arrived and was taken."""
        self.open(max(granted, 64))
        assert self.sample(0, 64) == [Data(bytearray(64), True, H)]
        self.guest.ack(64)
        self.output()
        return self

    def sample(self, offset: int, size: int, byte: int = 0) -> list[Event]:
        return self.receive(encode_sample(H, offset, bytes([byte]) * size))

    def counters(self) -> tuple[int, int, int]:
        return self.guest.received, self.guest.acked, self.guest.lost


def test_the_window_has_bounds() -> None:
    for wrong in (63, 65537):
        with pytest.raises(ValueError, match="64 to 65536"):
            GuestSession(lambda: H, wrong)


# --- the handshake


def test_knocks_at_once_and_then_ever_more_rarely() -> None:
    bench, knocks = Bench(), []
    assert bench.guest.knock_due(0)
    while bench.now < 130 * SECOND:
        bench.guest.tick(bench.now)
        for frame in bench.output():
            assert frame == Knock(nonce(1))
            knocks.append(bench.now // SECOND)
        assert not bench.guest.knock_due(bench.now)
        assert bench.guest.next_tick_ns is not None
        bench.now = bench.guest.next_tick_ns
    assert knocks == [0, 1, 3, 7, 15, 31, 61, 91, 121]


def test_a_knock_that_nobody_took_is_not_doubled() -> None:
    bench = Bench()
    bench.wait(100 * SECOND)
    assert bench.output() == [Knock(nonce(1))]


def test_a_session_opens() -> None:
    bench = Bench()
    bench.wait(0)
    assert bench.output() == [Knock(nonce(1))]
    assert bench.receive(Probe(H, 1, 1)) == []
    assert bench.output() == [Open(H, nonce(1), 1, 1)]
    assert bench.receive(Accept(H, nonce(1), 1, 65536)) == [SessionOpened(4096, H)]
    assert bench.output() == [Grant(H, 64, 0, 0)]  # the seed is always asked for
    assert bench.guest.state == "open"


def test_only_the_newest_probe_is_answered() -> None:
    bench = Bench()
    bench.receive(Probe(b"stale--1", 1, 1), Probe(b"stale--2", 1, 1))
    bench.receive(Probe(H, 1, 1))
    (answer,) = bench.output()
    assert isinstance(answer, Open)
    assert answer.session == H


def test_a_probe_of_an_unknown_version_is_answered_too() -> None:
    bench = Bench(versions=(1, 2))
    bench.receive(Probe(H, 7, 9))
    assert bench.output() == [Open(H, nonce(1), 1, 2)]  # the host says "incompatible", in its status too


@pytest.mark.parametrize(
    "accept",
    [
        Accept(H2, nonce(1), 1, 65536),
        Accept(H, nonce(2), 1, 65536),
        Accept(H, nonce(1), 2, 65536),
        Accept(H, nonce(1), 0, 65536),
        Accept(H, nonce(1), 1, 63),
    ],
)
def test_an_accept_of_something_else_opens_nothing(accept: Accept) -> None:
    bench = Bench()
    bench.receive(Probe(H, 1, 1))
    assert bench.receive(accept, Hold(H, 0), encode_sample(H, 0, b"x")) == []
    assert bench.guest.state == "opening"


def test_open_is_repeated_and_then_the_probe_counts_as_stale() -> None:
    bench = Bench()
    bench.receive(Probe(H, 1, 1))
    sent: list[tuple[int, wire.Frame]] = []
    for second in range(5):
        sent += [(second, frame) for frame in bench.output()]
        bench.wait(SECOND)
    again = Open(H, nonce(1), 1, 1)
    assert sent == [(0, again), (1, again), (2, again), (3, Knock(nonce(2))), (4, Knock(nonce(2)))]


def test_the_same_probe_again() -> None:
    bench = Bench()
    bench.receive(Probe(H, 1, 1))
    bench.output()
    bench.receive(Probe(H, 1, 1))  # the host did not see our OPEN
    assert bench.output() == [Open(H, nonce(1), 1, 1)]
    bench.receive(Accept(H, nonce(1), 1, 65536))
    bench.output()
    assert bench.receive(Probe(H, 1, 1), Accept(H, nonce(1), 1, 65536)) == []  # repeated by the link
    assert (bench.guest.state, bench.output()) == ("open", [])


def test_a_new_probe_ends_the_session_and_what_the_same_drain_brought() -> None:
    bench = Bench().seeded()
    data = bench.sample(64, 10, 0xFF)
    assert data == [Data(bytearray(b"\xff" * 10), False, H)]
    events = bench.receive(encode_sample(H, 74, b"\xff" * 10), Probe(H2, 1, 1), encode_sample(H, 84, b"\xff"))
    assert events == [SessionEnded("the host started a new session")]
    assert bench.output() == [Open(H2, nonce(2), 1, 1)]
    bench.receive(Probe(H, 1, 1))
    assert bench.output() == [Open(H, nonce(3), 1, 1)]  # a nonce per session, even when it never opened


def test_a_session_may_begin_and_end_in_one_drain() -> None:
    bench = Bench()
    bench.receive(Probe(H, 1, 1))
    events = bench.receive(Accept(H, nonce(1), 1, 4096), Close(H, 1))
    assert events == [SessionOpened(4096, H), SessionEnded("closed by the host: shutdown")]


def test_dropped_data_is_overwritten() -> None:
    bench = Bench().open()
    kept: list[Event] = [Data(bytearray(b"\xff" * 10), False, H)]
    (event,) = kept
    bench.guest._end("test", 0, kept)
    assert isinstance(event, Data)
    assert event.data == bytes(10)
    assert kept == [SessionEnded("test")]


# --- data


def test_the_first_64_bytes_are_the_seed() -> None:
    bench = Bench().open(1000)
    assert bench.sample(0, 30, 1) == []
    assert bench.guest.outstanding == 0
    with pytest.raises(ValueError, match="0 outstanding"):
        bench.guest.ack(1)
    seed = Data(bytearray(b"\1" * 30 + b"\2" * 34), True, H)
    assert bench.sample(30, 100, 2) == [seed, Data(bytearray(b"\2" * 66), False, H)]
    assert bench.guest.outstanding == 130
    assert bench.sample(130, 10, 3) == [Data(bytearray(b"\3" * 10), False, H)]


def test_the_seed_is_what_arrives_first_whatever_was_lost() -> None:
    bench = Bench().open(64)
    bench.sample(0, 20, 1)
    bench.receive(Hold(H, 64))
    assert bench.counters() == (64, 44, 44)
    assert bench.output() == [Grant(H, 108, 44, 44)]
    assert bench.sample(64, 44, 2) == [Data(bytearray(b"\1" * 20 + b"\2" * 44), True, H)]


def test_the_seed_arrives_through_the_smallest_window() -> None:
    bench = Bench(window=64).open(64)
    bench.sample(0, 63)
    for offset in range(64, 5000, 1):  # every second byte is lost
        bench.output()
        bench.receive(Hold(H, offset))
    bench.output()
    assert len(bench.sample(4999, 1)) == 1


def test_after_a_refused_seed_the_next_64_bytes_are_one() -> None:
    bench = Bench().seeded(100)
    bench.guest.seed_again()
    bench.sample(64, 36, 1)
    assert bench.guest.outstanding == 0, "half a seed is nobody's yet"
    assert bench.output() == [Grant(H, 128, 64, 0)]  # asked for, whatever the agent asks for
    bench = Bench().seeded(4096)
    bench.guest.seed_again()
    bench.sample(64, 36, 1)
    assert bench.sample(100, 40, 2) == [
        Data(bytearray(b"\1" * 36 + b"\2" * 28), True, H),
        Data(bytearray(b"\2" * 12), False, H),
    ]
    assert bench.guest.outstanding == 76


def test_asking_twice_for_another_seed_loses_none_of_it() -> None:
    bench = Bench().seeded(4096)
    bench.guest.seed_again()
    bench.sample(64, 36, 1)
    bench.guest.seed_again()
    assert bench.sample(100, 28, 2) == [Data(bytearray(b"\1" * 36 + b"\2" * 28), True, H)]


def test_half_a_seed_is_overwritten_when_the_session_ends() -> None:
    bench = Bench().open()
    bench.sample(0, 63, 0xFF)
    bench.receive(Probe(H2, 1, 1))
    assert bench.guest._seed == bytes(64)


def test_what_was_received_is_not_received_again() -> None:
    bench = Bench().seeded()
    assert bench.sample(64, 100) == [Data(bytearray(100), False, H)]
    for offset, size in ((64, 100), (0, 64), (163, 1), (163, 200), (100, 100)):
        assert bench.sample(offset, size) == []
    assert bench.counters() == (164, 64, 0)
    assert bench.sample(164, 1) == [Data(bytearray(1), False, H)]


def test_gaps_are_lost() -> None:
    bench = Bench().seeded()
    assert bench.sample(100, 50) == [Data(bytearray(50), False, H)]
    assert bench.counters() == (150, 100, 36)
    assert bench.receive(Hold(H, 150)) == bench.receive(Hold(H, 20)) == []
    assert bench.counters() == (150, 100, 36)
    assert bench.receive(Hold(H, 170)) == []
    assert bench.counters() == (170, 120, 56)
    assert bench.sample(160, 5) == []  # late, and counted as lost
    bench.guest.ack(50)
    assert bench.counters() == (170, 170, 56)


def test_frames_of_other_sessions_mean_nothing() -> None:
    bench = Bench().seeded()
    assert bench.receive(encode_sample(H2, 64, b"x"), Hold(H2, 99), Close(H2, 1)) == []
    assert bench.guest.receive(unknown_frame(H2), 0) == []
    assert (bench.guest.state, bench.counters()) == ("open", (64, 64, 0))


@pytest.mark.parametrize("frame", [encode_sample(H, 64, b"x" * 37), Hold(H, 101)])
def test_a_host_that_sends_more_than_was_granted_is_left(frame: wire.Control | bytearray) -> None:
    bench = Bench().seeded(100)
    assert bench.receive(frame) == [SessionEnded("the host sent more than was granted")]
    assert (bench.guest.state, bench.output()) == ("knocking", [])
    bench.wait(SECOND)
    assert bench.output() == [Knock(nonce(2))]


def unknown_frame(session: bytes) -> bytes:
    fields = b"\xc7N\xbf\0\0\0\0\0" + session
    return fields + 2 * struct.pack(">I", zlib.crc32(fields))


def test_an_unknown_frame_that_is_not_optional_ends_the_session() -> None:
    bench = Bench().seeded()
    assert bench.guest.receive(unknown_frame(H), 0) == [SessionEnded("the host sent an unknown frame")]


def test_no_entropy_in_a_repr() -> None:
    assert repr(Data(bytearray(b"secret"), True, H)) == f"Data(6 bytes, seed=True, {H.hex()})"


# --- what is granted and acknowledged


def test_a_window_bounds_what_is_granted() -> None:
    bench = Bench(window=1000).seeded(1000)
    bench.guest.grant(10**9)
    assert bench.output() == [Grant(H, 1064, 64, 0)]
    for n in range(4):
        bench.sample(64 + 200 * n, 200)
    assert bench.output() == []
    bench.guest.ack(249)
    assert bench.output() == []  # the host may send 200 bytes yet; every byte is not worth a frame
    bench.guest.ack(1)
    assert bench.output() == [Grant(H, 1314, 314, 0)]
    bench.guest.ack(549)
    assert bench.output() == [Grant(H, 1863, 863, 0)]
    bench.guest.ack(1)
    assert bench.output() == [Grant(H, 1864, 864, 0)]  # all that came is settled


def test_the_host_may_make_the_window_smaller() -> None:
    bench = Bench().open(100, max_window=100)
    bench.sample(0, 64)
    bench.guest.ack(64)
    bench.guest.grant(10**9)
    assert bench.output() == [Grant(H, 164, 64, 0)]


def test_what_was_granted_is_not_taken_back() -> None:
    bench = Bench()
    bench.receive(Probe(H, 1, 1))
    bench.receive(Accept(H, nonce(1), 1, 65536))
    assert bench.output() == [Grant(H, 64, 0, 0)]  # for the seed, though the agent asked for nothing
    bench.sample(0, 64)
    bench.guest.ack(64)
    assert bench.output() == [Grant(H, 64, 64, 0)]


def test_a_starved_host_hears_of_every_byte() -> None:
    bench = Bench().seeded(100)
    bench.sample(64, 36)
    bench.guest.grant(101)
    assert bench.output() == [Grant(H, 101, 64, 0)]
    bench.guest.grant(50)
    assert bench.output() == []


def test_acknowledging() -> None:
    bench = Bench().seeded()
    bench.sample(64, 100)
    for wrong in (-1, 101):
        with pytest.raises(ValueError, match="100 outstanding"):
            bench.guest.ack(wrong)
        with pytest.raises(ValueError, match="100 outstanding"):
            bench.guest.lose(wrong)
    bench.guest.ack(10, H2)
    bench.guest.lose(10, H2)
    assert bench.counters() == (164, 64, 0)
    bench.guest.ack(60, H)
    bench.guest.lose(40, H)
    assert bench.counters() == (164, 164, 40)
    assert bench.output() == [Grant(H, 4096, 164, 40)]


def test_nothing_can_be_asked_for_without_a_session() -> None:
    bench = Bench()
    bench.guest.grant(1000)
    bench.guest.ack(1000)
    bench.guest.lose(1000)
    assert bench.counters() == (0, 0, 0)
    bench.open(64)


def test_everything_is_repeated_every_ten_seconds() -> None:
    bench = Bench().seeded()
    for _ in range(3):
        bench.wait(10 * SECOND - 1)
        assert bench.output() == []
        bench.wait(1)
        assert bench.output() == [Grant(H, 4096, 64, 0)]
    assert bench.guest.state == "open"  # silence ends no session


# --- status


def test_status_at_the_opening_on_change_and_with_the_keep_alive() -> None:
    bench = Bench()
    bench.guest.status({"sink": "rngd", "taken": 0})
    bench.open()
    bench.wait(0)
    assert bench.output() == [Status(H, b'{"sink":"rngd","taken":0}')]
    bench.guest.status({"sink": "rngd", "taken": 100})
    bench.wait(2 * SECOND)
    assert bench.output() == []
    bench.guest.status({"sink": "kernel", "taken": 100})
    bench.wait(0)
    assert bench.output() == [Status(H, b'{"sink":"kernel","taken":100}')]
    bench.guest.status({"sink": "rngd"})
    bench.wait(SECOND - 1)
    assert bench.output() == []
    bench.wait(1)
    assert bench.output() == [Status(H, b'{"sink":"rngd"}')]
    bench.guest.status({"sink": "rngd", "taken": 300})
    bench.wait(7 * SECOND)
    assert bench.output() == [Status(H, b'{"sink":"rngd","taken":300}'), Grant(H, 64, 0, 0)]


# --- how sessions end


@pytest.mark.parametrize(("code", "name"), [(1, "shutdown"), (3, "incompatible"), (200, "other")])
def test_close(code: int, name: str) -> None:
    bench = Bench().seeded()
    ended = [SessionEnded("closed by the host: " + name)]
    assert bench.receive(encode_sample(H, 64, b"x"), Close(H, code)) == ended
    assert bench.output() == []
    bench.wait(SECOND)
    assert bench.output() == [Knock(nonce(2))]
    bench.receive(Probe(H2, 1, 1))
    bench.output()
    assert bench.receive(Close(H2, code)) == ended  # also when it never opened
    assert bench.guest.state == "knocking"


def test_flush() -> None:
    bench = Bench().seeded()
    bench.wait(5 * SECOND)
    half = encode_sample(H, 64, b"\xff" * 100)
    bench.guest.receive(half[:70], bench.now)
    assert bench.guest.flush() == [SessionEnded("flushed")]
    assert bench.guest.decoder._buffer == b""
    bench.wait(0)
    assert bench.output() == [Knock(nonce(2))]
    assert bench.guest.receive(half[70:], bench.now) == bench.guest.flush() == []
    bench.wait(0)
    assert bench.output() == [Knock(nonce(3))]


def test_closing_says_bye() -> None:
    bench = Bench().seeded()
    assert bench.guest.close() == [SessionEnded("closed")]
    assert bench.output() == [Bye(H)]
    assert bench.guest.close() == bench.guest.flush() == []
    assert bench.receive(Probe(H2, 1, 1), encode_sample(H, 64, b"x")) == []
    bench.guest.tick(10**18)
    assert (bench.output(), bench.guest.next_tick_ns) == ([], None)


def test_closing_without_a_session_says_nothing() -> None:
    bench = Bench()
    bench.guest.tick(0)
    assert bench.guest.close() == []
    assert bench.output() == []


# --- any input

SESSIONS = st.sampled_from([H, H2])
NONCES = st.integers(1, 4).map(nonce)
U64 = st.one_of(st.integers(0, 5000), st.integers(0, 2**64 - 1))
HOST_FRAMES = st.one_of(
    st.builds(Probe, SESSIONS, st.integers(0, 3), st.integers(0, 3)).map(encode),
    st.builds(Accept, SESSIONS, NONCES, st.integers(0, 2), st.integers(0, 70000)).map(encode),
    st.builds(encode_sample, SESSIONS, U64, st.binary(min_size=1, max_size=300)),
    st.builds(Hold, SESSIONS, U64).map(encode),
    st.builds(Close, SESSIONS, st.integers(0, 255)).map(encode),
    SESSIONS.map(unknown_frame),
    st.binary(max_size=100),
)


@settings(max_examples=300)
@given(st.lists(st.tuples(HOST_FRAMES, st.integers(1, 300), st.integers(0, 5 * SECOND)), max_size=40))
def test_any_input_is_survived_in_bounded_memory(inputs: list[tuple[bytes, int, int]]) -> None:
    bench = Bench(window=1000)
    guest, parked = bench.guest, 0
    for frame, keep, step in inputs:
        for event in guest.receive(frame[:keep], bench.now):
            if isinstance(event, Data):
                parked += len(event.data)
            else:
                parked = 0
        assert parked == guest.outstanding <= 1000
        guest.grant(guest.received + 700)
        guest.ack(guest.outstanding // 2)
        parked = guest.outstanding
        bench.wait(step)
        assert len(guest.take_output()) < 200
        assert guest.lost <= guest.acked <= guest.received <= guest.granted
        assert len(guest.decoder._buffer) <= wire.OVERHEAD + wire.GUEST_MAX_PAYLOAD


# --- released versions


def test_the_agent_still_speaks_version_1() -> None:
    lines = [
        line.split()
        for line in (GOLDEN / "version-1.txt").read_text(encoding="ascii").splitlines()
        if not line.startswith("#")
    ]
    nonces = iter([bytes.fromhex("a0a1a2a3a4a5a6a7"), bytes.fromhex("b0b1b2b3b4b5b6b7")])
    guest = GuestSession(lambda: next(nonces))
    now, written = 0, b""
    guest.tick(now)
    for sender, kind, text in lines[: [kind for _, kind, _ in lines].index("BYE") + 1]:
        frame = bytes.fromhex(text)
        if sender == "guest":
            guest.grant(4160 if guest.received else 4096)
            if kind == "BYE":
                guest.close()
            written = written or guest.take_output()
            assert written.startswith(frame)
            written = written[len(frame) :]
        elif kind != "SAMPLE" or not guest.received:  # the second one is lost
            for event in guest.receive(frame, now):
                if isinstance(event, Data):
                    guest.ack(len(event.data))
                    texts = {"version": "0.1.0", "sink": "rngd", "sink_state": "running", "detail": ""}
                    guest.status({**texts, "taken": len(event.data)})
                    guest.tick(now)
    assert guest.state == "closed"
