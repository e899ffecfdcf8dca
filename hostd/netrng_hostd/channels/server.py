# SPDX-License-Identifier: Apache-2.0
"""[[serve]]: a UNIX socket whose clients speak EGD.  To the dispatcher it is one channel of one domain.

So all its clients together have one quota.  A sample is for those who have waited longest, as far as it goes:
each is given what it has asked for, and then it is the others' turn.

States, as in `status`:

connecting    not tried yet
unreachable   the socket cannot be made; tried again with back-off
listening     it takes clients
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from netrng_guest import wire
from netrng_hostd.channels.budget import InboundBudget, LogBudget
from netrng_hostd.channels.connect import SEND_BUFFER, peer_of
from netrng_hostd.channels.conversation import Conversation
from netrng_hostd.channels.egd import EgdSession
from netrng_hostd.channels.listen import listen_unix, unlink
from netrng_hostd.channels.session import Broken, Event
from netrng_hostd.core.mistake import where_raised

log = logging.getLogger("netrng.serve")

MAX_CLIENTS = 64
BACKLOG = MAX_CLIENTS  # after a restart all come at once, and stunnel, whose connect() never waits, but once
# Each client has a budget of its own: in a common one those who flood would hold up those who do not.
INBOUND_SHARE = 8
ACCEPT_COST = 1024  # bytes of the server's budget: who connects again and again costs turns of the loop
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 30.0
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class EgdServer:
    """``available`` tells how many bytes there are to be had; ``wants_changed(server)`` when `wanted` may be
    another.
    """

    acknowledges = False
    agent: wire.StatusDict | None = None
    in_flight = 0

    def __init__(
        self,
        name: str,
        path: str,
        available: Callable[[], int],
        wants_changed: Callable[[EgdServer], None],
    ) -> None:
        self.name = name
        self.where = path
        self._available = available
        self._wants_changed = wants_changed
        now_ns = time.monotonic_ns()
        self._accepting = InboundBudget(now_ns)
        self._log_budget = LogBudget(now_ns)
        self._visits = LogBudget(now_ns)  # whoever comes and goes hides no warning
        self._listener: socket.socket | None = None
        self._inode: tuple[int, int] | None = None  # of the socket's file: another's is not ours to remove
        self._clients: dict[EgdSession, Conversation] = {}
        self._asking: dict[EgdSession, int] = {}  # what they may be sent now, in bytes; in turn
        self._asked = 0  # by all of them together
        self._accept_timer: asyncio.TimerHandle | None = None
        self._flooded = False
        self.leaving = ""
        self.state, self.detail, self.since_ns = "connecting", "", now_ns
        self.last_heard_ns: int | None = None
        self.sent = 0

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    @property
    def wanted(self) -> tuple[int, int]:
        """(0, body): bytes that the clients may be sent now, together.  EGD knows no seeds."""
        return 0, self._asked

    def send_sample(self, data: bytearray) -> None:
        """To the clients whose turn it is; overwrites ``data``."""
        self.sent += len(data)
        place = 0
        while place < len(data) and self._asking:
            session, n_bytes = next(iter(self._asking.items()))
            part = data[place : place + n_bytes]
            place += len(part)
            self._asked -= self._asking.pop(session)
            self._clients[session].send_sample(part)
            self._line_up(session)
        data[:] = bytes(len(data))

    def destroy_unsent(self) -> None:
        """The source has failed: what the kernel has not taken yet of a sample is not sent any more."""
        for talk in list(self._clients.values()):
            talk.destroy_unsent()

    def tick(self, now_ns: int) -> None:
        """Delayed answers; called about twice a second."""
        for talk in list(self._clients.values()):
            talk.tick(now_ns)

    async def run(self) -> None:
        """Listens until cancelled."""
        retry_s = FIRST_RETRY_S
        try:
            while True:
                try:
                    self._listener = listen_unix(self.where, BACKLOG)
                    break
                except OSError as error:
                    self._set_state("unreachable", self._why_not(error))
                except Exception as error:  # a mistake of ours must not end it
                    self._set_state("unreachable", where_raised(error))
                await asyncio.sleep(retry_s)
                retry_s = min(LAST_RETRY_S, 2 * retry_s)
            self._inode = _identity(self.where)
            self._accept_on()
            self._set_state("listening")
            await asyncio.get_running_loop().create_future()
        finally:
            self._shut()

    def _why_not(self, error: OSError) -> str:
        if error.errno == errno.EADDRINUSE:
            return f"another program listens on {self.where}: find out which: ss -xlp | grep {self.where}"
        if isinstance(error, PermissionError):
            return f"permission denied: {self.where}: choose a folder that netrng-hostd may write to"
        if isinstance(error, FileNotFoundError):
            return f"there is no folder for {self.where}: make it, or set path"
        return f"cannot listen on {self.where}: {error.strerror or error}"

    def _shut(self) -> None:
        if self._accept_timer is not None:
            self._accept_timer.cancel()
            self._accept_timer = None
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            if _identity(self.where) == self._inode:
                unlink(self.where)
        for talk in list(self._clients.values()):
            talk.close("the daemon ends it")

    def _accept_on(self) -> None:
        self._accept_timer = None
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept_off(self, pause_s: float) -> None:
        loop = asyncio.get_running_loop()
        assert self._listener is not None
        loop.remove_reader(self._listener)
        self._accept_timer = loop.call_later(pause_s, self._accept_on)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:  # it would be ready again at once
                self._log(logging.WARNING, "no client can be taken: %s; raise LimitNOFILE", error.strerror)
                self._accept_off(1.0)
            return
        pause_ns = self._accepting.spend(ACCEPT_COST, time.monotonic_ns())
        if len(self._clients) >= MAX_CLIENTS:
            sock.close()
            self._log(logging.WARNING, "a client was sent away: %d are connected", MAX_CLIENTS)
        else:
            self._welcome(sock)
        if pause_ns:
            self._accept_off(pause_ns / 1e9)

    def _welcome(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        session = EgdSession(self._available, os.getpid())
        who = peer_of(sock) or "a client"
        self._log_visit("%s has connected", who)

        def heard(events: list[Event], now_ns: int) -> None:
            self._heard(session, events, now_ns)

        def closed(reason: str) -> None:
            self._clients.pop(session)
            self._place(session)
            session.close(reason, time.monotonic_ns())
            self._log_visit("%s has gone: %s", who, reason)

        talk = Conversation(
            sock,
            session,
            InboundBudget(time.monotonic_ns(), share=INBOUND_SHARE),
            heard=heard,
            drained=lambda: self._place(session),
            flooded=self._flood,
            closed=closed,
        )
        self._clients[session] = talk
        session.renew(time.monotonic_ns())
        talk.start()

    def _heard(self, session: EgdSession, events: list[Event], now_ns: int) -> None:
        self.last_heard_ns = session.last_heard_ns or self.last_heard_ns
        for event in events:
            if isinstance(event, Broken):
                self._log(logging.WARNING, "protocol violation: %s", event.text)
                self._clients[session].close("protocol violation")
                return
        self._clients[session].speak()
        self._place(session)

    def _place(self, session: EgdSession) -> None:
        """In the line of those who ask, or out of it; tells the dispatcher."""
        self._line_up(session)
        self._wants_changed(self)

    def _line_up(self, session: EgdSession) -> None:
        talk = self._clients.get(session)
        n_bytes = 0 if talk is None else talk.wanted[1]
        before = self._asking.get(session, 0)
        if n_bytes:
            self._asking[session] = n_bytes  # where it is in the line already
        elif before:
            del self._asking[session]
        self._asked += n_bytes - before

    def _flood(self) -> None:
        if not self._flooded:
            self._flooded = True
            self._log(logging.WARNING, "its clients send more than they may: read more slowly from now on")

    def _set_state(self, state: str, detail: str = "") -> None:
        if (state, detail) == (self.state, self.detail):
            return
        if state != self.state:
            self.since_ns = time.monotonic_ns()
        self.state, self.detail = state, detail
        level = logging.WARNING if detail else logging.INFO
        self._log(level, "%s%s", state, f": {detail}" if detail else f" on {self.where}")

    def _log_visit(self, text: str, *args: object) -> None:
        self._visits.tell(log, time.monotonic_ns(), logging.INFO, self.name, text, *args)

    def _log(self, level: int, text: str, *args: object) -> None:
        self._log_budget.tell(log, time.monotonic_ns(), level, self.name, text, *args)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
