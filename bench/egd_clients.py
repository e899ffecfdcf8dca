# SPDX-License-Identifier: Apache-2.0
"""Greedy EGD clients: each keeps some requests of 255 bytes on their way, and reads what comes."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from typing import Any

REQUEST = b"\x02\xff"
SIZE = 255  # bytes that one request brings


def due(before: int, count: int) -> int:
    """How many answers became whole with `count` bytes, after `before`: so many requests may follow."""
    return (before + count) // SIZE - before // SIZE


class Clients(contextlib.ExitStack):
    """Connected at once; they ask and read only in `take`.  A context manager."""

    def __init__(self, path: str, clients: int, requests: int) -> None:
        super().__init__()
        self._selector = self.enter_context(selectors.DefaultSelector())
        self._taken: dict[socket.socket, int] = {}
        for _ in range(clients):
            sock = self.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(path)
            sock.sendall(REQUEST * requests)
            self._selector.register(sock, selectors.EVENT_READ)
            self._taken[sock] = 0

    def take(self, seconds: float) -> float:
        """Bytes per second; what was asked for last waits in the sockets until the next time."""
        total = 0
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < seconds:
            for key, _ in self._selector.select(seconds):
                sock: Any = key.fileobj
                data = sock.recv(65536)
                if not any(data):
                    raise EOFError("the server has closed, or sends zeros")
                count = len(data)
                before = self._taken[sock]
                self._taken[sock] = before + count
                total += count
                if again := due(before, count):
                    sock.sendall(REQUEST * again)
        return total / passed
