# SPDX-License-Identifier: Apache-2.0
"""Ends that speak EGD with a hostd's [[serve]]: a client that asks without end, and a relay that looks on."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.edge.rig import PATIENCE_S

REQUEST = 128  # bytes of one command 2: as much as ekeyd-egd-linux asks for


def section(name: str, folder: Path) -> str:
    """Its lines in hostd.toml."""
    return f'[[serve]]\nname = "{name}"\npath = "{folder / name}.egd"\n'


def connected(path: Path) -> socket.socket:
    """Waits where many others come at this moment. The caller closes it."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        # A connect() that is not to wait fails where the backlog is full, and a timeout makes it such a one.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(PATIENCE_S), 0))
        sock.connect(str(path))
        sock.settimeout(PATIENCE_S)
    except BaseException:
        sock.close()
        raise
    return sock


def received(sock: socket.socket, n_bytes: int) -> bytes:
    """Just so many. EOFError where it ends before."""
    data = bytearray()
    while len(data) < n_bytes:
        piece = sock.recv(n_bytes - len(data))
        if not piece:
            raise EOFError(f"{len(data)} bytes instead of {n_bytes}")
        data += piece
    return bytes(data)


class Asker(threading.Thread):
    """Asks with command 2 for ``ask`` bytes beyond what it took, until it is closed or sent away."""

    def __init__(self, path: Path, ask: int = 16384) -> None:
        super().__init__(name=f"asker {path.name}", daemon=True)
        self.taken = bytearray()
        self.ended = threading.Event()
        self._sock = connected(path)
        self._sock.settimeout(None)
        self._ask = ask
        self.start()

    def run(self) -> None:
        asked = 0
        with contextlib.suppress(OSError):
            while True:
                count = (self._ask + len(self.taken) - asked) // REQUEST
                if count:
                    self._sock.sendall(bytes((2, REQUEST)) * count)
                    asked += count * REQUEST
                data = self._sock.recv(65536)
                if not data:
                    break
                self.taken += data
        self.ended.set()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self.join()
        self._sock.close()


@contextlib.contextmanager
def askers(*paths: Path, ask: int = 16384) -> Iterator[list[Asker]]:
    """One at each path."""
    with contextlib.ExitStack() as stack:
        made = []
        for path in paths:
            made.append(Asker(path, ask))
            stack.callback(made[-1].close)
        yield made


class Relay:
    """From a port of this host, or a UNIX socket, to a UNIX socket; it keeps what passes.

    Of one client after another: ``asked`` and ``answered`` are what was said both ways.
    """

    def __init__(self, listener: socket.socket, target: Path) -> None:
        self.asked, self.answered = bytearray(), bytearray()
        self._listener, self._target = listener, target
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._run, name="relay", daemon=True)]
        self._threads[0].start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                client, _ = self._listener.accept()
                server = connected(self._target)
                server.settimeout(None)
                self._open += [client, server]
                for ends in ((client, server, self.asked), (server, client, self.answered)):
                    self._threads.append(threading.Thread(target=_pump, args=ends, daemon=True))
                    self._threads[-1].start()

    def close(self) -> None:
        for sock in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        for sock in (self._listener, *self._open):
            sock.close()


def _pump(source: socket.socket, sink: socket.socket, seen: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            seen += data
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def relay(target: Path, listener: socket.socket) -> Iterator[Relay]:
    made = Relay(listener, target)
    try:
        yield made
    finally:
        made.close()


def tcp_listener(address: str) -> socket.socket:
    """At a free port."""
    sock = socket.socket()
    sock.bind((address, 0))
    sock.listen(4)
    return sock


def unix_listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(4)
    return sock
