# SPDX-License-Identifier: Apache-2.0
"""The server's half of EGD: each command, and what holds whatever the asker sends, however it is chopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.edge.rig import until

from netrng_hostd.channels import egd
from netrng_hostd.channels.budget import InboundBudget
from netrng_hostd.channels.conversation import Conversation
from netrng_hostd.channels.egd import AVAILABLE, COUNT, PROCESS, PUSH, SOON_NS, WAITING, EgdSession
from netrng_hostd.channels.server import EgdServer
from netrng_hostd.channels.session import CLOSED, OPEN, Broken, Granted, Opened

MANY = 1000  # bytes that are said to be there
READ = 4096  # bytes, as a Link reads them
NOW_NS = 1_000_000_000


class Peer:
    """What a Conversation does with a session, and a source whose bytes count up: 1, 2, … 251, 1, …

    `most`: bytes of one sample. `late`: command 1 finds nothing until its time is over.
    """

    def __init__(
        self, most: int = 10_000, unasked: int = 0, process_id: int = 4711, late: bool = False
    ) -> None:
        self.session = EgdSession(lambda: MANY, process_id, unasked)
        self.given = bytearray()
        self.said = bytearray()
        self.most = most
        self.late = late
        self.session.renew(NOW_NS)

    def hears(self, data: bytes, size: int = READ) -> Peer:
        """In pieces of `size`; all that can be answered at once is."""
        for place in range(0, len(data), size):
            self.session.receive(data[place : place + size], NOW_NS)
            self.answer()
        return self

    def answer(self) -> None:
        self.said += self.session.take_output()
        while self.session.wanted and not (self.late and self.session.next_tick_ns):
            count = min(self.session.wanted, self.most)
            data = bytearray((len(self.given) + n) % 251 + 1 for n in range(count))
            self.given += data
            self.said += self.session.sample(data)
            self.said += self.session.take_output()

    def later(self) -> None:
        """Command 1's time is over."""
        self.session.tick(NOW_NS + SOON_NS)
        self.answer()

    @property
    def kept(self) -> int:
        """How much of what it was sent the session has in memory, in requests and bytes."""
        session = self.session
        return len(session._behind) + len(session._partial) + len(session._output)


def stream(n_bytes: int, begin: int = 0) -> bytes:
    """What the source gives."""
    return bytes((begin + n) % 251 + 1 for n in range(n_bytes))


def answers_to(commands: list[bytes]) -> Iterator[bytes]:
    """The answers that are due to commands that come whole, in their order, where the source never fails."""
    given = 0
    for command in commands:
        n_bytes = command[1] if command[0] in (AVAILABLE, WAITING) else 0
        if command[0] == COUNT:
            yield (8 * MANY).to_bytes(4, "big")
        elif command[0] == PROCESS:
            yield b"\x044711"
        else:
            yield bytes((n_bytes,)) * (command[0] == AVAILABLE) + stream(n_bytes, given)
        given += n_bytes


one_byte = st.integers(0, 255)
takes = st.builds(lambda command, n: bytes((command, n)), st.sampled_from((AVAILABLE, WAITING)), one_byte)
asks = st.sampled_from((bytes((COUNT,)), bytes((PROCESS,))))
pushes = st.builds(
    lambda bits, data: bytes((PUSH, *bits, len(data))) + data,
    st.binary(min_size=2, max_size=2),
    st.binary(max_size=255),
)
anything = st.lists(st.sampled_from(bytes((0, 1, 1, 2, 2, 2, 2, 3, 4, 5))), max_size=8).map(bytes)
conversations = st.lists(st.one_of(takes, takes, asks, pushes), max_size=40)


# Each command


def test_how_many_bits_there_are() -> None:
    assert Peer().hears(b"\x00").said == (8 * MANY).to_bytes(4, "big")


def test_more_bits_than_four_bytes_can_tell() -> None:
    session = EgdSession(lambda: 1 << 30)
    session.renew(NOW_NS)
    session.receive(b"\x00", NOW_NS)
    assert session.take_output() == b"\xff\xff\xff\xff"


