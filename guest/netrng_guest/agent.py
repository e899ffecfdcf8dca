# SPDX-License-Identifier: Apache-2.0
"""The agent: one thread that reads top-down as the journey of a sample in the VM.

    line.read → session.receive → kernel (the seed) or stock → sink.offer → session.ack → line.write

``step`` does all that is due at one moment and never waits; ``Loop.wait`` sleeps until a descriptor or the
next timer calls for another one.  A timer that lies in the past after a step has nothing left to do.
"""

import select
import socket
from typing import List, Optional, Union

from . import __version__
from .config import Settings
from .demand import BLOCK_SIZE, SECOND_NS, Demand
from .generation import heard_new_generation
from .kernel import KernelPool
from .line import Line
from .log import Log
from .loop import Loop
from .nonce import new_nonce
from .port import Port
from .session import Data, Event, GuestSession, SessionEnded, SessionOpened
from .sink import Sink
from .stock import Stock
from .wire import SEED_SIZE, wipe

MIN_RNGD_WINDOW = BLOCK_SIZE + SEED_SIZE
FIRST_RETRY_NS, MAX_RETRY_NS = SECOND_NS, 60 * SECOND_NS  # from a seed that the kernel refused to the next


class Agent:
    """``uevents``: see generation.open_uevents; the agent does not close it."""

    def __init__(
        self,
        settings: Settings,
        loop: Loop,
        port: Port,
        sink: Sink,
        pool: KernelPool,
        log: Log,
        uevents: Optional[socket.socket] = None,
    ) -> None:
        self._rate = settings.rate
        self._window = max(settings.window, MIN_RNGD_WINDOW) if sink.name == "rngd" else settings.window
        self._line = Line(loop, port, log)
        self._sink, self._pool, self._log = sink, pool, log
        self._session = GuestSession(new_nonce, self._window)
        self._stock = Stock(self._window)
        self._demand: Optional[Demand] = None  # of the open session
        self._delivered = 0  # bytes of the open session that arrived
        self._seeded = False  # the kernel was given a seed, or refused one
        self._seed_ns: Optional[int] = None  # when to ask for another seed, after a refused one
        self._seed_gap_ns = FIRST_RETRY_NS
        self._reported = ("", "", 0)
        self._copied = False
        self.taken = 0  # bytes that kernel and sink took, of all sessions
        if uevents is not None:
            loop.watch(uevents.fileno(), select.EPOLLIN, lambda events: self._on_uevent(uevents))

    def step(self, now_ns: int) -> Optional[int]:
        """Does all that is due; returns when there will be more to do by time alone."""
        data = self._line.read(now_ns)
        self._renew(now_ns)
        if data:
            events = self._session.receive(data, now_ns)
            wipe(data)
            self._handle(events, now_ns)
        self._feed(now_ns)
        self._ask(now_ns)
        self._report()
        self._write(now_ns)
        return self._next_ns(now_ns)

    def stop(self, now_ns: int) -> None:
        """Says BYE if that fits, overwrites what is in flight and ends the sink."""
        self._handle(self._session.close(), now_ns)
        self._line.write(self._session.take_output(), now_ns)
        self._line.close()
        self._sink.stop()
        self._pool.close()

    def _renew(self, now_ns: int) -> None:
        """Ends the session when its channel or its VM is not what it was."""
        if self._copied:
            self._note("this VM was copied or restored: everything in flight is dropped", now_ns)
        if self._copied or self._line.renewed:
            self._copied = self._line.renewed = False
            self._handle(self._session.flush(), now_ns)

    def _write(self, now_ns: int) -> None:
        if not self._line.host:
            return
        if now_ns >= self._line.knock_ns or not self._session.knock_due(now_ns):
            self._session.tick(now_ns)
        self._line.write(self._session.take_output() if self._line.has_room() else b"", now_ns)

    def _on_uevent(self, uevents: socket.socket) -> None:
        self._copied = heard_new_generation(uevents) or self._copied

    # --- the bytes

    def _handle(self, events: List[Event], now_ns: int) -> None:
        for event in events:
            if isinstance(event, Data):
                self._take(event, now_ns)
            else:
                self._drop(event, now_ns)

    def _take(self, event: Data, now_ns: int) -> None:
        size = len(event.data)
        self._delivered += size
        try:
            if not event.seed:
                self._stock.put(event.data)
                return
            self._pool.credit(event.data)
            reseeded = self._pool.reseed()
        except OSError as error:
            self._session.lose(size, event.session)
            self._note("the kernel did not take the seed: {}".format(error.strerror), now_ns)
            self._seed_ns = now_ns + self._seed_gap_ns
            self._seed_gap_ns = min(2 * self._seed_gap_ns, MAX_RETRY_NS)
        else:
            self._seed_gap_ns = FIRST_RETRY_NS
            self._session.ack(size, event.session)
            self.taken += size
            told = "credited and reseeded" if reseeded else "credited; this kernel cannot be told to reseed"
            if self._pool.denied:
                told = "not credited: " + self._pool.denied
            self._note("{} bytes for the kernel, {}".format(size, told), now_ns)
        finally:
            wipe(event.data)
            self._seeded = self._seeded or event.seed

    def _drop(self, event: Union[SessionOpened, SessionEnded], now_ns: int) -> None:
        """One session's bytes never reach another's."""
        self._stock.wipe()
        self._sink.flush(now_ns)
        self._delivered = 0
        self._demand = None
        self._seed_ns = None
        if isinstance(event, SessionEnded):
            self._note("session ended: " + event.reason, now_ns)
            return
        window = min(self._window, event.max_window)
        self._demand = Demand(self._rate, window, self._sink.piece, now_ns)
        self._note("session {} opened".format(event.session.hex()), now_ns)
        if self._sink.name == "rngd" and window < MIN_RNGD_WINDOW:
            self._note(
                "the host allows {} bytes in flight, rngd takes {}".format(window, MIN_RNGD_WINDOW), now_ns
            )

    def _feed(self, now_ns: int) -> None:
        if self._seeded or not self._sink.waits_for_seed:
            self._sink.tick(now_ns)
        while True:  # at least once: an rngd may have been left a whole block by another
            with self._stock.view() as view:
                n = self._sink.offer(view, now_ns)
            if not n:
                break
            self._stock.drop(n)
        settled = self._sink.settle()
        if settled:
            self.taken += settled
            self._session.ack(settled)

    def _ask(self, now_ns: int) -> None:
        if self._demand is None:
            return
        if self._seed_ns is not None and now_ns >= self._seed_ns:
            self._seed_ns = None
            self._session.seed_again()
        needed = self._sink.needed and max(self._sink.needed - len(self._stock), 0)
        wanted = self._demand.ask(now_ns, self._delivered, self._session.outstanding, needed)
        self._session.grant(self._session.received + wanted)

    # --- what is told

    def _report(self) -> None:
        state, detail = self._sink.state, self._sink.detail
        if self._pool.denied and state in ("ok", "starting"):
            state, detail = "no-permission", self._pool.denied
        if (state, detail, self.taken) == self._reported:
            return
        self._reported = (state, detail, self.taken)
        status = {"version": __version__, "sink": self._sink.name, "sink_state": state, "detail": detail}
        self._session.status({**status, "taken": self.taken})

    def _note(self, text: str, now_ns: int) -> None:
        self._log.line(text, now_ns)

    def _next_ns(self, now_ns: int) -> Optional[int]:
        line_ns = self._line.next_ns(now_ns)
        if line_ns == now_ns:
            return now_ns
        due = [line_ns, self._sink.next_ns(), self._seed_ns]
        if self._line.host:
            due += [self._session.next_tick_ns, self._line.knock_ns]
        if self._demand is not None:
            due.append(self._demand.next_ns(self._delivered, self._session.outstanding))
        return min((time_ns for time_ns in due if time_ns is not None and time_ns > now_ns), default=None)
