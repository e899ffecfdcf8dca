# SPDX-License-Identifier: Apache-2.0
"""What the reader's thread tells the event loop, and its way there."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from netrng_hostd.core.health import Alarm


@dataclass(frozen=True)
class Delivery:
    """What one read came to.  ``read == len(released) + discarded + (held - held before)``, in bytes."""

    read: int
    released: bytearray = field(repr=False)
    discarded: int
    held: int
    alarm: Alarm | None


@dataclass(frozen=True)
class SourceState:
    """One of the source states of docs/operating.md, with a line for a person."""

    name: str
    detail: str = ""


class Outbox:
    """From the thread to the loop, in order; what the loop never comes to can still be wiped."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[Delivery], None]) -> None:
        self._loop = loop
        self._deliver = deliver
        self._on_their_way: deque[Delivery] = deque()

    def send(self, delivery: Delivery) -> bool:
        """From the thread; False when the loop has closed."""
        self._on_their_way.append(delivery)
        return self.post(self._deliver_next)

    def post(self, callback: Callable[..., None], *args: object) -> bool:
        """Has ``callback`` called in the loop; False when that has closed, and then all is wiped."""
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            self.wipe()
            return False
        return True

    def wipe(self) -> None:
        """Of what was sent, the loop gets nothing more."""
        with contextlib.suppress(IndexError):  # empty
            while True:
                released = self._on_their_way.popleft().released
                released[:] = bytes(len(released))

    def _deliver_next(self) -> None:
        if self._on_their_way:
            self._deliver(self._on_their_way.popleft())