def test_some_bytes_soon_are_counted() -> None:
    assert Peer().hears(b"\x01\x05").said == b"\x05" + stream(5)
    assert Peer(most=3).hears(b"\x01\x05").said == b"\x03" + stream(3), "fewer, and then no more"


def test_some_bytes_soon_where_there_are_none() -> None:
    peer = Peer(late=True)
    peer.hears(b"\x01\x05\x02\x02\x04")
    assert peer.session.wanted == 5
    assert peer.session.next_tick_ns == NOW_NS + SOON_NS
    peer.session.tick(NOW_NS + SOON_NS - 1)
    assert peer.said == peer.session.take_output() == b""
    peer.later()
    assert peer.said == b"\x00" + stream(2) + b"\x044711", "none, and then what was asked after it"
    assert peer.session.next_tick_ns is None


def test_no_bytes_soon() -> None:
    assert Peer(late=True).hears(b"\x01\x00").said == b"\x00"


def test_so_many_bytes_however_long_it_takes() -> None:
    assert Peer().hears(b"\x02\x05").said == stream(5)
    peer = Peer(most=2, late=True).hears(b"\x02\x05")
    assert peer.said == stream(5)
    peer.later()
    assert peer.said == stream(5)
    assert Peer().hears(b"\x02\x00").said == b""


def test_several_requests_are_one_sample() -> None:
    session = EgdSession(lambda: MANY)
    session.renew(NOW_NS)
    session.receive(b"\x02\xff" * 8 + b"\x02", NOW_NS)
    assert session.wanted == 8 * 255
    session.receive(b"\x01", NOW_NS)
    assert session.wanted == 8 * 255 + 1


def test_requests_behind_another_one_are_added_up_and_wait() -> None:
    session = EgdSession(lambda: MANY)
    session.renew(NOW_NS)
    session.receive(b"\x01\x05", NOW_NS)
    for _ in range(2 * egd.MAX_ASKS):
        assert session.receive(b"\x02\x03", NOW_NS)[-1] == Granted()
        assert session.wanted == 5, "of command 1"
    assert session.sample(bytearray(5)) == b"\x05" + bytes(5)
    assert session.wanted == 2 * egd.MAX_ASKS * 3


def test_many_requests_in_one_read_are_all_answered() -> None:
    peer = Peer().hears(b"\x00" * (2 * egd.MAX_ASKS) + b"\x02\x03")
    assert peer.said == (8 * MANY).to_bytes(4, "big") * (2 * egd.MAX_ASKS) + stream(3)


def test_what_is_pushed_is_thrown_away() -> None:
    pushed = b"\x03\x00\x08\x04" + b"\x02\x09\x02\x09"
    assert Peer().hears(pushed).said == b""
    assert Peer().hears(pushed + b"\x04").said == b"\x044711"
    assert Peer().hears(b"\x03\x00\x00\x00\x04").said == b"\x044711", "none at all"


def test_the_servers_process() -> None:
    assert Peer(process_id=1).hears(b"\x04").said == b"\x011"


@pytest.mark.parametrize("command", [b"\x05", b"\xff", b"\x02\x01\x00\x05"])
def test_an_unknown_command_breaks_it(command: bytes) -> None:
    session = EgdSession(lambda: MANY)
    session.renew(NOW_NS)
    events = session.receive(command, NOW_NS)
    assert events == [Broken("a byte that is no command")]
    assert (session.state, session.wanted, session.take_output()) == (CLOSED, 0, b"")
    assert session.receive(b"\x00", NOW_NS) == [], "until the next connection"


def test_a_command_that_this_asker_may_not_use_breaks_it() -> None:
    session = EgdSession(lambda: MANY, commands=(WAITING,))
    session.renew(NOW_NS)
    session.receive(b"\x02\x05", NOW_NS)
    assert session.wanted == 5
    assert session.receive(b"\x00", NOW_NS) == [Broken("a byte that is no command")]


