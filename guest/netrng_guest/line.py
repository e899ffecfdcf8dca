# SPDX-License-Identifier: Apache-2.0
"""The channel over time: opened, lost, looked for again, with and without a host at its other end.

Never spins.  Without a channel it looks again after a second, later every ten.  With a channel and no host it
sleeps until the kernel tells of one, and looks by itself as well, every two seconds at most.  To a terminal
it soon writes nothing more while nothing comes from a host.
"""

import select
from typing import Optional

from .demand import SECOND_NS
from .log import NOTICE, WARNING, Log
from .loop import Loop
from .port import Port, PortError

FIRST_OPEN_NS, MAX_OPEN_NS = SECOND_NS, 10 * SECOND_NS  # between two tries to open the channel
FIRST_LOOK_NS, MAX_LOOK_NS = SECOND_NS // 5, 2 * SECOND_NS  # between two looks whether a host is connected
GREETING_NS = SECOND_NS  # how long a host that just connected has for its PROBE before we knock
MAX_OUTPUT = 4096  # bytes that wait for room in the channel
# A terminal gets so many bytes, and at most one step's more (472), without hearing from the host.  A Xen
# console's ring to dom0 takes 2,048 (struct xencons_interface in xen/include/public/io/console.h), and Linux
# hangs in a write until it has taken all, O_NONBLOCK or not (domU_write_console, drivers/tty/hvc/hvc_xen.c).
# Half of it, since what was written just before the last word came may still lie there.  Nothing is lost by
# silence: a host that connects sends a PROBE at once, one with an open session a HOLD every ten seconds.
MAX_UNHEARD = 1024


class Line:
    """``renewed`` is set when the channel was opened or lost: sessions end then; the agent resets it.

    ``host``: one is connected, as far as we can tell.  ``knock_ns``: knock no sooner.
    """

    def __init__(self, loop: Loop, port: Port, log: Log) -> None:
        self._loop, self._port, self._log = loop, port, log
        self.renewed = False
        self.host = False
        self.knock_ns = 0
        self._output = bytearray()
        self._unheard = 0  # bytes written since something came
        self._readable = False
        self._open_ns: Optional[int] = 0  # when to open the channel
        self._open_gap_ns = FIRST_OPEN_NS
        self._look_ns: Optional[int] = None  # when to look whether a host is there
        self._look_gap_ns = FIRST_LOOK_NS
        self._said = ""

    def read(self, now_ns: int) -> bytearray:
        """Opens the channel if that is due; what has come, to be overwritten by the caller."""
        if self._open_ns is not None and now_ns >= self._open_ns:
            self._open(now_ns)
        if self._look_ns is not None and now_ns >= self._look_ns:
            self._readable = True
        if not self._readable or self._port.fd is None:
            return bytearray()
        try:
            data, connected, self._readable = self._port.read_all()
        except PortError as error:
            self._lost(error, now_ns)
            return bytearray()
        if connected != self.host:
            self.host = connected
            self.knock_ns = now_ns + GREETING_NS
            self._look_gap_ns = FIRST_LOOK_NS
        self._look_ns = None
        if not connected:
            self._output.clear()
            self._look_ns = now_ns + self._look_gap_ns
            self._look_gap_ns = min(2 * self._look_gap_ns, MAX_LOOK_NS)
        if data:
            self._unheard = 0
            self._open_gap_ns = FIRST_OPEN_NS
        return data

    def has_room(self) -> bool:
        """True when there is a host that may be listening, and not much waits to be written to it."""
        quiet = self._port.is_terminal and self._unheard >= MAX_UNHEARD
        return self.host and len(self._output) < MAX_OUTPUT and not quiet

    def write(self, output: bytes, now_ns: int) -> None:
        """Writes ``output`` behind what waits already, as far as it goes now."""
        self._output += output
        self._unheard += len(output)
        if self._port.fd is None or not self._output:
            return
        try:
            del self._output[: self._port.write(self._output)]
        except PortError as error:
            self._lost(error, now_ns)

    def next_ns(self, now_ns: int) -> Optional[int]:
        """When to call ``read`` again, if nothing else happens."""
        if self._readable or self.renewed:
            return now_ns
        return self._open_ns if self._port.fd is None else self._look_ns

    def close(self) -> None:
        """Closes the channel and forgets what waits to be written."""
        if self._port.fd is not None:
            self._loop.unwatch(self._port.fd)
            self._port.close()
        self._output.clear()
        self.host = self._readable = False
        self._look_ns = None

    def _open(self, now_ns: int) -> None:
        try:
            fd = self._port.open()
        except PortError as error:
            self._lost(error, now_ns)
            return
        self._open_ns = None
        self.renewed = self.host = self._readable = True
        self.knock_ns = now_ns
        self._unheard = 0
        self._look_gap_ns = FIRST_LOOK_NS
        self._say("opened " + self._port.path, now_ns, NOTICE)
        self._loop.watch(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET, self._on_event)

    def _lost(self, error: PortError, now_ns: int) -> None:
        self.renewed = self.renewed or self._port.fd is not None
        self.close()
        self._say(str(error), now_ns, WARNING)
        self._open_ns = now_ns + self._open_gap_ns
        self._open_gap_ns = min(2 * self._open_gap_ns, MAX_OPEN_NS)

    def _on_event(self, events: int) -> None:
        self._readable = True

    def _say(self, text: str, now_ns: int, priority: int) -> None:
        if text != self._said:  # the same trouble every ten seconds is one event
            self._said = text
            self._log.line(text, now_ns, priority)
