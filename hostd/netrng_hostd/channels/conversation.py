# SPDX-License-Identifier: Apache-2.0
"""What is said on one connected socket, from its first byte to its end; by either kind of session."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Protocol

from netrng_guest import wire
from netrng_hostd.channels.budget import InboundBudget
from netrng_hostd.channels.link import Link
from netrng_hostd.channels.session import OPEN, Event


class Session(Protocol):
    """HostSession, an agent's; or EgdSession.

    ``acknowledges``: whether the other end tells what it took.  ``answers_due``: how many answers the last
    bytes received call for that take a turn of the loop each.
    """

    @property
    def acknowledges(self) -> bool: ...
    @property
    def state(self) -> str: ...
    @property
    def sent(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def wanted_seed(self) -> int: ...
    @property
    def wanted(self) -> int: ...
    @property
    def agent(self) -> wire.StatusDict | None: ...
    @property
    def last_heard_ns(self) -> int | None: ...
    @property
    def next_tick_ns(self) -> int | None: ...
    @property
    def answers_due(self) -> int: ...
    def renew(self, now_ns: int) -> list[Event]: ...
    def close(self, reason: str, now_ns: int) -> list[Event]: ...
    def sample(self, data: bytearray) -> bytearray: ...
    def take_output(self) -> bytes: ...
    def tick(self, now_ns: int) -> list[Event]: ...
    def receive(self, untrusted_data: wire.Buffer, now_ns: int) -> list[Event]: ...


class Conversation:
    """Takes the socket over; all callbacks come in the event loop.

    ``heard(events, now_ns)``: what the other end's bytes, or time, brought; ``drained()``: all that was said
    is with the kernel; ``flooded()``: it sends more than ``inbound`` admits, and is read more slowly;
    ``closed(reason)``: the end, once.
    """

    def __init__(
        self,
        sock: socket.socket,
        session: Session,
        inbound: InboundBudget,
        *,
        heard: Callable[[list[Event], int], None],
        drained: Callable[[], None],
        flooded: Callable[[], None],
        closed: Callable[[str], None],
    ) -> None:
        self.session = session
        self._inbound = inbound
        self._heard, self._told_drained = heard, drained
        self._flooded, self._told_closed = flooded, closed
        self._loop = asyncio.get_running_loop()
        self._resume_timer: asyncio.TimerHandle | None = None
        self._sample_waits = False  # for the kernel to take all of it
        self.link = Link(
            sock, self._loop, received=self._received, drained=self._drained, closed=self._closed
        )

    def start(self) -> None:
        """Listens to the other end from now on."""
        self.link.start()

    @property
    def wanted(self) -> tuple[int, int]:
        """(seed, body): bytes that may be sent now, below and beyond the session's 64th."""
        if not self.link.idle or self.session.state != OPEN:
            return 0, 0
        return self.session.wanted_seed, self.session.wanted

    def send_sample(self, data: bytearray) -> None:
        """Sends ``data`` as the session's next bytes and overwrites it; call it only for what is wanted."""
        frame = self.session.sample(data)
        self._inbound.sample_sent(len(data))
        if frame is not data:  # else the link overwrites it, once it is sent
            data[:] = bytes(len(data))
        self.link.send(frame)
        self._sample_waits = self.link.sending
        self.speak()

    def speak(self) -> None:
        """Says what the session has to say, as soon as all before it is with the kernel."""
        if self.link.idle:
            output = self.session.take_output()
            if output:
                self.link.send(bytearray(output))

    def tick(self, now_ns: int) -> None:
        """Keep-alives and delayed answers."""
        due_ns = self.session.next_tick_ns
        if due_ns is not None and due_ns <= now_ns:
            self._heard(self.session.tick(now_ns), now_ns)

    def destroy_unsent(self) -> None:
        """The source has failed: what the kernel has not taken yet of a sample is not sent any more.

        A frame that has begun cannot be taken back, so the connection ends, and with it the session.
        """
        if self._sample_waits:
            self.close("a health test's alarm destroyed what was not sent yet")

    def close(self, reason: str) -> None:
        """Ends it; what waits to be sent is overwritten."""
        self.link.close(reason)

    def _received(self, untrusted_data: bytes) -> None:
        now_ns = time.monotonic_ns()
        events = self.session.receive(untrusted_data, now_ns)
        pause_ns = self._inbound.spend(len(untrusted_data), now_ns, self.session.answers_due)
        self._heard(events, now_ns)
        if pause_ns and self.link.open:
            self.link.pause()
            self._resume_timer = self._loop.call_later(pause_ns / 1e9, self._resume)
            self._flooded()

    def _resume(self) -> None:
        self._resume_timer = None
        self.link.resume()

    def _drained(self) -> None:
        self._sample_waits = False
        self.speak()
        self._told_drained()

    def _closed(self, reason: str) -> None:
        self._sample_waits = False
        if self._resume_timer is not None:
            self._resume_timer.cancel()
            self._resume_timer = None
        self._told_closed(reason)
