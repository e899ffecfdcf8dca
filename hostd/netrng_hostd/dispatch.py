# SPDX-License-Identifier: Apache-2.0
"""Gives each vetted byte to exactly one domain: reservoir → scheduler → channel, and keeps the books of it.

Everything here runs in the event loop's thread; nothing here waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from netrng_hostd.core.bucket import NS_PER_S
from netrng_hostd.core.domain import MIN_SAMPLE, SEED_SIZE
from netrng_hostd.core.granularity import sample_size
from netrng_hostd.core.health import BYTE_WINDOW, STARTUP
from netrng_hostd.core.quota import Quota
from netrng_hostd.core.scheduler import Scheduler
from netrng_hostd.supply import Supply

log = logging.getLogger("netrng.dispatch")

BATCH = 64  # samples between two turns of the event loop
# Deliveries in which reservations are paid out of what is kept: twice one, for one that is late.
GAPS = 2


class Outlet(Protocol):
    """A Channel, or an EgdServer, as it is seen from here; by UUID several share one quota."""

    @property
    def acknowledges(self) -> bool: ...
    @property
    def wanted(self) -> tuple[int, int]: ...
    @property
    def sent(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    def send_sample(self, data: bytearray) -> None: ...
    def destroy_unsent(self) -> None: ...


def account(uuid: str, acknowledges: bool) -> str:
    """Whose the bytes are in the ledger: a domain's agent and its virtio-rng are counted apart."""
    return uuid if acknowledges else f"{uuid} by EGD"


