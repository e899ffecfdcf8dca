# SPDX-License-Identifier: Apache-2.0
"""Protocol ends in the place of VMs: `python -m bench.ends`, one process for all of them.

Listens on one UNIX socket for each end, as their QEMUs would, and counts what arrives; the bytes themselves
are dropped at once.  Told what to do by lines of JSON on standard input, each answered by one on standard
output; ends with its input.  See fleet.py for the other half.

Kinds of ends: `greedy` keeps a window granted. `modest` asks for `rate` bytes per second. `vanishing` is
greedy and hangs up every `after_s` seconds. The hostile ones: `rubbish`, `grants` and `knocks` flood the
host with those, as fast as it takes them; `deaf` asks for all it may and never reads; `restless` hangs up
whenever it was given something.
"""

from __future__ import annotations

import heapq
import json
import os
import select
import socket
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netrng_guest import wire
from netrng_hostd.core.bucket import NS_PER_S

WINDOW = 4096
PIECE = 64  # bytes that a modest end asks for at once
QUIET_S = 0.015  # nothing has arrived for so long: nothing is on its way
QUIET_DEADLINE_NS = 1_000_000_000
FLOOD_SIZE = 16384


class End:
    """A greedy one.  ``taken`` counts bytes, of all sessions."""

    def __init__(self, path: Path, group: dict[str, Any], ends: Ends) -> None:
        self._ends = ends
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.listener.bind(str(path))
        self.listener.listen(4)
        self.conn: socket.socket | None = None
        self.open = False
        self.asking = not group["waits"]
        self.taken = 0
        self.sessions = 0
        self.times_ns = array("q")
        self.sizes = array("l")
        self.recorded = bool(group["recorded"])
        self.session = b""
        self.end = 0  # the session's offset up to which all has arrived
        self._nonces = 0
        self._decoder = wire.Decoder(from_host=True, max_payload=wire.GUEST_MAX_PAYLOAD)

    def accept(self, events: int, now_ns: int) -> None:
        if self.conn is not None:
            self.hang_up()
        self.conn, _ = self.listener.accept()
        self.conn.setblocking(False)
        self._decoder = wire.Decoder(from_host=True, max_payload=wire.GUEST_MAX_PAYLOAD)
        self._ends.watch(self.conn, self.handle)

    def handle(self, events: int, now_ns: int) -> None:
        assert self.conn is not None
        try:
            data = self.conn.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._receive(data, now_ns)
        else:
            self.hang_up()

    def hang_up(self) -> None:
        if self.conn is not None:
            self._ends.unwatch(self.conn)
            self.conn.close()
            self.conn = None
        self.open = False

    def begin(self) -> None:
        """From now on it asks."""
        self.asking = True
        if self.open:
            self.grant()

    def grant(self) -> None:
        if self.asking:
            self.send(wire.Grant(self.session, self.wanted(), self.end, 0))

    def wanted(self) -> int:
        """The offset that is granted."""
        return self.end + WINDOW

    def send(self, frame: wire.Control) -> None:
        if self.conn is None:
            return
        try:
            self.conn.send(wire.encode(frame))
        except BlockingIOError:
            pass  # the host reads slowly: grants are absolute, and the next one says it all
        except OSError:
            self.hang_up()

    def opened(self, now_ns: int) -> None:
        """The host has accepted."""
        self.grant()

    def arrived(self, now_ns: int) -> None:
        """Bytes have come."""
        self.grant()

    def _receive(self, data: bytes, now_ns: int) -> None:
        size = 0
        for frame in self._decoder.feed(data):
            if isinstance(frame, wire.Sample):
                if frame.session == self.session:
                    size += len(frame.data)
                    self.end = frame.offset + len(frame.data)
            elif isinstance(frame, wire.Probe):
                self._nonces += 1
                self.session, self.end, self.open = frame.session, 0, False
                nonce = self._nonces.to_bytes(wire.NONCE_SIZE, "big")
                self.send(wire.Open(frame.session, nonce, *wire.VERSIONS))
            elif isinstance(frame, wire.Accept) and frame.session == self.session:
                self.sessions += not self.open
                self.open = True
                self.opened(now_ns)
        if size:
            self.taken += size
            if self.recorded:
                self.times_ns.append(now_ns)
                self.sizes.append(size)
            self.arrived(now_ns)


