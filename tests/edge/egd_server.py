# SPDX-License-Identifier: Apache-2.0
"""Sockets that answer EGD's commands 1 and 2 as those of [[serve]] do, and keep what each of them gave."""

from __future__ import annotations

import contextlib
import os
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

GET_AVAILABLE, GET_WAITING = 1, 2


class EgdServer(socketserver.ThreadingUnixStreamServer):
    """At ``path``; ``given`` is all that it gave, to whomever."""

    def __init__(self, path: Path) -> None:
        self.given = bytearray()
        self.lock = threading.Lock()
        super().__init__(str(path), _Client)


class _Client(socketserver.StreamRequestHandler):
    server: EgdServer

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # it went without waiting for its answer
            while len(request := self.rfile.read(2)) == 2:
                command, count = request
                if command not in (GET_AVAILABLE, GET_WAITING):
                    return
                data = os.urandom(count)
                with self.server.lock:
                    self.server.given += data
                self.wfile.write(data if command == GET_WAITING else bytes([count]) + data)


@contextlib.contextmanager
def served(folder: Path, *names: str) -> Iterator[dict[str, EgdServer]]:
    """One at ``folder``/NAME.egd for each name, by name; their clients have to be gone at the end."""
    with contextlib.ExitStack() as stack:
        servers = {}
        for name in names:
            server = servers[name] = stack.enter_context(EgdServer(folder / f"{name}.egd"))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        yield servers
