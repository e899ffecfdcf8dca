# SPDX-License-Identifier: Apache-2.0
"""EGD servers to compare, on /dev/urandom's bytes: `python -m bench.egd_servers NAME SOCKET`, until killed.

bare     the least that answers these clients: no command is looked at, and the kernel asked once for a read
scratch  as anybody writes one: a loop that reads commands and answers each; no test, no accounting
codec    EgdSession on a Link, in the same kind of loop; the kernel is asked once for all that waits, as in
         the daemon a sample may be for all of it: that is where it gains on scratch
server   EgdServer on asyncio, its clients served as soon as they ask: the daemon without its core

None of them has a scheduler, a reservoir or health tests.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, cast

from netrng_hostd.channels.egd import EgdSession
from netrng_hostd.channels.link import Link
from netrng_hostd.channels.server import EgdServer

MUCH = 1 << 20  # bytes that are said to be there
READY = "ready"


def bare(listener: socket.socket) -> None:
    """Takes for granted that each command is command 2, and comes whole."""

    def answer(sock: socket.socket, data: bytes) -> None:
        sock.sendall(os.urandom(sum(data[1::2])))

    plainly(listener, answer)


def scratch(listener: socket.socket) -> None:
    """Knows command 2 alone."""
    parts: dict[socket.socket, bytes] = {}

    def answer(sock: socket.socket, data: bytes) -> None:
        commands = parts.pop(sock, b"") + data
        place, answers = 0, []
        while place + 1 < len(commands):
            if commands[place] != 2:
                raise ConnectionError("no command that is known")
            answers.append(os.urandom(commands[place + 1]))
            place += 2
        if place < len(commands):
            parts[sock] = commands[place:]
        sock.sendall(b"".join(answers))

    plainly(listener, answer)


def plainly(listener: socket.socket, answer: Callable[[socket.socket, bytes], None]) -> None:
    """The loop that everybody writes."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                sock: Any = key.fileobj
                if sock is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                    continue
                try:
                    data = sock.recv(4096)
                    answer(sock, data)
                except OSError:
                    data = b""
                if not data:
                    selector.unregister(sock)
                    sock.close()


class Selecting:
    """The same loop, with what a Link needs of asyncio's."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def add_reader(self, sock: socket.socket, ready: Callable[[], None]) -> None:
        self._selector.register(sock, selectors.EVENT_READ, ready)

    def remove_reader(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)

    def add_writer(self, sock: socket.socket, ready: Callable[[], None]) -> None:
        raise NotImplementedError("a client asks for less than a socket's buffer holds")

    def remove_writer(self, sock: socket.socket) -> None:
        """There never is one."""

    def run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                key.data()


def codec(listener: socket.socket) -> None:
    loop = Selecting()

    def accept() -> None:
        session = EgdSession(lambda: MUCH, os.getpid())

        def received(data: bytes) -> None:
            session.receive(data, time.monotonic_ns())
            if wanted := session.wanted:  # all of it, as the clients use command 2 alone
                link.send(session.sample(bytearray(os.urandom(wanted))))

        link = Link(
            listener.accept()[0],
            cast(asyncio.AbstractEventLoop, loop),
            received=received,
            drained=lambda: None,
            closed=lambda reason: None,
        )
        session.renew(time.monotonic_ns())
        link.start()

    loop.add_reader(listener, accept)
    loop.run()


def served(path: str) -> None:
    def give(server: EgdServer) -> None:
        if wanted := server.wanted[1]:
            server.send_sample(bytearray(os.urandom(wanted)))

    async def serve() -> None:
        server = EgdServer("bench", path, lambda: MUCH, give)
        running = asyncio.create_task(server.run())
        await asyncio.sleep(0)  # its first step is to listen
        print(READY, flush=True)
        await running

    asyncio.run(serve())


def main(name: str, path: str) -> None:
    if name == "server":
        served(path)
        return
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print(READY, flush=True)
        {"bare": bare, "scratch": scratch, "codec": codec}[name](listener)


if __name__ == "__main__":
    main(*sys.argv[1:])
