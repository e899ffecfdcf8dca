# SPDX-License-Identifier: Apache-2.0
"""The control socket: one line of JSON asks, one line of JSON answers, and the connection is closed.

The only request is {"command": "status"}; nothing can be changed here. Whoever may connect (0660, root and
group netrng) costs bounded memory and time: an answer is given again for ten times as long as it took to
make, half a second at most, and all answers together leave at a bounded rate.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
import time
from collections.abc import Callable
from types import TracebackType

from netrng_hostd.channels.listen import GROUP, listen_unix, unlink
from netrng_hostd.operate.status import DaemonStatus, to_json

log = logging.getLogger("netrng.control")

MAX_REQUEST = 1024  # bytes of a request's line
MAX_ANSWER = 16 << 20  # bytes; 4,096 domains take about 3 MB
MAX_CLIENTS = 16
TIMEOUT_S = 5.0  # for a request to come, and for an answer to be taken
# 4,096 domains take 60 ms, in which nobody is served. So all who ask cost the loop a tenth of its time or so,
# and where an answer is cheap it is as good as new.
REST = 10
MAX_AGE_S = 0.5
RATE = 16 << 20  # bytes per second of all answers together: handing them to the kernel takes time too


class NoDaemon(Exception):
    """Nobody answers at the control socket; the text says why and what to do."""


class ControlServer:
    """``async with ControlServer(path, snapshot):`` answers. The caller holds the daemon's lock.

    ``snapshot`` is called in the event loop; ``clock`` tells monotonic seconds. Raises OSError when the
    socket cannot be made.
    """

    def __init__(
        self,
        path: str,
        snapshot: Callable[[], DaemonStatus],
        *,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._snapshot = snapshot
        self._timeout_s = timeout_s
        self._clock = clock
        self._told = b""
        self._told_until_s = -math.inf
        self._free_s = -math.inf
        self._server: asyncio.AbstractServer | None = None
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._closing = False

    async def __aenter__(self) -> ControlServer:
        sock = listen_unix(self._path, MAX_CLIENTS)
        self._server = await asyncio.start_unix_server(self._accepted, sock=sock, limit=MAX_REQUEST)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        if self._server is not None:
            self._server.close()
            for client, writer in self._clients.items():
                client.cancel()
                writer.transport.abort()  # a task that has not begun yet cleans nothing up
            await asyncio.gather(*self._clients, return_exceptions=True)
            await self._server.wait_closed()
        unlink(self._path)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing or len(self._clients) >= MAX_CLIENTS:
            writer.transport.abort()
            return
        client = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="control")
        self._clients[client] = writer
        client.add_done_callback(self._clients.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.wait_for(self._answer(reader, writer), self._timeout_s)
        except (asyncio.TimeoutError, OSError):
            pass  # one that neither asks nor listens is no event worth a line
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
        except ValueError:  # longer than MAX_REQUEST
            line = b""
        # With a high-water mark of 0, drain() returns when all of the answer is in the kernel.
        writer.transport.set_write_buffer_limits(high=0)
        await asyncio.sleep(self._turn(len(self._told)))  # about as long as this one will be
        writer.write(self._reply(line))
        await writer.drain()

    def _reply(self, line: bytes) -> bytes:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if request == {"command": "status"}:
            return self._status()
        return _line(json.dumps({"error": 'not understood; allowed: {"command": "status"}'}))

    def _turn(self, n_bytes: int) -> float:
        """In how many seconds an answer of so many bytes may leave."""
        now_s = self._clock()
        turn_s = max(now_s, self._free_s)
        self._free_s = turn_s + n_bytes / RATE
        return turn_s - now_s

    def _status(self) -> bytes:
        begun_s = self._clock()
        if begun_s >= self._told_until_s:
            self._told = _line(to_json(self._snapshot()))
            ended_s = self._clock()
            self._told_until_s = ended_s + min(REST * (ended_s - begun_s), MAX_AGE_S)
        return self._told


def _line(text: str) -> bytes:
    return text.encode("ascii") + b"\n"


def ask(path: str, command: str = "status", timeout_s: float = TIMEOUT_S) -> str:
    """The answer's line, from the daemon at ``path``. Raises NoDaemon."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(timeout_s)
            sock.connect(path)
            sock.sendall(json.dumps({"command": command}).encode("ascii") + b"\n")
            answer = _read_line(sock)
    except OSError as error:
        raise NoDaemon(f"no daemon answers: {_reason(error, path)}") from None
    if not answer.endswith(b"\n"):
        raise NoDaemon(f"no daemon answers: {path} closed the connection in mid-answer; try again")
    return answer.decode("utf-8", "replace")


def _reason(error: OSError, path: str) -> str:
    start = "start it: systemctl start netrng-hostd"
    if isinstance(error, FileNotFoundError):
        return f"no socket at {path}; {start}"
    if isinstance(error, ConnectionRefusedError):
        return f"nobody listens on {path}; {start}"
    if isinstance(error, PermissionError):
        return f"permission denied: {path}; run as root, or join the group {GROUP}"
    if isinstance(error, socket.timeout):
        return f"{path} took the question and stays silent; look at its log: journalctl -u netrng-hostd"
    return f"{path}: {error.strerror or error}"


def _read_line(sock: socket.socket) -> bytes:
    answer = bytearray()
    while not answer.endswith(b"\n") and len(answer) < MAX_ANSWER:
        piece = sock.recv(65536)
        if not piece:
            break
        answer += piece
    return bytes(answer)