class Dispatcher:
    """Implements the channels' Recipient, and gives them what ``supply`` brings."""

    def __init__(self, supply: Supply, scheduler: Scheduler) -> None:
        self.supply = supply
        self.reservoir = supply.reservoir
        self.scheduler = scheduler
        self.ledger = supply.ledger
        supply.filled = self._pump
        supply.alarmed = self._destroy_unsent
        supply.kept = lambda: scheduler.kept
        self.seeds: dict[str, int] = {}  # seeds begun, per domain
        self._uuid_of: dict[Outlet, str] = {}
        self._channels: dict[str, list[Outlet]] = {}
        self._changed: set[str] = set()  # whose channels may want something else than the scheduler knows
        self._pumping = False
        self._pump_due: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def adapt(self, rate: int | None, max_sample: int) -> None:
        """To what the source gives, in bytes per second (None: not known), and to how many ask.

        Call it about twice a second.
        """
        self._tell_wants(time.monotonic_ns())
        scheduler = self.scheduler
        size = sample_size(rate, scheduler.askers, scheduler.sample_size, max_sample)
        if size != scheduler.sample_size:
            scheduler.sample_size = size
        # A source's bytes come a test window at a time, or a whole read where that is more.
        read_size = self.supply.read_size
        # With less than a start-up's bytes of room beside those kept, a source could never begin anew, and
        # with less than for a read, and what the tests hold, it would be read once a second.
        room = self.supply.sharers * max(STARTUP, read_size + BYTE_WINDOW)
        most = max(0, self.reservoir.general_size - room - MIN_SAMPLE - SEED_SIZE)
        kept_ns = most * NS_PER_S // max(1, scheduler.reserved)
        gap_bytes = GAPS * max(BYTE_WINDOW, read_size)
        scheduler.gap_ns = min(gap_bytes * NS_PER_S // rate, kept_ns) if rate else 0

    def add(self, uuid: str, channel: Outlet, quota: Quota) -> None:
        """``channel`` serves the domain ``uuid`` from now on; it may have several (a migration, clones)."""
        self.scheduler.set_quota(uuid, quota, time.monotonic_ns())
        self._uuid_of[channel] = uuid
        self._channels.setdefault(uuid, []).append(channel)

    def remove(self, channel: Outlet) -> None:
        """The channel is closed and gone."""
        uuid = self._uuid_of.pop(channel)
        channels = self._channels[uuid]
        channels.remove(channel)
        if not any(other.acknowledges == channel.acknowledges for other in channels):
            self.ledger.forget(account(uuid, channel.acknowledges))
        if channels:
            self._changed.add(uuid)
            self._pump_soon()
            return
        del self._channels[uuid]
        self._changed.discard(uuid)
        now_ns = time.monotonic_ns()
        self.scheduler.want(uuid, 0, 0, now_ns)
        self.scheduler.forget(uuid, now_ns)
        self.seeds.pop(uuid, None)

    def set_quota(self, uuid: str, quota: Quota) -> None:
        self.scheduler.set_quota(uuid, quota, time.monotonic_ns())
        self._pump_soon()

    def available(self) -> int:
        """Bytes that are there for whoever asks, seeds aside."""
        return self.reservoir.available

    def wants_changed(self, channel: Outlet) -> None:
        uuid = self._uuid_of.get(channel)
        if uuid is not None:
            self._changed.add(uuid)
            self._pump_soon()

    def acked(self, channel: Outlet, n_bytes: int) -> None:
        self.ledger.acked(self._uuid_of[channel], n_bytes)

    def lost(self, channel: Outlet, n_bytes: int) -> None:
        self.ledger.lost(self._uuid_of[channel], n_bytes)

    def stop(self) -> None:
        """No more samples; what is stored is destroyed."""
        for handle in (self._pump_due, self._timer):
            if handle is not None:
                handle.cancel()
        self._pump_due = self._timer = None
        self._stopped = True
        self.supply.stop()

    def check(self) -> None:
        """Raises LedgerError unless every byte ever read is accounted for, by the sessions' count as well."""
        in_flight: dict[str, int] = {}
        for channel, uuid in self._uuid_of.items():
            own = account(uuid, channel.acknowledges)
            in_flight[own] = in_flight.get(own, 0) + channel.in_flight
        self.ledger.check(self.supply.held, self.reservoir.stored, in_flight)

    def _serving(self, uuid: str) -> tuple[Outlet | None, int, int]:
        """Of a domain's channels that ask, the next in turn, seeds first, and what it wants: (seed, body).

        So two clones share what is theirs.
        """
        found: tuple[Outlet | None, int, int] = None, 0, 0
        for channel in self._channels[uuid]:
            seed, body = channel.wanted
            if (seed and not found[1]) or (body and found[0] is None):
                found = channel, seed, body
        return found

    def _tell_wants(self, now_ns: int) -> None:
        """Once for all that was heard since the last time: often that is several words of one domain."""
        while self._changed:
            uuid = self._changed.pop()
            _, seed, body = self._serving(uuid)
            self.scheduler.want(uuid, seed, body, now_ns)

    def _destroy_unsent(self) -> None:
        for channel in list(self._uuid_of):
            channel.destroy_unsent()

    def _pump_soon(self) -> None:
        if self._pump_due is None and not self._pumping:
            self._pump_due = asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Hands out what may be handed out now; comes back by itself when time alone changes that."""
        if self._pump_due is not None:
            self._pump_due.cancel()
            self._pump_due = None
        now_ns = time.monotonic_ns()  # once: to ask is a system call under Xen
        self._pumping = True
        try:
            more = all(self._send_one(now_ns) for _ in range(BATCH))
        finally:
            self._pumping = False
        if more:
            self._pump_soon()
        else:
            self._wake_when_due(now_ns)
        self.supply.allow()

    def _send_one(self, now_ns: int) -> bool:
        if self._changed:
            self._tell_wants(now_ns)
        if self._stopped or self.supply.withheld:
            return False
        reservoir = self.reservoir
        pick = self.scheduler.pick(now_ns, reservoir.available, reservoir.seed_available)
        if pick is None:
            return False
        channel, seed, body = self._serving(pick.uuid)
        if channel is None or pick.n_bytes > seed + body:
            # It stopped asking without a word: its turn is over, and the others' goes on.
            self.scheduler.want(pick.uuid, seed, body, now_ns)
            return True
        sample, parts = reservoir.take(pick.n_bytes, pick.from_seed_reserve)
        # Booked before it is sent: if the write finds the channel dead, these bytes are lost, not unsent.
        own = account(pick.uuid, channel.acknowledges)
        for part in parts:
            self.ledger.sent(own, part.n, part.origin)
        if not channel.acknowledges:
            self.ledger.unconfirmed(own, pick.n_bytes)
        if seed and not channel.sent:  # out of whatever bucket: a second seed in a minute comes by weight
            self.seeds[pick.uuid] = self.seeds.get(pick.uuid, 0) + 1
        turns = self._channels[pick.uuid]
        turns.remove(channel)
        turns.append(channel)
        channel.send_sample(sample)
        if pick.uuid in self._channels:
            self._changed.add(pick.uuid)
        return True

    def _wake_when_due(self, now_ns: int) -> None:
        """``now_ns`` is when nothing was to be sent; a later one would miss what fell due since."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_ns = self.scheduler.next_ns(now_ns)
        # What was due already waits for bytes, and the next delivery comes here by itself.
        if due_ns is not None and due_ns > now_ns:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later((due_ns - now_ns) / 1e9, self._pump)
