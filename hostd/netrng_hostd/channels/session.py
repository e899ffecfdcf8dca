# SPDX-License-Identifier: Apache-2.0
"""The host's half of a session: a guest's bytes in, frames and events out.  Pure; see docs/protocol.md.

The guest is untrusted.  Whatever it sends costs a bounded amount of memory and of answers: each answer is a
slot that is filled, not a queue that grows, and PROBEs, repeated ACCEPTs and AgentStatus events are limited
to one per second each.  At all times ``sent == acked + lost + in_flight``.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Union

from netrng_guest import wire

SECOND_NS = 1_000_000_000
KEEP_ALIVE_NS = 10 * SECOND_NS
MIN_GAP_NS = SECOND_NS  # between two answers of one kind that a guest can provoke
# From a PROBE to its repetition by time alone, doubling: what nobody reads piles up, 26 bytes an hour.
FIRST_PROBE_GAP_NS, MAX_PROBE_GAP_NS = 60 * SECOND_NS, 3600 * SECOND_NS
FIRST_BACKOFF_NS, MAX_BACKOFF_NS = SECOND_NS, 60 * SECOND_NS
GOOD_BEHAVIOUR_NS = 60 * SECOND_NS  # after which the back-off starts at its first value again

CLOSED, PROBING, OPEN, VIOLATED, INCOMPATIBLE = "closed", "probing", "open", "violated", "incompatible"


class Opened(NamedTuple):
    """A session is open; its counters start at 0."""

    guest_nonce: bytes
    version: int


class Granted(NamedTuple):
    """``wanted_seed`` or ``wanted`` grew."""


class Acked(NamedTuple):
    """The guest's sink took ``n`` more bytes."""

    n: int


class Lost(NamedTuple):
    """``n`` more bytes went missing on the way, in a session that goes on."""

    n: int


class AgentStatus(NamedTuple):
    """The agent reported; also in ``HostSession.agent``."""

    status: wire.StatusDict


class Ended(NamedTuple):
    """The session is over; its last ``lost`` bytes in flight are lost (no Lost event repeats them)."""

    reason: str
    lost: int


class Violation(NamedTuple):
    """The guest broke the protocol; an Ended event follows."""

    text: str


class Broken(NamedTuple):
    """What came is no protocol, so nothing after it can be understood: the connection has to end."""

    text: str


Event = Union[Opened, Granted, Acked, Lost, AgentStatus, Ended, Violation, Broken]