def test_each_answer_of_its_own_counts_and_what_is_added_up_does_not() -> None:
    session = EgdSession(lambda: MANY)
    session.renew(NOW_NS)
    for said, answers in (
        (b"\x02\xff" * 100, 0),
        (b"\x02\xff", 0),
        (b"\x01\x01" * 10, 10),
        (b"\x02\x01\x00" * 10, 20),
        (b"\x00", 1),
        (b"", 0),
    ):
        session.receive(said, NOW_NS)
        assert session.answers_due == answers, said


def test_events() -> None:
    session = EgdSession(lambda: MANY)
    assert session.receive(b"\x02\x05", NOW_NS) == [], "nobody is connected"
    assert session.renew(NOW_NS) == [Granted()]
    assert session.state == OPEN
    assert session.receive(b"\x02", NOW_NS) == [Opened(b"", 0), Granted()]
    assert session.receive(b"\x05", NOW_NS) == [Granted()]
    assert session.last_heard_ns == NOW_NS
    assert session.close("", NOW_NS) == []
    assert not session.wanted
    assert session.last_heard_ns is None


def test_more_than_is_wanted_is_refused() -> None:
    session = EgdSession(lambda: MANY)
    session.renew(NOW_NS)
    session.receive(b"\x02\x05", NOW_NS)
    for size in (0, 6):
        with pytest.raises(ValueError, match="5 wanted"):
            session.sample(bytearray(size))
    assert (session.sent, session.wanted) == (0, 5)


def test_bytes_are_not_copied_where_nothing_goes_before_them() -> None:
    """A copy would be one more to overwrite; but a caller that kept `data` must not find it longer."""
    session = EgdSession(lambda: MANY)
    session.renew(NOW_NS)
    session.receive(b"\x02\x05\x01\x05", NOW_NS)
    data = bytearray(5)
    assert session.sample(data) is data
    counted = session.sample(data)
    assert counted == b"\x05" + bytes(5)
    assert data == bytes(5)


# Bytes for requests that were lost


def test_unasked_bytes_come_first_and_once_for_each_connection() -> None:
    peer = Peer(unasked=64)
    peer.answer()
    assert peer.said == stream(64)
    peer.hears(b"\x00\x02\x05")
    assert peer.said == stream(64) + (8 * MANY).to_bytes(4, "big") + stream(5, 64)
    peer.session.renew(NOW_NS)
    assert peer.session.wanted == 64


def test_what_is_asked_before_the_unasked_bytes_are_there_waits_for_them() -> None:
    peer = Peer(unasked=64)
    peer.session.receive(b"\x00\x01\x05\x02\x03", NOW_NS)
    assert peer.session.take_output() == b""
    peer.answer()
    assert peer.said == stream(64) + (8 * MANY).to_bytes(4, "big") + b"\x05" + stream(8, 64)


def test_a_new_connection_begins_with_nothing() -> None:
    """Neither half a command, nor what is still to be thrown away, nor requests, nor answers."""
    for before in (b"\x02", b"\x03\x00\x00\xff", b"\x02\x05\x00\x04", b"\x01\x05", b"\x00"):
        peer = Peer()
        peer.session.receive(before, NOW_NS)
        peer.session.renew(NOW_NS)
        assert (peer.session.wanted, peer.session.next_tick_ns, peer.session.sent) == (0, None, 0)
        assert peer.hears(b"\x02\x03\x04").said == stream(3) + b"\x044711"


# Whatever is sent, however it is chopped