class Modest(End):
    """Asks for ``rate`` bytes per second, a piece at a time, and saves up nothing beyond a window."""

    def __init__(self, path: Path, group: dict[str, Any], ends: Ends) -> None:
        super().__init__(path, group, ends)
        self._gap_ns = PIECE * NS_PER_S // group["rate"]
        self._granted = 0

    def opened(self, now_ns: int) -> None:
        self._granted = PIECE
        self.grant()
        self._ends.call_at(now_ns + self._gap_ns, self._earn, self.session)

    def wanted(self) -> int:
        return self._granted

    def _earn(self, now_ns: int, session: bytes) -> None:
        if self.open and self.session == session:
            self._granted = min(self._granted + PIECE, self.end + WINDOW)
            self.grant()
            self._ends.call_at(now_ns + self._gap_ns, self._earn, session)


class Vanishing(End):
    """Greedy, and hangs up after ``after_s`` seconds of each session."""

    def __init__(self, path: Path, group: dict[str, Any], ends: Ends) -> None:
        super().__init__(path, group, ends)
        self._after_ns = int(group["after_s"] * NS_PER_S)

    def opened(self, now_ns: int) -> None:
        self.grant()
        self._ends.call_at(now_ns + self._after_ns, self._vanish, self.session)

    def _vanish(self, now_ns: int, session: bytes) -> None:
        if self.session == session:
            self.hang_up()


class Restless(End):
    """Hangs up with the first bytes of each session, and most of a window on its way."""

    def arrived(self, now_ns: int) -> None:
        self.hang_up()


class Deaf(End):
    """Asks for the most there is, and never reads."""

    def opened(self, now_ns: int) -> None:
        self.grant()
        if self.conn is not None:
            self._ends.unwatch(self.conn)

    def wanted(self) -> int:
        return wire.MAX_WINDOW


