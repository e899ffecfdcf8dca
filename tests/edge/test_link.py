# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field

from tests.edge.rig import until

from netrng_hostd.channels.link import MAX_PENDING, Link


@dataclass
class Ends:
    far: socket.socket
    link: Link
    received: bytearray = field(default_factory=bytearray)
    drained: int = 0
    closed: list[str] = field(default_factory=list)


def make_ends() -> Ends:
    near, far = socket.socketpair()
    far.setblocking(False)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    received, closed = bytearray(), list[str]()

    def drained() -> None:
        ends.drained += 1

    link = Link(
        near,
        asyncio.get_running_loop(),
        received=received.extend,
        drained=drained,
        closed=closed.append,
    )
    ends = Ends(far, link, received, closed=closed)
    return ends


def read_all(sock: socket.socket) -> bytes:
    taken = bytearray()
    while True:
        try:
            piece = sock.recv(65536)
        except BlockingIOError:
            return bytes(taken)
        if not piece:
            return bytes(taken)
        taken += piece


def test_a_frame_is_sent_and_overwritten() -> None:
    async def scenario() -> None:
        ends = make_ends()
        frame = bytearray(b"\x55" * 100)
        ends.link.send(frame)
        assert read_all(ends.far) == b"\x55" * 100
        assert frame == bytes(100)
        assert ends.link.idle
        ends.link.close()
        ends.far.close()

    asyncio.run(scenario(), debug=True)


def test_a_slow_reader_gets_all_in_order_and_drained_is_called_once() -> None:
    async def scenario() -> None:
        ends = make_ends()
        big = bytearray(b"a" * 300_000)
        ends.link.send(big)
        ends.link.send(bytearray(b"b" * 10))
        assert not ends.link.idle
        got = bytearray()

        def all_there() -> bool:
            got.extend(read_all(ends.far))
            return len(got) == 300_010

        await until(all_there)
        await until(lambda: ends.drained == 1)
        assert got == b"a" * 300_000 + b"b" * 10
        assert big == bytes(300_000)
        ends.link.close()
        ends.far.close()

    asyncio.run(scenario(), debug=True)


def test_pending_frames_are_bounded_and_what_is_refused_is_overwritten() -> None:
    async def scenario() -> None:
        ends = make_ends()
        ends.link.send(bytearray(1_000_000))
        waiting = [bytearray(b"x") for _ in range(MAX_PENDING + 5)]
        for frame in waiting:
            ends.link.send(frame)
        assert [frame for frame in waiting if frame == b"\0"] == [b"\0"] * 6
        ends.link.close("enough")
        assert all(frame == b"\0" for frame in waiting)
        ends.far.close()

    asyncio.run(scenario(), debug=True)


def test_closing_overwrites_what_was_not_sent_and_tells_once() -> None:
    async def scenario() -> None:
        ends = make_ends()
        frame = bytearray(b"z" * 1_000_000)
        ends.link.send(frame)
        ends.link.close("reason")
        ends.link.close("another")
        assert frame == bytes(len(frame))
        assert ends.closed == ["reason"]
        late = bytearray(b"late")
        ends.link.send(late)
        assert late == bytes(4)
        ends.far.close()

    asyncio.run(scenario(), debug=True)


def test_data_arrives_only_while_reading() -> None:
    async def scenario() -> None:
        ends = make_ends()
        ends.link.start()
        ends.far.send(b"one")
        await until(lambda: ends.received == b"one")
        ends.link.pause()
        ends.far.send(b"two")
        for _ in range(20):
            await asyncio.sleep(0)
        assert ends.received == b"one"
        ends.link.resume()
        await until(lambda: ends.received == b"onetwo")
        ends.link.close()
        ends.far.close()

    asyncio.run(scenario(), debug=True)


def test_the_other_end_closing_and_a_dead_peer_are_reported() -> None:
    async def scenario() -> None:
        ends = make_ends()
        ends.link.start()
        ends.far.close()
        await until(lambda: bool(ends.closed))
        assert ends.closed == ["closed by the other end"]

        writer = make_ends()
        writer.far.close()
        frame = bytearray(b"secret")
        writer.link.send(frame)
        assert writer.closed and writer.closed[0].startswith("write failed")
        assert frame == bytes(6)

    asyncio.run(scenario(), debug=True)
