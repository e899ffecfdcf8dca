# SPDX-License-Identifier: Apache-2.0
"""One domain's channel: connect, shake hands, carry samples, start over when it breaks.

States, as in `status`; of a virtio-rng, which has no agent, the first two and "open":

connecting    not tried yet
unreachable   the last attempt to connect failed; tried again with back-off
waiting       connected, and no agent has answered yet
open          a session is open; of a virtio-rng: connected
violated      the guest broke the protocol; a new session is offered after a while
incompatible  the agent speaks no version of the protocol that this daemon speaks
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from netrng_guest import wire
from netrng_hostd.channels import session as protocol
from netrng_hostd.channels.budget import InboundBudget, LogBudget
from netrng_hostd.channels.connect import ChannelUnavailable, is_hypervisor, listener_of
from netrng_hostd.channels.conversation import Conversation, Session
from netrng_hostd.core.mistake import where_raised

log = logging.getLogger("netrng.channel")

HANDSHAKE_NS = 10_000_000_000
FIRST_RETRY_S = 0.2
LAST_RETRY_S = 10.0
_STATE_OF_SESSION = {
    protocol.PROBING: "waiting",
    protocol.OPEN: "open",
    protocol.VIOLATED: "violated",
    protocol.INCOMPATIBLE: "incompatible",
}


class Recipient(Protocol):
    """Who is told what happens on a channel; called in the event loop."""

    def wants_changed(self, channel: Channel) -> None: ...
    def acked(self, channel: Channel, n_bytes: int) -> None: ...
    def lost(self, channel: Channel, n_bytes: int) -> None: ...


class Channel:
    """``connect`` returns a connected, non-blocking socket or raises ChannelUnavailable.

    ``parked``: how many bytes may lie in the channel from before anybody connected.
    """

    def __init__(
        self,
        name: str,
        where: str,
        connect: Callable[[], Awaitable[socket.socket]],
        session: Session,
        recipient: Recipient,
        parked: int = 0,
    ) -> None:
        self.name = name
        self.where = where
        self._connect = connect
        self.session = session
        self._recipient = recipient
        self._talk: Conversation | None = None
        self._talk_ended = asyncio.Event()
        self._wake = asyncio.Event()
        self._retry_s = FIRST_RETRY_S
        now_ns = time.monotonic_ns()
        self._budget = InboundBudget(now_ns, parked)
        self._log_budget = LogBudget(now_ns)
        self._paused = False
        self._listener = ""
        self.leaving = ""  # why this channel ends for good, for the agent: one of wire.CLOSE_REASONS
        self.state = "connecting"
        self.detail = ""
        self.since_ns = now_ns

    @property
    def acknowledges(self) -> bool:
        """Whether the other end tells what it took."""
        return self.session.acknowledges

    @property
    def sent(self) -> int:
        """Bytes of the present session."""
        return self.session.sent

    @property
    def in_flight(self) -> int:
        """Bytes of the present session that are neither acknowledged nor lost."""
        return self.session.in_flight

    @property
    def agent(self) -> wire.StatusDict | None:
        """What the agent says of itself."""
        return self.session.agent

    @property
    def last_heard_ns(self) -> int | None:
        """When the other end said something, in the session that is open."""
        return self.session.last_heard_ns if self.state == "open" else None

    @property
    def wanted(self) -> tuple[int, int]:
        """(seed, body): bytes that may be sent now, below and beyond the session's 64th."""
        return (0, 0) if self._talk is None else self._talk.wanted

    def send_sample(self, data: bytearray) -> None:
        """Sends ``data`` as the session's next bytes and overwrites it; call it only for what is wanted."""
        assert self._talk is not None, "nothing is wanted"
        self._talk.send_sample(data)

    def destroy_unsent(self) -> None:
        """The source has failed: what the kernel has not taken yet of a sample is not sent any more."""
        if self._talk is not None:
            self._talk.destroy_unsent()

    def renew(self) -> None:
        """Forces a new session: the domain was resumed, restored or reverted.

        Nothing to do for a virtio-rng: QEMU asks anew by itself, and what lies in its socket was never in the
        domain's memory.
        """
        if self._talk is not None and self.acknowledges:
            now_ns = time.monotonic_ns()
            self._handle(self.session.renew(now_ns), now_ns)

    def retry_now(self) -> None:
        """Something about the domain changed: try to connect without waiting any longer."""
        self._retry_s = FIRST_RETRY_S
        self._wake.set()

    def tick(self, now_ns: int) -> None:
        """Keep-alives and delayed answers; called about twice a second."""
        if self._talk is None:
            return
        self._talk.tick(now_ns)
        if self.state == "waiting" and not self.detail and now_ns - self.since_ns > HANDSHAKE_NS:
            self.detail = (
                "no agent has answered: netrng-guest is not running in the domain, or another program holds "
                f"the channel: find out with: ss -xp | grep {self.where}"
            )
            self._log(logging.INFO, "waiting: %s", self.detail)

    async def run(self) -> None:
        """Connects and serves until cancelled."""
        try:
            while True:
                try:
                    await self._connect_and_serve()
                except Exception as error:  # a mistake of ours must not leave the domain unserved
                    self._hang_up()
                    self._set_state("unreachable", where_raised(error))
                await self._back_off()
        finally:
            self._hang_up()

    async def _connect_and_serve(self) -> None:
        try:
            sock = await self._connect()
        except ChannelUnavailable as error:
            self._set_state("unreachable", str(error))
            return
        self._talk_ended.clear()
        self._talk = Conversation(
            sock,
            self.session,
            self._budget,
            heard=self._handle,
            drained=lambda: self._recipient.wants_changed(self),
            flooded=self._flooded,
            closed=self._ended,
        )
        listener = listener_of(sock)
        if listener and not is_hypervisor(listener) and listener != self._listener:
            self._log(logging.WARNING, "it is no QEMU that listens on %s, but %s", self.where, listener)
        self._listener = listener
        now_ns = time.monotonic_ns()
        self._handle(self.session.renew(now_ns), now_ns)
        if self._talk is not None:
            self._talk.start()
        await self._talk_ended.wait()

    async def _back_off(self) -> None:
        # Not asyncio.wait_for(): up to Python 3.11 it loses a cancellation that comes with the event.
        self._wake.clear()
        timer = asyncio.get_running_loop().call_later(self._retry_s, self._wake.set)
        self._retry_s = min(LAST_RETRY_S, self._retry_s * 2)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    def _flooded(self) -> None:
        if not self._paused:
            self._paused = True
            self._log(logging.WARNING, "the guest sends more than it may: read more slowly from now on")

    def _handle(self, events: list[protocol.Event], now_ns: int) -> None:
        for event in events:
            if isinstance(event, protocol.Acked):
                self._recipient.acked(self, event.n)
            elif isinstance(event, protocol.Lost):
                self._recipient.lost(self, event.n)
            elif isinstance(event, protocol.Opened):
                self._retry_s = FIRST_RETRY_S
            elif isinstance(event, protocol.Ended):
                self._recipient.lost(self, event.lost)
                text = "session ended: %s; %d bytes in flight lost"
                self._log(logging.INFO, text, event.reason, event.lost)
            elif isinstance(event, protocol.Violation):
                self._log(logging.WARNING, "protocol violation: %s", event.text)
            elif isinstance(event, protocol.Broken) and self._talk is not None:
                self._talk.close(f"protocol violation: {event.text}")
        if self._talk is not None:
            self._talk.speak()
        if self._talk is not None and self.session.state != protocol.CLOSED:
            self._set_state(_STATE_OF_SESSION[self.session.state], keep_detail=True)
        # A control frame that waits stops the samples as well, though the session has nothing to tell.
        if events or (self._talk is not None and not self._talk.link.idle):
            self._recipient.wants_changed(self)

    def _ended(self, reason: str) -> None:
        self._talk = None
        now_ns = time.monotonic_ns()
        self._handle(self.session.close(reason, now_ns), now_ns)
        if not self.leaving:
            self._set_state("unreachable", reason)
        self._recipient.wants_changed(self)
        self._talk_ended.set()

    def _hang_up(self) -> None:
        now_ns = time.monotonic_ns()
        if self._talk is not None:
            self._handle(self.session.close(self.leaving or "other", now_ns), now_ns)
        if self._talk is not None:
            self._talk.close("hung up")

    def _set_state(self, state: str, detail: str = "", keep_detail: bool = False) -> None:
        changed = state != self.state
        if not changed and (keep_detail or detail == self.detail):
            return
        self.state, self.detail = state, detail
        if changed:
            self.since_ns = time.monotonic_ns()
        self._log(logging.INFO, "%s%s", state, f": {detail}" if detail else "")

    def _log(self, level: int, text: str, *args: object) -> None:
        self._log_budget.tell(log, time.monotonic_ns(), level, self.name, text, *args)
