# SPDX-License-Identifier: Apache-2.0
"""Which domains run at one URI: from events, and from listings that do not depend on them.

An event says only "look again": events are lost with the connection and come in surprising orders (a Xen
reboot emits STARTED of the new id before STOPPED of the old).  So every event leads to a new listing, and a
domain is gone when the listing says so.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from concurrent.futures import Future
from typing import Callable, TypeVar

from netrng_hostd.discovery.inbox import Debounce, Inbox
from netrng_hostd.discovery.state import Timing, UriState
from netrng_hostd.hypervisor.connection import Connection
from netrng_hostd.hypervisor.domain_xml import DEFAULT_CHANNEL_NAME, DomainXmlError, LiveDomain, parse_live
from netrng_hostd.hypervisor.errors import HypervisorError, NoDomainError, UnreachableError
from netrng_hostd.hypervisor.worker import Worker

__all__ = ["Timing", "UriState", "Watcher"]

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Watcher:
    """Reports the running domains of one URI; the callbacks run on the asyncio loop.

    ``appeared``, ``changed(old, new)`` (same domain, same id), ``vanished``; ``renewed``: the domain went on,
    with the same id, from a saved or rebooted state: a new session is due.  A domain with a new id is
    vanished(old) and then appeared(new).  Domains without a channel are reported too (``channel`` None).
    """

    def __init__(
        self,
        uri: str,
        transport: str = "socket",
        channel_name: str = DEFAULT_CHANNEL_NAME,
        *,
        appeared: Callable[[LiveDomain], None],
        changed: Callable[[LiveDomain, LiveDomain], None],
        vanished: Callable[[LiveDomain], None],
        renewed: Callable[[LiveDomain], None],
        state_changed: Callable[[UriState], None],
        timing: Timing = Timing(),  # noqa: B008 - immutable
    ) -> None:
        self.uri = uri
        self.domains: dict[str, LiveDomain] = {}
        self.state = UriState(uri, "connecting", "", time.monotonic_ns())
        self._read_only = transport != "stream"
        self._channel_name = channel_name
        self._appeared, self._changed, self._vanished = appeared, changed, vanished
        self._renewed, self._state_changed = renewed, state_changed
        self._timing = timing
        self._worker: Worker | None = None
        self._connection: Connection | None = None
        self._unreadable: dict[str, int] = {}
        self._opened_s: dict[str, float] = {}

    async def run(self) -> None:
        """Watch until cancelled.  Trouble with libvirt is a state, never an exception."""
        self._worker = worker = Worker(f"libvirt {self.uri}")
        self._state_changed(self.state)
        backoff_s = self._timing.backoff_s
        loop = asyncio.get_running_loop()
        try:
            while True:
                began = loop.time()
                try:
                    await self._watch(worker)
                except HypervisorError as error:
                    self._enter("down", str(error))
                if loop.time() - began >= self._timing.steady_s:
                    backoff_s = self._timing.backoff_s
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, self._timing.max_backoff_s)
        finally:
            self._worker = None
            worker.stop()
            if not await worker.ended(self._timing.stop_s):
                _log.warning("%s: a call to libvirt hangs; its thread is left behind", self.uri)

    async def open_stream(self, domain: LiveDomain) -> socket.socket:
        """A non-blocking socket that libvirt connects to the domain's channel; the caller closes it.

        It sees the end of the stream, of the domain or of libvirtd as end of file.  Raises HypervisorError.
        """
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._opened_s.get(domain.uuid, -math.inf) + self._timing.reopen_s - loop.time())
        worker, connection = self._worker, self._connection
        if worker is None or connection is None:
            raise UnreachableError(f"{self.uri}: not connected: {self.state.detail or self.state.state}")
        self._opened_s[domain.uuid] = loop.time()
        opening = worker.submit(lambda: connection.open_channel(domain.uuid, self._channel_name))
        try:
            return await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_result)
            raise

    async def _watch(self, worker: Worker) -> None:
        """One connection's lifetime; always ends in an exception."""
        loop = asyncio.get_running_loop()
        inbox = Inbox(loop, self._renew)
        debounce = Debounce(self._timing.debounce_s, self._timing.max_debounce_s)
        connection = Connection(
            self.uri,
            read_only=self._read_only,
            on_event=inbox.event,
            on_close=inbox.closed,
            later=worker.submit,
        )
        try:
            await self._answer(worker.submit(connection.open))
            self._connection = connection
            dirty: set[str] | None = None
            next_full = 0.0
            while True:
                if dirty is None:
                    next_full = loop.time() + self._timing.relist_s
                await self._relist(worker, connection, inbox, dirty)
                debounce.listed(loop.time())
                self._enter("connected", "")
                if await inbox.wait(next_full - loop.time()):
                    await inbox.pause(debounce.pause_s(loop.time()), self._timing.debounce_s)
                dirty = inbox.take()
                if loop.time() >= next_full:
                    dirty = None  # whether events came or not: they do not put it off
                if inbox.lost is not None:
                    raise UnreachableError(f"{self.uri}: the connection was lost: {inbox.lost}")
        finally:
            self._connection = None
            inbox.shut()
            worker.submit(connection.close)

    async def _answer(self, future: Future[T]) -> T:
        """Await a call; a hung one is shown as down, and waited for: a thread cannot be interrupted."""
        waiting = asyncio.wrap_future(future)
        try:
            done, _ = await asyncio.wait([waiting], timeout=self._timing.answer_s)
            if not done:
                self._enter(
                    "down",
                    f"{self.uri}: libvirtd took the connection and does not answer; "
                    "look at its log, or restart it",
                )
            return await waiting
        finally:
            waiting.cancel()

    async def _relist(
        self, worker: Worker, connection: Connection, inbox: Inbox, dirty: set[str] | None
    ) -> None:
        """List, and read the XML of those that are new, or dirty (None: all)."""
        listed = dict(await self._answer(worker.submit(connection.active)))
        for uuid, old in list(self.domains.items()):
            if listed.get(uuid) != old.id:
                del self.domains[uuid]
                self._vanished(old)
        self._unreadable = {uuid: number for uuid, number in self._unreadable.items() if uuid in listed}
        self._opened_s = {uuid: when for uuid, when in self._opened_s.items() if uuid in listed}
        due = (uuid for uuid in listed if dirty is None or uuid not in self.domains or uuid in dirty)
        for uuid in inbox.order(due):
            if uuid in listed:  # or it has just come, and its event is followed by another listing
                new = await self._read(worker, connection, uuid, listed[uuid])
                if new is not None:
                    self._report(new)

    async def _read(
        self, worker: Worker, connection: Connection, uuid: str, number: int
    ) -> LiveDomain | None:
        def read() -> LiveDomain | None:
            return parse_live(connection.live_xml(uuid), self.uri, self._channel_name)

        try:
            return await self._answer(worker.submit(read))
        except NoDomainError:
            return None  # it ended in this moment: its STOPPED makes us look again
        except UnreachableError:
            raise
        except (DomainXmlError, HypervisorError) as error:  # of this domain: the others are none the worse
            if self._unreadable.get(uuid) != number:  # once, not at every listing
                self._unreadable[uuid] = number
                why = str(error).removeprefix(f"{self.uri}: ")
                _log.warning("%s: domain %s is left out: %s", self.uri, uuid, why)
            return None

    def _report(self, new: LiveDomain) -> None:
        old = self.domains.get(new.uuid)
        self.domains[new.uuid] = new
        if old is None:
            self._appeared(new)
        elif old.id != new.id:
            self._vanished(old)
            self._appeared(new)
        elif old != new:
            self._changed(old, new)

    def _renew(self, uuid: str, number: int) -> None:
        """At once, before any listing: until then the guest would be sent bytes of the old session."""
        domain = self.domains.get(uuid)
        if domain is not None and domain.id == number:
            self._renewed(domain)

    def _enter(self, state: str, detail: str) -> None:
        if (state, detail) == (self.state.state, self.state.detail):
            return
        same = state == self.state.state
        since_ns = self.state.since_ns if same else time.monotonic_ns()
        self.state = UriState(self.uri, state, detail, since_ns)
        self._state_changed(self.state)


def _close_result(opening: Future[socket.socket]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
