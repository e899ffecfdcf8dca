# SPDX-License-Identifier: Apache-2.0
"""What the tests of the guest's agent share: a host at the other end of the channel, and waiting with a deadline.

The host's bytes can be recognised: the n-th 16-byte block of its stream is a digest of n.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from netrng_hostd.channels.session import Acked, AgentStatus, Ended, HostSession, Lost, Opened, Violation

DEADLINE_S = 20.0
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
    """Half of a channel: speaks HostSession on ``link`` and grants whatever is asked, in the order of the stream.

    ``chop`` writes at most that many bytes at a time.  ``spent`` counts the stream; ``given`` holds where each
    session's bytes began.
    """

    def __init__(self, link: int, *, max_window: int = 65536, chop: int = 1 << 20, sample: int = 512) -> None:
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
        self.session.renew(time.monotonic_ns())

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
            self._note(self.session.receive(data, time.monotonic_ns()))
        except BlockingIOError:
            pass
        except OSError:
            return False
        self.session.tick(time.monotonic_ns())
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
                    f"not within {deadline_s} s: {what}; {self.session.state}, {self.statuses[-1:]}"
                )

    def renew(self) -> None:
        """A new session, as after a restore."""
        self._output.clear()
        self.session.renew(time.monotonic_ns())

    def kinds(self, kind: type) -> list[object]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def status(self) -> dict[str, object]:
        return self.statuses[-1] if self.statuses else {}

    def _note(self, events: list[object]) -> None:
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
    "Host",
    "Lost",
    "Opened",
    "Violation",
    "listening",
    "stream",
    "until",
]
