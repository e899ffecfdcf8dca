# SPDX-License-Identifier: Apache-2.0
"""The server's half of EGD: commands in, answers out.  Pure.  For a VM's virtio-rng, and for [[serve]].

The commands are those of egd.pl 0.9, the first such server; n is one byte:

00             how many bits there are     answered with 4 bytes, the most significant first
01 n           up to n bytes, soon         answered with a count, one byte, and so many bytes
02 n           n bytes, however long       answered with n bytes and nothing else
03 b b n ...   n bytes of the asker's own  read and thrown away: nobody else gets what an asker chose
04             the server's process        answered with a count, one byte, and so many digits

QEMU's virtio-rng (backends/rng-egd.c) sends command 2 alone and takes no more than it is waiting for.  What
it asked while nobody was connected it does not ask again, and its guest waits: up to ``unasked`` bytes, given
right after connecting and only then, free it.

The asker is untrusted.  Whatever it sends costs a bounded amount of memory: requests of command 2 that follow
one another are added up, and one who lets too many others wait has to go.  EGD knows no acknowledgement, so
nothing given here is ever in flight, and no session begins with a seed.
"""

from __future__ import annotations

import re
import struct
from collections import deque
from dataclasses import dataclass
from typing import Callable

from netrng_guest import wire
from netrng_hostd.channels.session import CLOSED, OPEN, Broken, Event, Granted, Opened

COUNT, AVAILABLE, WAITING, PUSH, PROCESS = range(5)
_LENGTHS = {COUNT: 1, AVAILABLE: 2, WAITING: 2, PUSH: 4, PROCESS: 1}  # bytes, without those pushed
LOST_REQUEST = 64  # bytes: what Linux's virtio-rng driver asks for at a time
SOON_NS = 250_000_000  # for command 1; an answer at once would find nothing wherever others ask as well
MAX_ASKS = 256  # that may wait, those added up counting as one
MAX_OUTPUT = 4096  # bytes of answers without entropy that may wait for the asker to read
_RUN = re.compile(rb"(?:\x02.)+", re.DOTALL)  # of command 2
TOO_MUCH = "too many requests at once, or answers that it does not take"
_GRANTED = Granted()


@dataclass
class _Ask:
    """One request, or several of command 2, that others are answered before."""

    __slots__ = ("command", "due_ns", "n_bytes")

    command: int
    n_bytes: int
    due_ns: int


