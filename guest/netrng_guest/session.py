# SPDX-License-Identifier: Apache-2.0
"""The guest's half of a session: the host's bytes in, frames and events out.  Pure; see docs/protocol.md.

The host is trusted to be honest, the link is not trusted at all: it may drop, repeat, cut, echo and flip
what it carries.  No byte of the host's reaches a Data event twice, and Data events are in the host's order.
A byte that arrived is *settled* once the sink took it or the agent gave it up; one that did not is settled
when its absence is noticed.
"""

from typing import Callable, Dict, List, NamedTuple, Optional, Tuple, Union

from . import wire

SECOND_NS = 1000000000
KEEP_ALIVE_NS = 10 * SECOND_NS
STATUS_GAP_NS = SECOND_NS  # between two STATUS frames, however often the status changes
FIRST_KNOCK_NS, MAX_KNOCK_NS = SECOND_NS, 30 * SECOND_NS
OPEN_TRIES = 3  # OPENs without an answer, a second apart, before the PROBE counts as stale

KNOCKING, OPENING, OPEN, CLOSED = "knocking", "opening", "open", "closed"


class SessionOpened(NamedTuple):
    """A session is open.  Its first Data event is the seed, and so is the one after ``seed_again``."""

    max_window: int
    session: bytes


class Data(NamedTuple):
    """Bytes that arrived; the receiver overwrites them.  ``seed``: these 64 go to the kernel."""

    data: bytearray
    seed: bool
    session: bytes

    def __repr__(self) -> str:  # the bytes must not end in a log
        return "Data({} bytes, seed={}, {})".format(len(self.data), self.seed, self.session.hex())


class SessionEnded(NamedTuple):
    """The session is over: drop everything of it that is in flight."""

    reason: str


Event = Union[SessionOpened, Data, SessionEnded]

_CLOSED_BY_HOST = {number: name for name, number in wire.CLOSE_REASONS.items()}


