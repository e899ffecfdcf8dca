# SPDX-License-Identifier: Apache-2.0
"""What the agent hands bytes to.  The kernel is here; rngd.py and pipesink.py hold the others.

A sink takes bytes or leaves them and never waits.  ``offer`` returns how many bytes it has in its hands, and
``settle`` how many it has really passed on since the last call: those are acknowledged to the host.
"""

from typing import Optional

from .kernel import MAX_CREDIT, KernelPool
from .wire import SEED_SIZE

STATES = (
    "ok",  # the last bytes were taken
    "starting",  # no bytes taken yet
    "absent",  # there is no rngd in this VM, or nothing at the pipe's path
    "parked",  # rngd left a block untaken for 15 seconds
    "dying",  # rngd ended by itself
    "complaining",  # rngd rejected blocks
    "no-permission",  # the kernel credits nothing, because the agent is not root or is confined
    "waiting-for-reader",  # nobody reads the pipe, or its reader is slow
    "failed",  # the sink cannot be written to; the detail says why
)


class Sink:
    """A sink that takes nothing."""

    name = ""
    piece = 1  # bytes that it takes at once
    waits_for_seed = False  # its ``tick`` may take seconds, which the kernel's seed must not wait for

    def __init__(self) -> None:
        self.state = "starting"
        self.detail = ""
        self._passed_on = 0

    @property
    def needed(self) -> int:
        """Bytes without which the next ``offer`` will be refused; 0 for a sink that is not particular."""
        return 0

    def offer(self, data: memoryview, now_ns: int) -> int:
        """Takes bytes from the front of ``data``, as many as it can now; the caller overwrites those."""
        raise NotImplementedError

    def settle(self) -> int:
        """How many bytes were passed on since the last call."""
        n, self._passed_on = self._passed_on, 0
        return n

    def tick(self, now_ns: int) -> None:
        """Does what is due."""

    def next_ns(self) -> Optional[int]:
        """When ``tick`` or ``offer`` should be called again, if nothing else happens."""
        return None

    def flush(self, now_ns: int) -> None:
        """Overwrites the bytes in its hands: their session is over."""

    def stop(self) -> None:
        """Ends; may take three seconds."""

    def _say(self, state: str, detail: str = "") -> None:
        self.state, self.detail = state, detail


class KernelSink(Sink):
    """Credits the kernel's pool with what comes, 64 to 512 bytes in a call."""

    name = "kernel"

    def __init__(self, pool: KernelPool, rate: Optional[int]) -> None:
        super().__init__()
        self._pool = pool
        self.piece = min(max(rate or MAX_CREDIT, SEED_SIZE), MAX_CREDIT)

    def offer(self, data: memoryview, now_ns: int) -> int:
        if len(data) < SEED_SIZE:
            return 0
        size = min(len(data), MAX_CREDIT)
        if 0 < len(data) - size < SEED_SIZE:
            size = len(data) - SEED_SIZE  # else the rest would have to wait for more
        piece = bytearray(data[:size])
        try:
            self._pool.credit(piece)
        except OSError as error:
            self._say("failed", "{}".format(error.strerror))
            return 0
        finally:
            piece[:] = bytes(len(piece))
        self._pool.reseed()
        self._passed_on += len(piece)
        if self._pool.denied:
            self._say("no-permission", self._pool.denied)
        else:
            self._say("ok")
        return len(piece)

    def stop(self) -> None:
        self._pool.close()