class HostSession:
    """One channel's sessions, one after another.

    States: "closed" (nothing is spoken before ``renew``), "probing" (a PROBE is out or due), "open",
    "violated" (deaf until the back-off is over, then probing), "incompatible" (like probing; the last answer
    named no version that both speak).

    Hand out ``take_output()`` and the frames of ``sample()`` in the order in which they were made.
    """

    acknowledges = True
    answers_due = 0  # each is a slot, which is filled once

    def __init__(
        self,
        new_nonce: Callable[[], bytes],
        max_window: int = wire.MAX_WINDOW,
        versions: tuple[int, int] = wire.VERSIONS,
    ) -> None:
        if not wire.MIN_WINDOW <= max_window <= wire.MAX_WINDOW:
            raise ValueError(f"max_window {max_window}: {wire.MIN_WINDOW} to {wire.MAX_WINDOW} bytes")
        self.decoder = wire.Decoder(from_host=False, max_payload=wire.HOST_MAX_PAYLOAD)
        self.state = CLOSED
        self.session = b""
        self.opened_ns: int | None = None
        self.last_heard_ns: int | None = None
        self.agent: wire.StatusDict | None = None
        self.sent = self.acked = self.lost = 0
        self._new_nonce = new_nonce
        self._max_window = max_window
        self._versions = versions
        self._guest_nonce = b""
        self._version = 0
        self._granted = 0  # as the guest asked for it; see _limit
        self._output: dict[int, wire.Control] = {}  # by kind: one of each at most
        self._due: dict[str, int] = {}  # "probe", "answer", "hold", "status" -> when
        self._last: dict[str, int] = {}  # "probe", "answer", "status" -> when it was last done
        self._untrusted_status = b""
        self._probe_gap_ns = FIRST_PROBE_GAP_NS
        self._backoff_ns = 0
        self._deaf_until_ns = 0

    # --- what the scheduler asks

    @property
    def in_flight(self) -> int:
        """Bytes sent in this session and neither acknowledged nor lost."""
        return self.sent - self.acked - self.lost

    @property
    def wanted_seed(self) -> int:
        """Bytes granted and not sent below offset 64."""
        return max(0, min(self._limit, wire.SEED_SIZE) - self.sent)

    @property
    def wanted(self) -> int:
        """Bytes granted and not sent from offset 64 on."""
        return max(0, self._limit - max(self.sent, wire.SEED_SIZE))

    @property
    def _limit(self) -> int:
        """The offset that may be sent up to: as granted, but at most a window above what is settled."""
        if self.state != OPEN:
            return 0
        return min(self._granted, self.acked + self.lost + self._max_window)

    @property
    def next_tick_ns(self) -> int | None:
        """When ``tick`` has something to do, or None."""
        return min(self._due.values(), default=None)

    # --- what the daemon does

    def renew(self, now_ns: int) -> list[Event]:
        """(Re)start: forget half a frame, choose a fresh h, PROBE at once, or when the back-off is over."""
        events: list[Event] = []
        self.decoder.wipe()
        self._last.pop("probe", None)
        if now_ns < self._deaf_until_ns:
            self._end("renewed", events)
            self.state = VIOLATED
            self._due["probe"] = self._deaf_until_ns
        else:
            self._start_anew("renewed", now_ns, events)
        return events

    def close(self, reason: str, now_ns: int) -> list[Event]:
        """End until ``renew``.  ``reason``: one of wire.CLOSE_REASONS, or words for the log alone."""
        events: list[Event] = []
        was_open = self.state == OPEN
        self._end(reason, events)
        self.state = CLOSED
        if was_open:
            self._put_close(reason)
        return events

    def sample(self, data: bytearray) -> bytearray:
        """The frame that carries the session's next bytes; the caller overwrites ``data`` and the frame.

        Raises ValueError on more than was granted.
        """
        granted = max(0, self._limit - self.sent)
        if not 0 < len(data) <= min(granted, wire.MAX_DATA):
            raise ValueError(f"{len(data)} bytes, {granted} granted")
        frame = wire.encode_sample(self.session, self.sent, data)
        self.sent += len(data)
        return frame

    def take_output(self) -> bytes:
        """The control frames to write now; b"" if none."""
        if not self._output:
            return b""
        if wire.HOLD in self._output:
            self._output[wire.HOLD] = wire.Hold(self.session, self.sent)
        frames = b"".join(map(wire.encode, self._output.values()))
        self._output.clear()
        return frames

    def tick(self, now_ns: int) -> list[Event]:
        """Do what is due: a delayed PROBE, a repeated answer, a keep-alive, a delayed AgentStatus."""
        events: list[Event] = []
        for name in [name for name, when in self._due.items() if when <= now_ns]:
            self._do(name, now_ns, events)
        return events

    def receive(self, untrusted_data: wire.Buffer, now_ns: int) -> list[Event]:
        """What the guest's bytes mean.  Raises on no input."""
        events: list[Event] = []
        for frame in self.decoder.feed(untrusted_data):
            if self.state in (CLOSED, VIOLATED):
                continue
            if isinstance(frame, wire.Knock):
                if self.state != OPEN:
                    self._later("probe", now_ns, events)
                elif frame.guest_nonce != self._guest_nonce:
                    self._start_anew("the agent started anew", now_ns, events)
            elif frame.session != self.session:
                if self.state != OPEN:  # somebody is there who has not seen our PROBE
                    self._later("probe", now_ns, events)
            elif self.state == OPEN:
                self.last_heard_ns = now_ns
                self._receive_open(frame, now_ns, events)
            elif isinstance(frame, wire.Open):
                self._open(frame, now_ns, events)
        return events

    # --- frames

    def _receive_open(self, frame: wire.Frame, now_ns: int, events: list[Event]) -> None:
        if isinstance(frame, wire.Grant):
            self._grant(frame, now_ns, events)
        elif isinstance(frame, wire.Status):
            self._untrusted_status = frame.text
            self._later("status", now_ns, events)
        elif isinstance(frame, wire.Bye):
            self._start_anew("the agent stopped", now_ns, events)
        elif not isinstance(frame, wire.Open):
            self._violate("a frame of a kind or size that no version has", now_ns, events)
        elif frame.guest_nonce == self._guest_nonce:  # our ACCEPT was lost
            self._later("answer", now_ns, events)
        else:
            self._start_anew("the agent started anew", now_ns, events)

    def _grant(self, frame: wire.Grant, now_ns: int, events: list[Event]) -> None:
        _, granted, settled, lost = frame
        taken = settled - lost
        if not lost <= settled <= self.sent:
            text = f"acknowledged {settled} bytes, {lost} of them lost, of {self.sent}"
            self._violate(text, now_ns, events)
        elif taken < self.acked or lost < self.lost:  # also what a guest that was reverted in place does
            text = f"acknowledged {taken} and lost {lost} bytes after {self.acked} and {self.lost}"
            self._violate(text, now_ns, events)
        else:
            limit = self._limit
            newly_taken, newly_lost = taken - self.acked, lost - self.lost
            self.acked, self.lost = taken, lost
            self._granted = max(self._granted, granted)
            if newly_taken:
                events.append(Acked(newly_taken))
            if newly_lost:
                events.append(Lost(newly_lost))
            if self._limit > limit:
                events.append(Granted())

    def _open(self, frame: wire.Open, now_ns: int, events: list[Event]) -> None:
        self._due.pop("probe", None)
        self._output.pop(wire.PROBE, None)
        version = min(frame.max_version, self._versions[1])
        if version < max(frame.min_version, self._versions[0]):
            if self.state != INCOMPATIBLE:
                self.state = INCOMPATIBLE
                events.append(
                    Ended(f"the agent speaks versions {frame.min_version} to {frame.max_version} alone", 0)
                )
        else:
            self.state = OPEN
            self.opened_ns = self.last_heard_ns = now_ns
            self._guest_nonce = frame.guest_nonce
            self._version = version
            self._due["hold"] = now_ns + KEEP_ALIVE_NS
            self._last.pop("answer", None)
            self._due.pop("answer", None)
            events.append(Opened(frame.guest_nonce, version))
        self._later("answer", now_ns, events)

    # --- what is due

    def _later(self, name: str, now_ns: int, events: list[Event]) -> None:
        """Do it now or, when it was last done less than a second ago, once that second is over."""
        if name == "probe":  # somebody is there, or may be now
            self._probe_gap_ns = FIRST_PROBE_GAP_NS
        soonest_ns = max(now_ns, self._last.get(name, -MIN_GAP_NS) + MIN_GAP_NS)
        self._due[name] = min(soonest_ns, self._due.get(name, soonest_ns))
        if self._due[name] <= now_ns:
            self._do(name, now_ns, events)

    def _do(self, name: str, now_ns: int, events: list[Event]) -> None:
        del self._due[name]
        self._last[name] = now_ns
        if name == "probe":
            if self.state == VIOLATED:
                self._name_session()
            self._output[wire.PROBE] = wire.Probe(self.session, *self._versions)
            self._due[name] = now_ns + self._probe_gap_ns
            self._probe_gap_ns = min(2 * self._probe_gap_ns, MAX_PROBE_GAP_NS)
        elif name == "hold":
            self._output[wire.HOLD] = wire.Hold(self.session, self.sent)
            self._due[name] = now_ns + KEEP_ALIVE_NS
        elif name == "status":
            status = wire.parse_status(self._untrusted_status)
            if status is not None:
                self.agent = status
                events.append(AgentStatus(status))
        elif self.state == OPEN:
            self._output[wire.ACCEPT] = wire.Accept(
                self.session, self._guest_nonce, self._version, self._max_window
            )
        else:
            self._put_close("incompatible")

    def _put_close(self, reason: str) -> None:
        self._output[wire.CLOSE] = wire.Close(self.session, wire.CLOSE_REASONS.get(reason, 0))

    # --- how sessions begin and end

    def _name_session(self) -> None:
        self.state = PROBING
        self.session = self._new_nonce()
        self.sent = self.acked = self.lost = 0
        self._probe_gap_ns = FIRST_PROBE_GAP_NS

    def _start_anew(self, reason: str, now_ns: int, events: list[Event]) -> None:
        self._end(reason, events)
        self._name_session()
        self._later("probe", now_ns, events)

    def _end(self, reason: str, events: list[Event]) -> None:
        if self.state == OPEN:
            in_flight = self.in_flight
            self.lost += in_flight
            events.append(Ended(reason, in_flight))
        self.opened_ns = None
        self.agent = None
        self._granted = 0
        self._due.clear()
        self._output.clear()

    def _violate(self, text: str, now_ns: int, events: list[Event]) -> None:
        events.append(Violation(text))
        self._end("violation", events)
        self.state = VIOLATED
        if not self._backoff_ns or now_ns - self._deaf_until_ns >= GOOD_BEHAVIOUR_NS:
            self._backoff_ns = FIRST_BACKOFF_NS
        else:
            self._backoff_ns = min(2 * self._backoff_ns, MAX_BACKOFF_NS)
        self._deaf_until_ns = self._due["probe"] = now_ns + self._backoff_ns
        self._put_close("violation")
