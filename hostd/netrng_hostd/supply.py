# SPDX-License-Identifier: Apache-2.0
"""From the sources' readers to the reservoir, by the policy, and the books on that side.

Sources that serve may read as far as there is room. The others read in probes alone (reader.py), whose bytes
are thrown away; so they are known to be healthy when they are needed.

Everything here runs in the event loop's thread; nothing here waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from netrng_hostd.core.health import Alarm
from netrng_hostd.core.ledger import Ledger, Origin
from netrng_hostd.core.mixer import Mixer
from netrng_hostd.core.policy import COMBINE, FAILOVER, XOR, Standing, serving
from netrng_hostd.core.reservoir import Reservoir
from netrng_hostd.sources.reader import MAX_READ, Delivery, SourceReader

log = logging.getLogger("netrng.source")

UNTOLD = Alarm("unknown test", "in the read before one that did not return")
MIX_BYTES = 2 * MAX_READ  # what may wait, of each source, for the others to have as much


@dataclass
class _Feed:
    """One source: its present reader, and what that has delivered."""

    reader: SourceReader | None = None
    read: int = 0
    alarms: int = 0
    held: int = 0
    given: bool = False  # whether bytes of it went to the reservoir since its last alarm


class Supply:
    """``alarmed`` is called when what was not sent yet may be of a source that failed; ``filled`` after each
    delivery and each change of those that serve, to give away what is here and then `allow` more; ``kept``
    says how many bytes reservations rest on (Scheduler.kept).
    """

    def __init__(
        self, names: Sequence[str], policy: str, min_sources: int, reservoir: Reservoir, ledger: Ledger
    ) -> None:
        self.policy = policy
        self.reservoir = reservoir
        self.ledger = ledger
        self.serving: Origin = ()
        self.alarmed: Callable[[], None] = lambda: None
        self.filled: Callable[[], None] = self.allow
        self.kept: Callable[[], int] = lambda: 0
        self._min_sources = min_sources
        self._feeds = {name: _Feed() for name in names}
        self._mixer = Mixer(MIX_BYTES)
        self._capacity: int | None = None
        self._told: Origin | None = None  # those that serve, as the log has it; None: it has nothing yet
        self._stopped = False

    @property
    def withheld(self) -> bool:
        """Whether nothing may be given out now, not even of what is here.

        Too few sources are healthy for a mix; or an alarm's delivery is on its way, which will destroy it.
        """
        if self.policy == XOR and not self.serving:
            return True
        return any(
            feed.reader is not None and feed.reader.alarms > feed.alarms for feed in self._feeds.values()
        )

    @property
    def held(self) -> dict[str, int]:
        """Each source's bytes that wait in the vetting or for their mixing."""
        return {name: feed.held + self._mixer.held(name) for name, feed in self._feeds.items()}

    @property
    def read_size(self) -> int:
        """How much one read brings at present, in vetted bytes, of the source that brings most at a time."""
        readers = [self._feeds[name].reader for name in self.serving]
        sizes = (reader.vetting.output_of(reader.read_size) for reader in readers if reader is not None)
        return max(sizes, default=0)

    @property
    def sharers(self) -> int:
        """How many sources share the reservoir's room."""
        return max(1, len(self.serving)) if self.policy == COMBINE else 1

    @property
    def capacity(self) -> int | None:
        """What the sources that serve give together, in vetted bytes per second, as far as it was measured.

        While none serves, what it was.
        """
        rates = [rate for name in self.serving if (rate := self.capacity_of(name)) is not None]
        if rates:
            self._capacity = sum(rates) if self.policy == COMBINE else min(rates)
        return self._capacity

    def capacity_of(self, name: str) -> int | None:
        """What one source gives, in vetted bytes per second."""
        reader = self._feeds[name].reader
        rate = reader.capacity.rate if reader is not None else None
        return None if reader is None or rate is None else reader.vetting.output_of(rate)

    def attach(self, name: str, reader: SourceReader) -> None:
        """``reader`` reads this source from now on."""
        feed = self._feeds[name]
        feed.reader, feed.read, feed.alarms = reader, 0, 0
        self.allow()

    def detach(self, name: str) -> None:
        """Its reader has been stopped: what that held is gone."""
        feed = self._feeds[name]
        self.ledger.discarded(name, feed.held)
        reader, held = feed.reader, feed.held
        feed.reader, feed.held = None, 0
        if reader is not None and reader.alarms > feed.alarms:  # its delivery was on its way, and is wiped
            self._alarm(name, feed, UNTOLD, held)

    def review(self, standings: Sequence[Standing]) -> None:
        """What is known of the sources has changed; ``standings`` are in the order of the configuration."""
        chosen = serving(self.policy, self._min_sources, standings, self.serving)
        changed, self.serving = chosen != self.serving, chosen
        if len(self._feeds) > 1:
            self._tell(standings)
        if not changed:
            return
        if self.policy == XOR:
            self._mix_only(chosen)
            self._mix()  # what waited for a source that has left alone waits for nobody now
        self.filled()

    def deliver(self, name: str, delivery: Delivery) -> None:
        """What one read of the source came to; see Delivery."""
        released = delivery.released
        try:
            if self._stopped:
                return
            feed = self._feeds[name]
            feed.read += delivery.read
            feed.held = delivery.held
            self.ledger.read(name, delivery.read)
            self.ledger.discarded(name, delivery.discarded)
            self.ledger.conditioned(name, delivery.conditioned)
            if delivery.alarm is not None:
                self._alarm(name, feed, delivery.alarm, delivery.discarded)
            elif released:
                self._accept(name, released)
        finally:
            released[:] = bytes(len(released))
        self.filled()

    def allow(self) -> None:
        """Lets the readers read as far as there is room; to be called when some was made."""
        room, stored = self.reservoir.room, self.reservoir.available
        sharers = self.sharers
        for name, feed in self._feeds.items():
            reader = feed.reader
            if reader is None:
                continue
            if name not in self.serving:
                reader.allow(0)
                continue
            if self.policy == XOR:
                # What waits of it needs room as well: it may all be mixed at once, when another one leaves.
                own, replaceable = min(room - self._mixer.held(name), self._mixer.room(name)), 0
            else:
                own, replaceable = room // sharers, stored // sharers
            noise_for = reader.vetting.noise_for
            reader.allow(feed.read + noise_for(own) - feed.held, noise_for(replaceable))

    def stop(self) -> None:
        """Nothing more is taken; what is here is destroyed."""
        self._stopped = True
        self._book_destroyed(self.reservoir.destroy())
        self._mix_only(())
        for feed in self._feeds.values():
            feed.reader = None

    def _book_destroyed(self, gone: dict[Origin, int]) -> None:
        """Of the reservoir's bytes."""
        for origin, n_bytes in gone.items():
            self.ledger.destroyed(origin, n_bytes)

    def _mix_only(self, origin: Origin) -> None:
        """What waits of others is destroyed."""
        for name, n_bytes in self._mixer.use(origin).items():
            self.ledger.destroyed((name,), n_bytes)

    def _accept(self, name: str, released: bytearray) -> None:
        if name not in self.serving:
            self.ledger.destroyed((name,), len(released))
        elif self.policy == XOR:
            rest = len(released) - self._mixer.put(name, released)
            self.ledger.destroyed((name,), rest)  # the last read after it was allowed less
            self._mix()
        else:
            self._store(released, (name,))

    def _mix(self) -> None:
        mixed = self._mixer.take()
        if mixed:
            self._store(mixed, self.serving)
            mixed[:] = bytes(len(mixed))

    def _store(self, vetted: bytearray, origin: Origin) -> None:
        excess = len(vetted) - self.reservoir.room
        if excess > 0:  # a probe's, or the last read after it was allowed less
            self._book_destroyed(self.reservoir.drop_oldest(excess))
        stored = self.reservoir.put(vetted, origin, self.kept())
        self.ledger.destroyed(origin, len(vetted) - stored)  # more than all but the seed reserve has room for
        for name in origin:
            self._feeds[name].given = True

    def _alarm(self, name: str, feed: _Feed, alarm: Alarm, discarded: int) -> None:
        """What passed before the alarm came from a source that may have been failing already."""
        feed.alarms += 1
        gone = self.reservoir.destroy(name)
        self._book_destroyed(gone)
        waiting = self._mixer.destroy(name) if self._mixer.held(name) else 0
        self.ledger.destroyed((name,), waiting)
        log.warning(
            "source %s: health test alarm: %s: %s; %d bytes not yet handed out are destroyed",
            name, alarm.test, alarm.detail, discarded + waiting + sum(gone.values()),
        )  # fmt: skip
        if feed.given:
            feed.given = False
            self.alarmed()

    def _tell(self, standings: Sequence[Standing]) -> None:
        """Says in the log who serves, where that is news. One in its start-up test has given nothing yet."""
        healthy = {standing.name for standing in standings if standing.healthy}
        told, now = self._told, tuple(name for name in self.serving if name in healthy)
        begins = told is None and any(standing.starting for standing in standings)
        if now == told or (not now and begins):
            return
        self._told = now
        names = {FAILOVER: "the source", COMBINE: "the sources", XOR: "the mix of"}[self.policy]
        order = list(self._feeds)
        if now:
            better = not told or set(told) <= set(now) or order.index(now[0]) < order.index(told[0])
            level = logging.INFO if better else logging.WARNING
            prngs = {standing.name for standing in standings if standing.prng}
            called = ", ".join(name + " (PRNG)" * (name in prngs) for name in now)
            log.log(level, "%s: VMs are served from %s %s", self.policy, names, called)
        elif self.policy == XOR:
            credited = [standing for standing in standings if standing.credit]
            log.warning(
                "xor: nothing is given out: of %d sources that count %d are healthy, and %d are needed",
                len(credited), sum(standing.healthy for standing in credited), self._min_sources,
            )  # fmt: skip
        else:
            log.warning("%s: no source is healthy: VMs get what is in store, then nothing", self.policy)
