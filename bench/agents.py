# SPDX-License-Identifier: Apache-2.0
"""Real agents, each in a process of its own, that begin at one signal: `python -m bench.agents FOLDER COUNT`.

Each has a socket in FOLDER, on which it takes hostd's connection as its QEMU would, and credits this
machine's kernel with what it gets.  Says "listening" and "accepted" (all have hostd's connection) on standard
output, begins with a line on standard input and then tells, in one line of JSON, as instants in nanoseconds
of the monotonic clock: "signal", and for each agent "began", "credited" (its seed was: RNDADDENTROPY has
returned) and "beyond" (it had received more than 1,024 bytes); and how many were "denied" the credit.  Ends
with its input.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import socket
import sys
import time
from pathlib import Path

from netrng_guest.agent import Agent
from netrng_guest.config import DEFAULT_RATE, Settings
from netrng_guest.demand import DEFAULT_WINDOW
from netrng_guest.kernel import KernelPool
from netrng_guest.log import Log
from netrng_guest.loop import Loop
from netrng_guest.port import Port, PortError
from netrng_guest.sink import KernelSink

MUCH = 1024  # bytes, of one agent, while others wait for their seed
TOLD = ("accepted", "began", "credited", "beyond", "denied")
STORM_S = 60.0  # then those who have no seed have none
LAST_S = 0.5  # after the last seed, for those who report late


class GivenPort(Port):
    """A connection that is there already; closed, it is gone."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._given: int | None = fd

    def open(self) -> int:
        if self._given is None:
            raise PortError("closed by the host")
        self.fd, self._given = self._given, None
        self._end_is_gone = True
        return self.fd


class TimedPool(KernelPool):
    """Knows when the first bytes, the seed, were credited."""

    credited_ns: int | None = None

    def credit(self, data: bytearray) -> None:
        super().credit(data)
        if self.credited_ns is None and not self.denied:
            self.credited_ns = time.monotonic_ns()


class QuietLog(Log):
    """Hundreds of agents say the same."""

    def line(self, text: str, now_ns: int, priority: int = 0) -> None:
        pass


def serve(number: int, listener: socket.socket, start: int, stop: int, report: int) -> None:
    """One agent's life; ends when the other end of ``stop`` is closed."""

    def tell(what: str, time_ns: int) -> None:
        os.write(report, f"{what} {number} {time_ns}\n".encode())

    def wait(fd: int) -> bool:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(stop, select.POLLIN)
        return stop not in [ready for ready, _ in poll.poll()]

    if not wait(listener.fileno()):
        return
    channel = listener.accept()[0].detach()
    os.set_blocking(channel, False)
    tell("accepted", time.monotonic_ns())
    if not wait(start):
        return
    tell("began", time.monotonic_ns())
    loop, pool = Loop(), TimedPool()
    stopped: list[int] = []
    loop.watch(stop, select.EPOLLIN, stopped.append)
    settings = Settings("kernel", None, DEFAULT_RATE, DEFAULT_WINDOW)
    agent = Agent(settings, loop, GivenPort(channel), KernelSink(pool, settings.rate), pool, QuietLog())
    credited = beyond = denied = False
    while not stopped:
        due_ns = agent.step(time.monotonic_ns())
        if pool.credited_ns is not None and not credited:
            credited = True
            tell("credited", pool.credited_ns)
        if pool.denied and not denied:
            denied = True
            tell("denied", time.monotonic_ns())
        if agent._session.received > MUCH and not beyond:
            beyond = True
            tell("beyond", time.monotonic_ns())
        loop.wait(None if due_ns is None else due_ns - time.monotonic_ns())


class Crowd:
    """All of them, and what they have told."""

    def __init__(self, folder: Path, count: int) -> None:
        self._count = count
        self._told: dict[str, dict[int, int]] = {what: {} for what in TOLD}
        self._start, start = os.pipe()[::-1]
        self._stop, stop = os.pipe()[::-1]
        self._reports, report = os.pipe()
        self._rest = b""
        gc.freeze()  # what is here stays shared with the children
        for number in range(count):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(str(folder / f"agent-{number}.sock"))
                listener.listen(1)
                if os.fork() == 0:
                    for fd in (self._start, self._stop, self._reports):
                        os.close(fd)
                    with contextlib.suppress(KeyboardInterrupt):
                        serve(number, listener, start, stop, report)
                    os._exit(0)
        for fd in (start, stop, report):
            os.close(fd)

    def wait(self, key: str, until_s: float | None = None) -> bool:
        """Until all have told that, standard input has something to say, or ``until_s``; whether all have."""
        while len(self._told[key]) < self._count:
            timeout_s = None if until_s is None else max(0.0, until_s - time.monotonic())
            ready, _, _ = select.select([0, self._reports], [], [], timeout_s)
            if self._reports not in ready:
                return False
            *lines, self._rest = (self._rest + os.read(self._reports, 65536)).split(b"\n")
            for line in lines:
                what, number, time_ns = line.decode().split()
                self._told[what][int(number)] = int(time_ns)
        return True

    def begin(self) -> dict[str, object]:
        """The signal, and what came of it."""
        signal_ns = time.monotonic_ns()
        os.close(self._start)
        if self.wait("credited", time.monotonic() + STORM_S):
            self.wait("beyond", time.monotonic() + LAST_S)
        told = self._told
        return {
            "signal": signal_ns,
            "began": sorted(told["began"].values()),
            "credited": sorted(told["credited"].values()),
            "beyond": sorted(told["beyond"].values()),
            "denied": len(told["denied"]),
        }

    def end(self) -> None:
        os.close(self._stop)
        for _ in range(self._count):
            os.wait()


def _say(line: str) -> None:
    rest = line.encode() + b"\n"
    while rest:  # not print(): what could not be written would be tried again at the end
        rest = rest[os.write(1, rest) :]


def main() -> int:
    crowd = Crowd(Path(sys.argv[1]), int(sys.argv[2]))
    with contextlib.suppress(BrokenPipeError):  # the benchmark was interrupted
        _say("listening")
        if crowd.wait("accepted"):
            _say("accepted")
            if os.read(0, 64):
                _say(json.dumps(crowd.begin()))
    crowd.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
