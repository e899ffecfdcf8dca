# SPDX-License-Identifier: Apache-2.0
"""The way of an event from libvirt's thread into the asyncio loop, and how often it leads to a listing."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterable, Iterator
from typing import Callable


class Inbox:
    """Carries events from libvirt's thread into the loop: one wake-up for however many arrived."""

    def __init__(self, loop: asyncio.AbstractEventLoop, renew: Callable[[str, int], None]) -> None:
        self.loop = loop
        self.lost: str | None = None
        self._renew = renew
        self._lock = threading.Lock()
        self._events: dict[tuple[str, int], bool] = {}
        self._lost: str | None = None
        self._posted = False
        self._shut = False
        self._dirty: set[str] = set()
        self._urgent: set[str] = set()
        self._waited_for: set[str] = set()
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()

    def event(self, uuid: str, number: int, renews: bool, urgent: bool = False) -> None:
        """In libvirt's thread."""
        with self._lock:
            if urgent:
                self._urgent.add(uuid)
            key = (uuid, number)
            self._events[key] = self._events.get(key, False) or renews
            self._post()

    def closed(self, reason: str) -> None:
        """In libvirt's thread."""
        with self._lock:
            self._lost = reason
            self._post()

    def shut(self) -> None:
        """Nothing crosses any more (the loop may be closed next)."""
        with self._lock:
            self._shut = True

    async def wait(self, timeout_s: float) -> bool:
        """Whether something arrived in that time."""
        await self._until(self._wake, timeout_s)
        self._wake.clear()
        return bool(self._dirty) or self.lost is not None

    async def pause(self, pause_s: float, urgent_s: float) -> None:
        """Let more events come for ``pause_s``; but for no longer than ``urgent_s`` after an urgent one."""
        await self._until(self._hurry, pause_s - urgent_s)
        await asyncio.sleep(min(pause_s, urgent_s))

    def take(self) -> set[str]:
        """The UUIDs that had events since the last call."""
        self._wake.clear()  # one that came after wait() has returned is among them
        self._hurry.clear()
        dirty, self._dirty = self._dirty, set()
        return dirty

    def order(self, uuids: Iterable[str]) -> Iterator[str]:
        """``uuids``, and before each of them one that had an urgent event and was not looked at since.

        So a change need not wait for the end of a long listing, and however many there are do not hold it up.
        """
        due = dict.fromkeys(uuids)
        while due:
            if self._waited_for:
                urgent = self._waited_for.pop()
                due.pop(urgent, None)
                yield urgent
            if due:
                uuid = next(iter(due))
                del due[uuid]
                yield uuid

    async def _until(self, event: asyncio.Event, timeout_s: float) -> None:
        # Not asyncio.wait_for: before Python 3.12 a cancellation that comes together with the event is lost.
        timer = self.loop.call_later(timeout_s, event.set)
        try:
            await event.wait()
        finally:
            timer.cancel()

    def _post(self) -> None:
        if not self._posted and not self._shut:
            self._posted = True
            self.loop.call_soon_threadsafe(self._arrive)

    def _arrive(self) -> None:
        with self._lock:
            events, self._events = self._events, {}
            urgent, self._urgent = self._urgent, set()
            self.lost, self._posted = self._lost, False
            if self._shut:
                return
        if urgent:
            self._waited_for |= urgent
            self._hurry.set()
        self._wake.set()
        for (uuid, number), renews in events.items():
            self._dirty.add(uuid)
            if renews:
                self._renew(uuid, number)


class Debounce:
    """How long to wait for more events before the listing that one led to; times are the loop's, in seconds.

    ``first_s``, and twice as long for each that follows within ``max_s`` of a listing, up to ``max_s``.  So a
    guest that goes on making events (it opens and closes its agent's port) costs no more than a listing each
    ``max_s``, while a single event is looked at soon.  An urgent event cuts such a wait short: `Inbox.pause`.
    """

    def __init__(self, first_s: float, max_s: float) -> None:
        self._first_s = self._next_s = first_s
        self._max_s = max_s
        self._listed_s = -math.inf

    def listed(self, now_s: float) -> None:
        """A listing has ended."""
        self._listed_s = now_s

    def pause_s(self, now_s: float) -> float:
        """For the event that was seen just now."""
        if now_s - self._listed_s >= self._max_s:
            self._next_s = self._first_s
        pause_s = self._next_s
        self._next_s = max(self._first_s, min(2 * pause_s, self._max_s))
        return pause_s
