# SPDX-License-Identifier: Apache-2.0
"""What the reader's thread tells the event loop, and its way there."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from netrng_hostd.core.health import Alarm

Call = tuple[Callable[..., None], tuple[object, ...]]


@dataclass(frozen=True)
class Delivery:
    """What one read came to, in bytes.

    ``read == len(released) + discarded + conditioned + (held - held before)``.
    """

    read: int
    released: bytearray = field(repr=False)
    discarded: int
    held: int
    alarm: Alarm | None = None
    conditioned: int = 0


@dataclass(frozen=True)
class SourceState:
    """One of the source states of docs/operating.md, with a line for a person."""

    name: str
    detail: str = ""


class Outbox:
    """From the thread to the loop, in order, until it is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[Delivery], None]) -> None:
        self._loop = loop
        self._deliver = deliver
        self._lock = threading.Lock()  # between the thread that sends and the loop that closes
        self._closed = False
        self._on_their_way: deque[Call] = deque()

    def send(self, delivery: Delivery) -> bool:
        """From the thread; False, and it is wiped, when nobody takes it any more."""
        taken = self.post(self._deliver, delivery)
        if not taken:
            _wipe(delivery)
        return taken

    def post(self, callback: Callable[..., None], *args: object) -> bool:
        """Has ``callback`` called in the loop; False when nobody is there any more."""
        with self._lock:
            if self._closed:
                return False
            self._on_their_way.append((callback, args))
            try:
                self._loop.call_soon_threadsafe(self._call_next)
            except RuntimeError:  # the loop has closed
                self._wipe()
            return not self._closed

    def close(self) -> None:
        """From now on nothing arrives: what was sent and has not arrived is wiped."""
        with self._lock:
            self._wipe()

    def _wipe(self) -> None:
        self._closed = True
        for _, args in self._on_their_way:
            for item in args:
                _wipe(item)
        self._on_their_way.clear()

    def _call_next(self) -> None:
        with self._lock:
            if not self._on_their_way:
                return
            callback, args = self._on_their_way.popleft()
        callback(*args)


def _wipe(item: object) -> None:
    if isinstance(item, Delivery):
        item.released[:] = bytes(len(item.released))
