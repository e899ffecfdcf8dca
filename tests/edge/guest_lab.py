# SPDX-License-Identifier: Apache-2.0
"""What the tests of the agent share: a host at the other end, a clock of their own, waiting with a deadline.

The host's bytes can be recognised: the n-th 16-byte block of its stream is a digest of n.
"""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from netrng_guest.agent import Agent
from netrng_guest.config import Settings
from netrng_guest.kernel import KernelPool
from netrng_guest.log import Log
from netrng_guest.loop import Loop
from netrng_guest.port import Port
from netrng_guest.sink import KernelSink, Sink
from netrng_hostd.channels.session import Acked, AgentStatus, Ended, HostSession, Lost, Opened, Violation

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the kernel's pool takes credit from root alone")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

DEADLINE_S = 60.0
BLOCK = 16


def stream(start: int, size: int) -> bytes:
    """Bytes [start, start + size) of the recognisable stream."""
    first, last = start // BLOCK, (start + size) // BLOCK + 1
    blocks = b"".join(hashlib.blake2b(b"%d" % n, digest_size=BLOCK).digest() for n in range(first, last))
    return blocks[start - first * BLOCK :][:size]


def until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Waits for ``condition``, looking every 10 ms; AssertionError after the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        time.sleep(0.01)


class Host:
    """The other half of a channel: speaks HostSession on ``link`` and gives what is asked, off the stream.

    Writes at most ``chop`` bytes at a time; ``spent`` counts the bytes of the stream.
    """

    def __init__(
        self,
        link: int,
        *,
        max_window: int = 65536,
        chop: int = 1 << 20,
        sample: int = 512,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.clock = clock
        self.link = link
        self.session = HostSession(lambda: os.urandom(8), max_window)
        self.chop = chop
        self.sample = sample
        self.spent = 0
        self.paused = False
        self.events: list[object] = []
        self.statuses: list[dict[str, object]] = []
        self._output = bytearray()
        os.set_blocking(link, False)
        self.session.renew(self.clock())

    def turn(self, timeout_s: float = 0.01) -> bool:
        """One round of reading and writing; False once the guest hung up."""
        self._fill()
        wanted = select.POLLIN | (select.POLLOUT if self._output else 0)
        poll = select.poll()
        poll.register(self.link, wanted)
        poll.poll(timeout_s * 1000)
        try:
            data = os.read(self.link, 65536)
            if not data:
                return False
            self._note(self.session.receive(data, self.clock()))
        except BlockingIOError:
            pass
        except OSError:
            return False
        self.session.tick(self.clock())
        self._fill()
        try:
            while self._output:
                n = os.write(self.link, self._output[: self.chop])
                del self._output[:n]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def until(self, condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
        """Turns until ``condition`` holds."""
        end = time.monotonic() + deadline_s
        while not condition():
            self.turn()
            if time.monotonic() > end:
                raise AssertionError(
                    f"not within {deadline_s} s: {what}; {self.session.state}, {self.status}"
                )

    def renew(self) -> None:
        """A new session, as after a restore."""
        self._output.clear()
        self.session.renew(self.clock())

    def kinds(self, kind: type) -> list[object]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def status(self) -> dict[str, object]:
        return self.statuses[-1] if self.statuses else {}

    def _note(self, events: Sequence[object]) -> None:
        for event in events:
            self.events.append(event)
            if isinstance(event, AgentStatus):
                self.statuses.append(dict(event.status))
            assert not isinstance(event, Violation), event

    def _fill(self) -> None:
        self._output += self.session.take_output()
        while not self.paused and self.session.state == "open" and len(self._output) < 65536:
            size = min(self.session.wanted_seed + self.session.wanted, self.sample)
            if not size:
                break
            self._output += self.session.sample(bytearray(stream(self.spent, size)))
            self.spent += size


class FakePool(KernelPool):
    """Remembers what the kernel would have been given."""

    def __init__(self, error: OSError | None = None, denied: str = "") -> None:
        super().__init__("/nonexistent")
        self.given = bytearray()
        self.reseeds = 0
        self.can_reseed = True
        self.error = error
        self._deny = denied

    def credit(self, data: bytearray) -> None:
        if self.error is not None:
            raise self.error
        self.denied = self._deny
        self.given += data

    def reseed(self) -> bool:
        self.reseeds += 1
        return self.can_reseed


class Rig:
    """An agent and a host in one thread, on a clock that only ``pass_s`` moves."""

    def __init__(
        self,
        folder: Path,
        make_sink: Callable[[Loop], Sink] | None = None,
        *,
        rate: int | None = 100,
        window: int = 4096,
        chop: int = 1 << 20,
        max_window: int = 65536,
        pool: FakePool | None = None,
        uevents: socket.socket | None = None,
    ) -> None:
        self.now_ns = 1_000_000_000_000
        self.pool = pool or FakePool()
        self.loop = Loop()
        self.sink = make_sink(self.loop) if make_sink else KernelSink(self.pool, rate)
        settings = Settings(self.sink.name, self.make_channel(folder), rate, window)
        port = Port(settings.channel)
        self.agent = Agent(settings, self.loop, port, self.sink, self.pool, Log(), uevents)
        self.agent.step(self.now_ns)
        self.host = self.accept(chop=chop, max_window=max_window)
        self._stopped = False

    def make_channel(self, folder: Path) -> str:
        """The path of the guest's end."""
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(folder / "channel"))
        self.listener.listen(4)
        self.listener.settimeout(DEADLINE_S)
        return str(folder / "channel")

    def remove_channel(self) -> None:
        self.listener.close()

    def accept(self, *, chop: int = 1 << 20, max_window: int = 65536) -> Host:
        link, _ = self.listener.accept()
        return Host(link.detach(), chop=chop, max_window=max_window, clock=lambda: self.now_ns)

    def turn(self) -> int | None:
        """Both ends once; when the agent wants to be called again."""
        due_ns = self.agent.step(self.now_ns)
        self.loop.wait(0)
        self.host.turn(0)
        return due_ns

    def settle(self, rounds: int = 60) -> None:
        for _ in range(rounds):
            self.turn()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Turns, in real time, without moving the clock."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            self.turn()
            time.sleep(0.001)
            if time.monotonic() > end:
                raise AssertionError(
                    f"{what}: {self.sink.state}, {self.sink.detail}, {self.host.session.state}"
                )

    def pass_s(self, seconds: float) -> None:
        """Moves the clock in steps of at most half a second, both ends following."""
        end_ns = self.now_ns + int(seconds * 1e9)
        while self.now_ns < end_ns:
            self.now_ns = min(self.now_ns + 500_000_000, end_ns)
            self.settle(4)

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self.agent.stop(self.now_ns)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.loop.close()
        self.remove_channel()
        os.close(self.host.link)


@contextmanager
def listening(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "channel"))
        listener.listen(4)
        listener.settimeout(DEADLINE_S)
        yield listener


__all__ = [
    "BLOCK",
    "DEADLINE_S",
    "Acked",
    "Ended",
    "FakePool",
    "Host",
    "Lost",
    "Opened",
    "Rig",
    "Violation",
    "listening",
    "stream",
    "until",
]
