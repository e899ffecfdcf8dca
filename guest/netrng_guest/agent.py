# SPDX-License-Identifier: Apache-2.0
"""The agent: one thread that reads top-down as the journey of a sample in the VM.

    port.read → session.receive → kernel (the seed) or stock → sink.offer → session.ack → port.write

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
from .log import NOTICE, WARNING, Log
from .loop import Loop
from .nonce import new_nonce
from .port import Port, PortError
from .session import Data, Event, GuestSession, SessionEnded, SessionOpened
from .sink import Sink
from .stock import Stock
from .wire import SEED_SIZE, wipe

FIRST_OPEN_NS, MAX_OPEN_NS = SECOND_NS, 10 * SECOND_NS  # between two tries to open the channel
FIRST_LOOK_NS, MAX_LOOK_NS = SECOND_NS // 5, 2 * SECOND_NS  # between two looks whether a host is connected
GREETING_NS = SECOND_NS  # how long a host that just connected has for its PROBE before we knock
MIN_RNGD_WINDOW = BLOCK_SIZE + SEED_SIZE
MAX_OUTPUT = 4096  # bytes that wait for room in the channel


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
        window = max(settings.window, MIN_RNGD_WINDOW) if sink.name == "rngd" else settings.window
        self._rate = settings.rate
        self._window = window
        self._loop, self._port, self._sink, self._pool, self._log = loop, port, sink, pool, log
        self._session = GuestSession(new_nonce, window)
        self._stock = Stock(window)
        self._demand: Optional[Demand] = None  # of the open session
        self._delivered = 0  # bytes of the open session that arrived
        self._output = bytearray()
        self._readable = False
        self._host = False  # a host is connected, as far as we can tell
        self._open_ns: Optional[int] = 0  # when to open the channel
        self._open_gap_ns = FIRST_OPEN_NS
        self._look_ns: Optional[int] = None  # when to look whether a host is there
        self._look_gap_ns = FIRST_LOOK_NS
        self._knock_ns = 0  # not before
        self._trouble = ""  # the last thing logged about the channel
        self._reported = ("", "", 0)
        self._copied = False
        self.taken = 0  # bytes that kernel and sink took, of all sessions
        if uevents is not None:
            loop.watch(uevents.fileno(), select.EPOLLIN, lambda events: self._on_uevent(uevents))

    def step(self, now_ns: int) -> Optional[int]:
        """Does all that is due; returns when there will be more to do by time alone."""
        if self._copied:
            self._copied = False
            self._note("this VM was copied or restored: everything in flight is dropped", now_ns)
            self._handle(self._session.flush(), now_ns)
        self._open_port(now_ns)
        self._read(now_ns)
        self._feed(now_ns)
        self._ask(now_ns)
        self._report()
        self._write(now_ns)
        return self._next_ns(now_ns)

    def stop(self, now_ns: int) -> None:
        """Says BYE if that fits, overwrites what is in flight and ends the sink."""
        self._handle(self._session.close(), now_ns)
        if self._port.fd is not None:
            try:
                self._port.write(self._output + self._session.take_output())
            except PortError:
                pass
            self._close_port()
        self._sink.stop()
        self._pool.close()

    # --- the channel

    def _open_port(self, now_ns: int) -> None:
        if self._open_ns is None or now_ns < self._open_ns:
            return
        try:
            fd = self._port.open()
        except PortError as error:
            self._lost_port(error, now_ns)
            return
        self._open_ns = None
        self._host = self._readable = True
        self._knock_ns = now_ns
        self._look_gap_ns = FIRST_LOOK_NS
        self._say_once("opened " + self._port.path, now_ns)
        self._handle(self._session.flush(), now_ns)
        self._loop.watch(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET, self._on_port)

    def _read(self, now_ns: int) -> None:
        if self._look_ns is not None and now_ns >= self._look_ns:
            self._readable = True
        if not self._readable or self._port.fd is None:
            return
        self._readable = False
        try:
            data, connected, self._readable = self._port.read_all()
        except PortError as error:
            self._lost_port(error, now_ns)
            return
        if connected != self._host:
            self._host = connected
            self._knock_ns = now_ns + GREETING_NS
            self._look_gap_ns = FIRST_LOOK_NS
        self._look_ns = None
        if not connected:
            self._output.clear()
            self._look_ns = now_ns + self._look_gap_ns
            self._look_gap_ns = min(2 * self._look_gap_ns, MAX_LOOK_NS)
        if data:
            self._open_gap_ns = FIRST_OPEN_NS
            events = self._session.receive(data, now_ns)
            wipe(data)
            self._handle(events, now_ns)

    def _write(self, now_ns: int) -> None:
        if self._port.fd is None or not self._host:
            return
        if now_ns >= self._knock_ns or not self._session.knock_due(now_ns):
            self._session.tick(now_ns)
        if len(self._output) < MAX_OUTPUT:
            self._output += self._session.take_output()
        if not self._output:
            return
        try:
            del self._output[: self._port.write(self._output)]
        except PortError as error:
            self._lost_port(error, now_ns)

    def _lost_port(self, error: PortError, now_ns: int) -> None:
        self._close_port()
        self._say_once(str(error), now_ns)
        self._handle(self._session.flush(), now_ns)
        self._open_ns = now_ns + self._open_gap_ns
        self._open_gap_ns = min(2 * self._open_gap_ns, MAX_OPEN_NS)

    def _close_port(self) -> None:
        if self._port.fd is not None:
            self._loop.unwatch(self._port.fd)
            self._port.close()
        self._output.clear()
        self._host = self._readable = False
        self._look_ns = None

    def _on_port(self, events: int) -> None:
        self._readable = True

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
            self._pool.reseed()
        except OSError as error:
            self._session.lose(size, event.session)
            self._note("the kernel did not take the seed: {}".format(error.strerror), now_ns)
        else:
            self._session.ack(size, event.session)
            self.taken += size
            told = "not credited: " + self._pool.denied if self._pool.denied else "credited and reseeded"
            self._note("{} bytes for the kernel, {}".format(size, told), now_ns)
        finally:
            wipe(event.data)

    def _drop(self, event: Union[SessionOpened, SessionEnded], now_ns: int) -> None:
        """One session's bytes never reach another's."""
        self._stock.wipe()
        self._sink.flush(now_ns)
        self._delivered = 0
        self._demand = None
        if isinstance(event, SessionEnded):
            self._note("session ended: " + event.reason, now_ns)
            return
        window = min(self._window, event.max_window)
        self._demand = Demand(self._rate, window, self._sink.piece, now_ns)
        self._note("session {} opened".format(event.session.hex()), now_ns)

    def _feed(self, now_ns: int) -> None:
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

    def _say_once(self, text: str, now_ns: int) -> None:
        if text != self._trouble:
            self._trouble = text
            self._log.line(text, now_ns, WARNING if self._port.fd is None else NOTICE)

    def _next_ns(self, now_ns: int) -> Optional[int]:
        if self._readable:
            return now_ns
        due = [self._open_ns, self._look_ns, self._sink.next_ns()]
        if self._host:
            due.append(self._session.next_tick_ns)
            due.append(self._knock_ns)
        if self._demand is not None:
            due.append(self._demand.next_ns(self._delivered, self._session.outstanding))
        return min((time_ns for time_ns in due if time_ns is not None and time_ns > now_ns), default=None)