@given(conversations, st.lists(st.integers(1, 300), min_size=1), st.integers(0, 100))
def test_answers_come_in_order_however_the_commands_are_chopped(
    commands: list[bytes], sizes: list[int], unasked: int
) -> None:
    data = b"".join(commands)
    peer = Peer(unasked=unasked)
    peer.answer()
    place = 0
    for size in sizes * (len(data) // sum(sizes) + 1):
        peer.hears(data[place : place + size], size)
        place += size
    assert peer.said[:unasked] == stream(unasked)
    expected = b"".join(answers_to([bytes((WAITING, unasked)), *commands]))
    assert peer.said == expected
    assert peer.session.sent == sum(command[1] for command in commands if command[0] in (1, 2)) + unasked
    assert not peer.session.wanted


@given(conversations, st.integers(1, 300), st.integers(1, 300), st.integers(0, 100))
def test_a_source_that_gives_little_changes_no_more_than_the_counts_of_command_1(
    commands: list[bytes], size: int, most: int, unasked: int
) -> None:
    """`said` is read as a client would: what follows a piece that is wrong is wrong as well."""
    peer = Peer(most=most, unasked=unasked).hears(b"".join(commands), size)
    peer.answer()
    said, place = bytes(peer.said), unasked
    taken = bytearray(said[:unasked])
    for command in commands:
        if command[0] == COUNT:
            assert said[place : place + 4] == (8 * MANY).to_bytes(4, "big")
            place += 4
        elif command[0] == PROCESS:
            assert said[place : place + 5] == b"\x044711"
            place += 5
        elif command[0] in (AVAILABLE, WAITING):
            count = command[1]
            if command[0] == AVAILABLE:
                assert said[place] == min(command[1], most)
                count, place = said[place], place + 1
            taken += said[place : place + count]
            place += count
    assert place == len(said)
    assert taken == peer.given == stream(len(taken))
    assert peer.session.sent == len(taken)


@given(conversations, st.integers(1, 9))
def test_what_was_not_answered_yet_does_not_depend_on_chopping(commands: list[bytes], size: int) -> None:
    """An asker that is served late gets what one gets that is served at once."""
    data = b"".join(commands)
    late = Peer()
    for place in range(0, len(data), size):
        late.session.receive(data[place : place + size], NOW_NS)
    late.answer()
    assert late.said == Peer().hears(data).said


@given(st.lists(st.tuples(anything, st.integers(0, 300)), max_size=50), st.integers(0, 64))
def test_whatever_it_sends_it_is_never_given_more_than_it_asked_for(
    turns: list[tuple[bytes, int]], unasked: int
) -> None:
    session = EgdSession(lambda: MANY, 4711, unasked)
    session.renew(NOW_NS)
    heard, sent = b"", 0
    for data, most in turns:
        heard += data
        events = session.receive(data, NOW_NS)
        if any(isinstance(event, Broken) for event in events):
            assert (session.wanted, session.sent, session.take_output()) == (0, 0, b"")
            return
        session.take_output()
        if count := min(most, session.wanted):
            session.sample(bytearray(count))
            sent += count
        assert session.sent == sent
        assert sent + session.wanted <= asked(heard) + unasked


def asked(heard: bytes) -> int:
    """The bytes that a client may expect at most, read one command at a time."""
    total, place = 0, 0
    while place < len(heard):
        command, rest = heard[place], heard[place + 1 :]
        if command in (AVAILABLE, WAITING) and rest:
            total += rest[0]
        pushed = rest[2] if command == PUSH and len(rest) > 2 else 0
        place += {COUNT: 1, PROCESS: 1, PUSH: 4 + pushed}.get(command, 2)
    return total


# What an asker may cost


HOSTILE = {
    "requests of command 2": b"\x02\xff" * 2,
    "of command 2, chopped": b"\x02\xff\x02",
    "for nothing": b"\x02\x00",
    "of command 2 between others": b"\x02\x01\x00",
    "of command 1": b"\x01\xff",
    "how many bits there are": b"\x00",
    "the process": b"\x04",
    "pushed": b"\x03\x00\x00\xff" + bytes(255),
    "pushed, none": b"\x03\x00\x00\x00",
    "all of them": b"\x00\x02\x01\x04\x01\x01\x03\x00\x00\x01x",
}


@pytest.mark.parametrize("taking", [True, False], ids=["taking", "not taking"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_megabytes_cost_little_memory(kind: str, taking: bool) -> None:
    """Whether it takes the answers without entropy or not; it gets none of the others."""
    data = HOSTILE[kind] * (READ // len(HOSTILE[kind]) + 2)
    session = EgdSession(lambda: MANY, 4711, unasked=64)
    session.renew(NOW_NS)
    peer = Peer()
    peer.session = session
    for n in range(512):  # 2 MiB
        begin = n * READ % len(HOSTILE[kind])
        broken = any(
            isinstance(event, Broken) for event in session.receive(data[begin : begin + READ], NOW_NS)
        )
        assert peer.kept <= egd.MAX_ASKS + egd.MAX_OUTPUT + 8
        if broken:
            assert peer.kept == 0
            break
        if taking:
            session.take_output()


def test_who_asks_and_asks_has_to_go() -> None:
    session = EgdSession(lambda: MANY)
    session.renew(NOW_NS)
    session.receive(b"\x02\x01" + b"\x00" * egd.MAX_ASKS, NOW_NS)
    assert session.state == OPEN
    assert session.receive(b"\x04", NOW_NS) == [Broken(egd.TOO_MUCH)]
    assert session.state == CLOSED


def test_who_does_not_take_the_answers_has_to_go() -> None:
    session = EgdSession(lambda: MANY)
    session.renew(NOW_NS)
    for _ in range(egd.MAX_OUTPUT // 4 // 128):
        session.receive(b"\x00" * 128, NOW_NS)
    assert session.state == OPEN
    assert session.receive(b"\x00", NOW_NS) == [Broken(egd.TOO_MUCH)]
    assert session.take_output() == b""


# On a socket


def test_the_bytes_of_the_sample_arrive_and_are_overwritten_here() -> None:
    async def scenario() -> None:
        near, far = socket.socketpair()
        session = EgdSession(lambda: MANY)
        talk = Conversation(
            near,
            session,
            InboundBudget(NOW_NS),
            heard=lambda events, now_ns: talk.speak(),
            drained=lambda: None,
            flooded=lambda: None,
            closed=lambda reason: None,
        )
        session.renew(NOW_NS)
        talk.start()
        with far:
            far.send(b"\x00\x02\x05\x04\x01\x05")
            await until(lambda: talk.wanted == (0, 5))
            for data in (bytearray(stream(2)), bytearray(stream(3)), bytearray(stream(4))):
                talk.send_sample(data)
                assert data == bytes(len(data))
            taken = stream(2) + stream(3)
            assert far.recv(READ) == (8 * MANY).to_bytes(4, "big") + taken + b"\x010" + b"\x04" + stream(4)
            talk.close("")

    asyncio.run(scenario(), debug=True)


def test_one_sample_is_for_all_clients_that_wait_in_turn(tmp_path: Path) -> None:
    """Each gets what it asked for, as far as the sample goes; who got less has had its turn as well."""

    async def scenario() -> None:
        path = str(tmp_path / "socket")
        server = EgdServer("lab", path, lambda: MANY, lambda server: None)
        running = asyncio.create_task(server.run())
        await until(lambda: server.state == "listening")
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
            for number, client in enumerate(clients):
                client.connect(path)
                client.setblocking(False)
                client.send(b"\x02\x05")
                await until(lambda asked=5 * (number + 1): server.wanted == (0, asked))  # type: ignore[misc]
            first = bytearray(stream(7))
            server.send_sample(first)
            assert first == bytes(7)
            assert [client.recv(READ) for client in clients[:2]] == [stream(5), stream(2, 5)]
            assert server.wanted == (0, 8)
            server.send_sample(bytearray(stream(6, 7)))
            assert [client.recv(READ) for client in clients[2:0:-1]] == [stream(5, 7), stream(1, 12)]
            clients[1].close()
            await until(lambda: server.wanted == (0, 0))
            clients[0].send(b"\x02\x04" * 2 + b"\x04")
            await until(lambda: server.wanted == (0, 8))
            server.send_sample(bytearray(stream(8, 13)))
            process = str(os.getpid()).encode()
            assert clients[0].recv(READ) == stream(8, 13) + bytes((len(process),)) + process
            assert (server.wanted, server.sent) == ((0, 0), 21)
        await until(lambda: not server.clients)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario(), debug=True)