class Flooding(End):
    """Greedy, and sends ``kind`` as fast as the host takes it."""

    def __init__(self, path: Path, group: dict[str, Any], ends: Ends) -> None:
        super().__init__(path, group, ends)
        self._kind = group["kind"]
        self._flood = b""
        self._rest = memoryview(b"")  # of what is being sent: half a frame would spoil the next

    def accept(self, events: int, now_ns: int) -> None:
        self._rest = memoryview(b"")
        super().accept(events, now_ns)

    def send(self, frame: wire.Control) -> None:
        """In turn with the flood, never in the midst of one of its frames."""
        self._rest = memoryview(bytes(self._rest) + wire.encode(frame))
        self._write()

    def opened(self, now_ns: int) -> None:
        self.grant()
        if self._kind == "rubbish":
            self._flood = os.urandom(FLOOD_SIZE)
        elif self._kind == "knocks":
            self._flood = wire.encode(wire.Knock(b"another!")) * (FLOOD_SIZE // 32)
        if self.conn is not None:
            self._ends.watch(self.conn, self.handle, select.EPOLLIN | select.EPOLLOUT)

    def handle(self, events: int, now_ns: int) -> None:
        if events & select.EPOLLOUT:
            if not self._rest:
                if self._kind == "grants":
                    grant = wire.Grant(self.session, self.wanted(), self.end, 0)
                    self._flood = wire.encode(grant) * (FLOOD_SIZE // 48)
                self._rest = memoryview(self._flood)
            self._write()
        if events & ~select.EPOLLOUT and self.conn is not None:
            super().handle(events, now_ns)

    def _write(self) -> None:
        if self.conn is None or not self._rest:
            return
        try:
            self._rest = self._rest[self.conn.send(self._rest) :]
        except BlockingIOError:
            pass
        except OSError:
            self.hang_up()


KINDS: dict[str, type[End]] = {
    "greedy": End, "modest": Modest, "vanishing": Vanishing, "restless": Restless, "deaf": Deaf,
    "rubbish": Flooding, "grants": Flooding, "knocks": Flooding,
}  # fmt: skip


class Ends:
    """All of them, one epoll and their timers."""

    def __init__(self, folder: Path, groups: list[dict[str, Any]]) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int, int], None]] = {}
        self._timers: list[tuple[int, int, Callable[[int, bytes], None], bytes]] = []
        self._timers_made = 0
        self._commands = b""
        self._told = False  # standard input has something to say
        self._done = False
        self.ends: dict[str, End] = {}
        for group in groups:
            for name in group["names"]:
                end = KINDS[group["kind"]](folder / f"{name}.sock", group, self)
                self.ends[name] = end
                self.watch(end.listener, end.accept)
        self._epoll.register(0, select.EPOLLIN)

    def watch(
        self, sock: socket.socket, handler: Callable[[int, int], None], events: int = select.EPOLLIN
    ) -> None:
        known = sock.fileno() in self._handlers
        self._handlers[sock.fileno()] = handler
        (self._epoll.modify if known else self._epoll.register)(sock.fileno(), events)

    def unwatch(self, sock: socket.socket) -> None:
        if self._handlers.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def call_at(self, time_ns: int, callback: Callable[[int, bytes], None], session: bytes) -> None:
        self._timers_made += 1
        heapq.heappush(self._timers, (time_ns, self._timers_made, callback, session))

    def run(self) -> None:
        """Until standard input ends."""
        while not self._done:
            timeout_s = None
            if self._timers:
                timeout_s = max(0, self._timers[0][0] - time.monotonic_ns()) / NS_PER_S
            self._turn(timeout_s)
            if self._told:  # not in the midst of a turn: a mark takes turns of its own
                self._told = False
                self._obey()

    def close(self) -> None:
        for end in self.ends.values():
            end.hang_up()
            end.listener.close()
        self._epoll.close()

    def _turn(self, timeout_s: float | None) -> bool:
        """Waits and handles; whether anything came that carries bytes."""
        came = False
        for fd, events in self._epoll.poll(timeout_s):
            if fd == 0:
                self._told = True
                continue
            handler = self._handlers.get(fd)
            if handler is not None:
                came = came or bool(events & select.EPOLLIN)
                handler(events, time.monotonic_ns())
        now_ns = time.monotonic_ns()
        while self._timers and self._timers[0][0] <= now_ns:
            _, _, callback, session = heapq.heappop(self._timers)
            callback(now_ns, session)
        return came

    def _obey(self) -> None:
        data = os.read(0, 65536)
        if not data:
            self._done = True
            return
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            answer = getattr(self, "_" + command.pop("command"))(**command)
            print(json.dumps(answer, separators=(",", ":")), flush=True)

    def _begin(self, names: list[str]) -> int:
        for name in names:
            self.ends[name].begin()
        return len(names)

    def _progress(self, names: list[str]) -> dict[str, int]:
        """How many of them have a session, and have had a seed."""
        ends = [self.ends[name] for name in names]
        return {
            "open": sum(end.open for end in ends),
            "seeded": sum(end.taken >= wire.SEED_SIZE for end in ends),
        }

    def _mark(self) -> dict[str, Any]:
        """What each has, at an instant at which nothing is on its way, if there is one within a second."""
        deadline_ns = time.monotonic_ns() + QUIET_DEADLINE_NS
        quiet_ns = time.monotonic_ns()
        while (now_ns := time.monotonic_ns()) < deadline_ns and now_ns - quiet_ns < QUIET_S * NS_PER_S:
            if self._turn((quiet_ns - now_ns) / NS_PER_S + QUIET_S):
                quiet_ns = time.monotonic_ns()
        return {"ns": now_ns, "taken": {name: end.taken for name, end in self.ends.items()}}

    def _series(self, name: str) -> list[list[int]]:
        end = self.ends[name]
        return [end.times_ns.tolist(), end.sizes.tolist()]


def main() -> int:
    line = b""
    while not line.endswith(b"\n"):
        if not (piece := os.read(0, 65536)):
            return 0
        line += piece
    spec = json.loads(line)
    ends = Ends(Path(spec["folder"]), spec["groups"])
    print(json.dumps({"listening": len(ends.ends)}), flush=True)
    ends.run()
    ends.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