class GuestSession:
    """One port's sessions, one after another.

    States: "knocking" (no session), "opening" (an OPEN is out), "open", "closed" (for good, by ``close``).
    ``new_nonce`` returns 8 bytes that differ from call to call, and never blocks.
    Counters of the open session, in bytes: ``received`` (the offset that comes next), ``acked`` (settled:
    what a GRANT calls acked), ``lost`` (those of them that no sink took), ``granted`` (as last told).
    """

    def __init__(
        self,
        new_nonce: Callable[[], bytes],
        window: int = 4096,
        versions: Tuple[int, int] = wire.VERSIONS,
    ) -> None:
        if not wire.MIN_WINDOW <= window <= wire.MAX_WINDOW:
            raise ValueError("window {}: {} to {} bytes".format(window, wire.MIN_WINDOW, wire.MAX_WINDOW))
        self.decoder = wire.Decoder(from_host=True, max_payload=wire.GUEST_MAX_PAYLOAD)
        self.state = KNOCKING
        self.session = b""
        self.received = self.acked = self.lost = self.granted = 0
        self._new_nonce = new_nonce
        self._window = window
        self._versions = versions
        self._nonce = new_nonce()
        self._output: Dict[int, wire.Control] = {}  # by kind: one of each at most
        self._timer_ns = 0  # the next KNOCK, OPEN or keep-alive, by state
        self._knock_gap_ns = FIRST_KNOCK_NS
        self._opens = 0
        self._max_window = 0
        self._wanted = 0
        self._told: Optional[Tuple[int, int, int]] = None
        self._seed = bytearray(wire.SEED_SIZE)
        self._seed_have: Optional[int] = None  # bytes of the seed that arrived; None once it was delivered
        self._status: wire.StatusDict = {}
        self._status_due_ns: Optional[int] = None
        self._status_sent_ns = -STATUS_GAP_NS

    # --- what the agent asks

    @property
    def outstanding(self) -> int:
        """Bytes delivered in Data events and neither acknowledged nor given up."""
        return self.received - self.acked - (self._seed_have or 0)

    @property
    def next_tick_ns(self) -> Optional[int]:
        """When ``tick`` has something to do; None when closed."""
        if self.state == CLOSED:
            return None
        if self.state == OPEN and self._status_due_ns is not None:
            return min(self._timer_ns, self._status_due_ns)
        return self._timer_ns

    def knock_due(self, now_ns: int) -> bool:
        """True when ``tick`` would knock."""
        return self.state == KNOCKING and now_ns >= self._timer_ns

    # --- what the agent does

    def grant(self, upto: int) -> None:
        """Ask for bytes up to offset ``upto`` of the session; never takes back.

        The window bounds what is asked for at once.  Bytes that get lost count: to go on getting ``n`` bytes,
        say ``grant(session.received + n)`` again after each ``receive``.  The seed is always asked for.
        """
        if self.state == OPEN:
            self._wanted = max(self._wanted, upto)

    def ack(self, n: int, session: Optional[bytes] = None) -> None:
        """The sink took the next ``n`` bytes.  Nothing happens when ``session`` is not the open one.

        Raises ValueError on more than was delivered.
        """
        if self.state == OPEN and session in (None, self.session):
            if not 0 <= n <= self.outstanding:
                raise ValueError("{} bytes acknowledged, {} outstanding".format(n, self.outstanding))
            self.acked += n

    def lose(self, n: int, session: Optional[bytes] = None) -> None:
        """The agent dropped ``n`` bytes that no sink will take.  Else like ``ack``."""
        if self.state == OPEN and session in (None, self.session):
            self.ack(n, session)
            self.lost += n

    def seed_again(self) -> None:
        """The kernel did not take the seed: the next 64 bytes that arrive are one."""
        if self.state == OPEN and self._seed_have is None:
            self._seed_have = 0

    def status(self, status: wire.StatusDict) -> None:
        """What the host is told of the agent: soon when more than a number changed, with the keep-alive else.

        It is encoded when it is sent: a number changes with each sample.
        """
        if {**self._status, "taken": 0} != {**status, "taken": 0}:
            self._status_due_ns = self._status_sent_ns + STATUS_GAP_NS
        self._status = dict(status)

    def flush(self) -> List[Event]:
        """The VM was restored or cloned, or the port was opened anew: end the session and knock."""
        events: List[Event] = []
        if self.state != CLOSED:
            self._end("flushed", 0, events)
            self._knock_gap_ns = FIRST_KNOCK_NS
            self.decoder.wipe()
        return events

    def close(self) -> List[Event]:
        """The agent stops: say BYE.  Nothing happens afterwards."""
        events: List[Event] = []
        session, was_open = self.session, self.state == OPEN
        if self.state != CLOSED:
            self._end("closed", 0, events)
            self.decoder.wipe()
            self.state = CLOSED
            if was_open:
                self._output[wire.BYE] = wire.Bye(session)
        return events

    def tick(self, now_ns: int) -> None:
        """Do what is due: a KNOCK, an OPEN again, a keep-alive."""
        if self.state == OPEN and self._status_due_ns is not None and now_ns >= self._status_due_ns:
            self._put_status(now_ns)
        if self.state == CLOSED or now_ns < self._timer_ns:
            return
        if self.state == OPENING:
            if self._opens < OPEN_TRIES:
                self._put_open(now_ns)
                return
            self._leave(now_ns)  # the PROBE was stale or the host is gone
        if self.state == KNOCKING:
            self._output[wire.KNOCK] = wire.Knock(self._nonce)
            self._timer_ns = now_ns + self._knock_gap_ns
            self._knock_gap_ns = min(2 * self._knock_gap_ns, MAX_KNOCK_NS)
        else:
            self._told = None
            self._timer_ns = now_ns + KEEP_ALIVE_NS
            if self._status:
                self._put_status(now_ns)

    def take_output(self) -> bytes:
        """The frames to write now; b"" if none.  Call it once everything that arrived was received."""
        if self.state == OPEN and self._grant_is_due():
            self.granted = self._limit()
            self._told = (self.granted, self.acked, self.lost)
            self._output[wire.GRANT] = wire.Grant(self.session, *self._told)
        frames = b"".join(map(wire.encode, self._output.values()))
        self._output.clear()
        return frames

    def receive(self, data: wire.Buffer, now_ns: int) -> List[Event]:
        """What the host's bytes mean; the caller overwrites ``data``.  Raises on no input.

        When the session ends in it, what it delivered before in the same call is dropped: hand over all that
        there is to read at once.
        """
        events: List[Event] = []
        for frame in self.decoder.feed(data):
            if isinstance(frame, wire.Sample):
                if self.state == OPEN and frame.session == self.session and frame.offset >= self.received:
                    self._receive_sample(frame, now_ns, events)
                else:
                    wire.wipe(frame.data)
            elif self.state == CLOSED:
                continue
            elif isinstance(frame, wire.Probe):
                if frame.session != self.session:
                    if self.state != KNOCKING:
                        self._end("the host started a new session", now_ns, events)
                    self.session = frame.session
                    self.state = OPENING
                    self._opens = 0
                if self.state == OPENING:
                    self._put_open(now_ns)
            elif not isinstance(frame, wire.Knock) and frame.session == self.session:
                self._receive_control(frame, now_ns, events)
        return events

    # --- frames

    def _receive_control(self, frame: wire.Frame, now_ns: int, events: List[Event]) -> None:
        """A frame, neither PROBE nor SAMPLE, of the session that is open or opening."""
        if isinstance(frame, wire.Close):
            reason = _CLOSED_BY_HOST.get(frame.reason, "other")
            self._end("closed by the host: " + reason, now_ns + self._knock_gap_ns, events, tell=True)
        elif self.state == OPENING:
            if isinstance(frame, wire.Accept) and self._suits(frame):
                self._open(frame, now_ns, events)
        elif isinstance(frame, wire.Hold):
            if self._within_grant(frame.sent, now_ns, events) and frame.sent > self.received:
                self._skip_to(frame.sent)
        elif not isinstance(frame, wire.Accept):
            self._end("the host sent an unknown frame", now_ns + self._knock_gap_ns, events)

    def _suits(self, frame: wire.Accept) -> bool:
        return (
            frame.guest_nonce == self._nonce
            and self._versions[0] <= frame.version <= self._versions[1]
            and frame.max_window >= wire.MIN_WINDOW
        )

    def _open(self, frame: wire.Accept, now_ns: int, events: List[Event]) -> None:
        self.state = OPEN
        self.received = self.acked = self.lost = self.granted = self._wanted = self._seed_have = 0
        self._max_window = min(frame.max_window, self._window)
        self._told = None
        self._timer_ns = now_ns + KEEP_ALIVE_NS
        self._knock_gap_ns = FIRST_KNOCK_NS
        self._output.clear()
        if self._status:
            self._status_due_ns = now_ns
        events.append(SessionOpened(self._max_window, self.session))

    def _receive_sample(self, frame: wire.Sample, now_ns: int, events: List[Event]) -> None:
        data = frame.data
        if not self._within_grant(frame.offset + len(data), now_ns, events):
            wire.wipe(data)
            return
        self._skip_to(frame.offset)
        self.received += len(data)
        if self._seed_have is not None:
            data = self._fill_seed(data, events)
        if data:
            events.append(Data(data, False, self.session))

    def _fill_seed(self, data: bytearray, events: List[Event]) -> bytearray:
        """Takes what the seed still lacks; returns the rest."""
        have = self._seed_have or 0
        n = min(wire.SEED_SIZE - have, len(data))
        self._seed[have : have + n] = data[:n]
        self._seed_have = have + n
        rest = data[n:]
        wire.wipe(data)
        if self._seed_have == wire.SEED_SIZE:
            events.append(Data(self._seed, True, self.session))
            self._seed = bytearray(wire.SEED_SIZE)
            self._seed_have = None
        return rest

    def _within_grant(self, offset: int, now_ns: int, events: List[Event]) -> bool:
        if offset <= self.granted:
            return True
        self._end("the host sent more than was granted", now_ns + self._knock_gap_ns, events)
        return False

    def _skip_to(self, offset: int) -> None:
        """What lies before ``offset`` and has not arrived is lost."""
        gap = offset - self.received
        self.received += gap
        self.acked += gap
        self.lost += gap

    # --- what is due

    def _limit(self) -> int:
        """The offset to grant up to: what is wanted, at most a window above what is settled."""
        wanted = self._wanted
        if self._seed_have is not None:
            wanted = max(wanted, self.received + wire.SEED_SIZE - self._seed_have)
        return max(self.granted, min(wanted, self.acked + self._max_window))

    def _grant_is_due(self) -> bool:
        """True when the host has to know: it may send nothing more, all is settled, or much has changed."""
        limit = self._limit()
        return (limit, self.acked, self.lost) != self._told and (
            self._told is None
            or self.acked == self.received
            or self.granted <= self.received
            or limit - self.granted >= self._max_window // 4
        )

    def _put_open(self, now_ns: int) -> None:
        self._output[wire.OPEN] = wire.Open(self.session, self._nonce, *self._versions)
        self._opens += 1
        self._timer_ns = now_ns + SECOND_NS

    def _put_status(self, now_ns: int) -> None:
        self._output[wire.STATUS] = wire.Status(self.session, wire.encode_status(self._status))
        self._status_sent_ns = now_ns
        self._status_due_ns = None

    # --- how sessions end

    def _end(self, reason: str, knock_ns: int, events: List[Event], tell: bool = False) -> None:
        """Forgets the session; a SessionEnded event if it was open or is to be told of."""
        for event in events:
            if isinstance(event, Data):
                wire.wipe(event.data)
        events[:] = [event for event in events if not isinstance(event, Data)]
        if tell or self.state == OPEN:
            events.append(SessionEnded(reason))
        self._leave(knock_ns)

    def _leave(self, knock_ns: int) -> None:
        wire.wipe(self._seed)
        self._seed_have = None
        self.state = KNOCKING
        self.session = b""
        self.received = self.acked = self.lost = self.granted = 0
        self._nonce = self._new_nonce()
        self._timer_ns = knock_ns
        self._output.clear()