class EgdSession:
    """What is spoken on one channel, one connection after another; the same shape as HostSession.

    ``available`` tells how many bytes there are to be had. ``unasked`` ones count as asked for when a
    connection begins. ``commands``: those that this asker may use, of which WAITING always is one.
    """

    acknowledges = False
    agent: wire.StatusDict | None = None
    in_flight = 0
    wanted_seed = 0

    def __init__(
        self,
        available: Callable[[], int],
        process_id: int = 0,
        unasked: int = 0,
        commands: tuple[int, ...] = (COUNT, AVAILABLE, WAITING, PUSH, PROCESS),
    ) -> None:
        self.state = CLOSED
        self.sent = 0
        self.last_heard_ns: int | None = None
        self.wanted = 0  # bytes that the next sample may hold: what the request in front still asks for
        self.next_tick_ns: int | None = None  # when that is command 1: when ``tick`` answers it with nothing
        self._behind: deque[_Ask] = deque()
        self._available = available
        self._process_id = str(process_id).encode()
        self._unasked = unasked
        self._lengths = {command: _LENGTHS[command] for command in commands}
        self._partial = b""  # a command that has not come whole
        self._pushed = 0  # bytes to throw away
        self._output = bytearray()
        self.answers_due = 0

    def renew(self, now_ns: int) -> list[Event]:
        """A new connection."""
        self.close("", now_ns)
        self.state = OPEN
        self.wanted = self._unasked
        return [_GRANTED]

    def close(self, reason: str, now_ns: int) -> list[Event]:
        """The end, until ``renew``: what was asked for is forgotten.  EGD has no word for it."""
        self.state = CLOSED
        self.last_heard_ns = None
        self.sent = self.wanted = self._pushed = 0
        self.next_tick_ns = None
        self._behind.clear()
        self._partial = b""
        self._output.clear()
        return []

    def sample(self, data: bytearray) -> bytearray:
        """The answer that carries ``data``, mostly ``data`` itself; the caller overwrites both.

        Raises ValueError on more than is wanted.
        """
        n_bytes = len(data)
        if not 0 < n_bytes <= self.wanted:
            raise ValueError(f"{n_bytes} bytes, {self.wanted} wanted")
        self.sent += n_bytes
        answer = data
        if self.next_tick_ns is None:
            self.wanted -= n_bytes
        else:
            answer = bytearray((n_bytes,))
            answer += data
            self._answered()
        if self._behind:
            self._go_on(0)
        return answer

    def take_output(self) -> bytes:
        """The answers to write now; b"" if none."""
        if not self._output:
            return b""
        output = bytes(self._output)
        self._output.clear()
        return output

    def tick(self, now_ns: int) -> list[Event]:
        """Command 1 has waited long enough."""
        self._go_on(now_ns)
        return [_GRANTED]

    def receive(self, untrusted_data: wire.Buffer, now_ns: int) -> list[Event]:
        """What the asker's bytes mean.  Raises on no input."""
        if self.state != OPEN:
            return []
        events: list[Event] = [_GRANTED] if self.last_heard_ns else [Opened(b"", 0), _GRANTED]
        self.last_heard_ns = now_ns
        data = self._partial + bytes(untrusted_data)
        self._partial = b""
        self.answers_due = 0
        wrong = self._parse(data, now_ns + SOON_NS)
        if self._behind or self.next_tick_ns is not None:
            self._go_on(now_ns)
            if len(self._behind) > MAX_ASKS or len(self._output) > MAX_OUTPUT:
                wrong = wrong or TOO_MUCH
        if wrong:
            self.close(wrong, now_ns)
            return [Broken(wrong)]
        return events

    def _parse(self, data: bytes, due_ns: int) -> str:
        """What is wrong with it, "" if nothing."""
        place, end = 0, len(data)
        while place < end:
            if self._pushed:
                thrown = min(self._pushed, end - place)
                self._pushed -= thrown
                place += thrown
                continue
            command = data[place]
            if command == WAITING and (run := _RUN.match(data, place)):  # one at a time would be slow
                self._wait_for(sum(data[place + 1 : run.end() : 2]))
                place = run.end()
                continue
            length = self._lengths.get(command)
            if length is None:
                return "a byte that is no command"  # which one is not said: it may be somebody's secret
            if end - place < length:
                self._partial = data[place:]
                break
            if command == PUSH:
                self._pushed = data[place + 3]
            else:
                self._behind.append(_Ask(command, data[place + 1] if length > 1 else 0, due_ns))
                self.answers_due += 1
            place += length
        return ""

    def _wait_for(self, n_bytes: int) -> None:
        """One request of command 2, or several."""
        if not self._behind and self.next_tick_ns is None:
            self.wanted += n_bytes
        elif self._behind and self._behind[-1].command == WAITING:
            self._behind[-1].n_bytes += n_bytes
        else:
            self._behind.append(_Ask(WAITING, n_bytes, 0))
            self.answers_due += 1

    def _go_on(self, now_ns: int) -> None:
        """Answers what takes no entropy, or has waited in vain, up to a request that has to wait."""
        if self.next_tick_ns is not None and self.next_tick_ns <= now_ns:
            self._output.append(0)
            self._answered()
        while self._behind and not self.wanted:
            ask = self._behind.popleft()
            if ask.command == COUNT:
                self._output += struct.pack(">I", min(8 * self._available(), 0xFFFFFFFF))
            elif ask.command == PROCESS:
                self._output += bytes((len(self._process_id),)) + self._process_id
            elif ask.command == AVAILABLE and (ask.due_ns <= now_ns or not ask.n_bytes):
                self._output.append(0)
            else:
                self.wanted = ask.n_bytes
                self.next_tick_ns = ask.due_ns if ask.command == AVAILABLE else None

    def _answered(self) -> None:
        """The request in front, command 1."""
        self.wanted, self.next_tick_ns = 0, None
