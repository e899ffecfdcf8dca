# SPDX-License-Identifier: Apache-2.0
"""The ledger: where every byte that was ever read has gone. Counts only, in bytes.

Per source:  read = discarded + held before the reservoir + stored in the reservoir + sent
Per domain:  sent = acknowledged + lost + unconfirmed + in flight, and sent = the sum over its origins

*Unconfirmed* is what went to one who acknowledges nothing (EGD has no such word): nobody here will ever know
what became of it, so it is neither acknowledged nor lost.

Every vetted byte has an *origin*: the names of the sources that went into it, one, or several where they are
mixed. A mixed byte is stored, sent or destroyed once for each of its sources.

A posting that would break one of these is refused with LedgerError and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

Origin = tuple[str, ...]


class LedgerError(Exception):
    """Counts that cannot be: a mistake in the program, never in a guest's input. The text has counts only."""


class SourceCount(NamedTuple):
    """One source.

    `destroyed`: the part of `discarded` that had been vetted; `conditioned`: the part that conditioning
    compressed away; `sent`: to domains.
    """

    read: int
    discarded: int
    destroyed: int
    conditioned: int
    sent: int


class DomainCount(NamedTuple):
    """One domain; `sent` is the sum of the others."""

    sent: int
    acked: int
    lost: int
    in_flight: int
    unconfirmed: int = 0


class Totals(NamedTuple):
    """All sources and all domains, vanished ones included; `sent` counts a mixed byte once."""

    read: int
    discarded: int
    sent: int
    acked: int
    lost: int
    in_flight: int
    unconfirmed: int = 0


class Ledger:
    """Postings are constant-time; one is made for every read and every sample."""

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}
        self._domains: dict[str, _Domain] = {}
        self._read = self._discarded = 0  # all sources
        self._all = _Domain()  # all domains, vanished ones included

    def read(self, source: str, n: int) -> None:
        """The source gave n noise bytes."""
        if n < 0:
            raise LedgerError(f"source {source}: read {n} bytes")
        self._source(source).read += n
        self._read += n

    def discarded(self, source: str, n: int) -> None:
        """n of the source's bytes were thrown away before they were vetted."""
        self._discard(source, n)

    def conditioned(self, source: str, n: int) -> None:
        """n of the source's bytes were compressed away by conditioning: they count as discarded."""
        self._discard(source, n)
        self._source(source).conditioned += n

    def destroyed(self, origin: Origin, n: int) -> None:
        """n vetted bytes of that origin were destroyed unsent: they count as discarded."""
        left = min(self.left(name) for name in origin)
        if not 0 <= n <= left:
            raise LedgerError(f"origin {'+'.join(origin)}: destroyed {n} bytes where {left} are left")
        for name in origin:
            self._discard(name, n)
            self._source(name).destroyed += n

    def sent(self, uuid: str, n: int, origin: Origin) -> None:
        """n bytes of that origin left the reservoir for the domain: they are in flight."""
        left = min(self.left(name) for name in origin)
        if not 0 <= n <= left:
            raise LedgerError(f"domain {uuid}: sent {n} bytes where {left} are left")
        domain = self._domains.get(uuid)
        if domain is None:
            domain = self._domains[uuid] = _Domain()
        for name in origin:
            self._source(name).sent += n
        domain.sent += n
        domain.origins[origin] = domain.origins.get(origin, 0) + n
        self._all.sent += n

    def left(self, source: str) -> int:
        """How many of the source's bytes are neither discarded nor sent."""
        count = self.source(source)
        return count.read - count.discarded - count.sent

    def acked(self, uuid: str, n: int) -> None:
        """n of the bytes in flight were taken by the domain's sink."""
        self._in_flight(uuid, n, "acknowledged").acked += n
        self._all.acked += n

    def lost(self, uuid: str, n: int) -> None:
        """n of the bytes in flight will never be acknowledged."""
        self._in_flight(uuid, n, "lost").lost += n
        self._all.lost += n

    def unconfirmed(self, uuid: str, n: int) -> None:
        """n of the bytes in flight went where nothing is acknowledged."""
        self._in_flight(uuid, n, "unconfirmed").unconfirmed += n
        self._all.unconfirmed += n

    def forget(self, uuid: str) -> int:
        """The domain has vanished: its counts live on in the totals alone.

        What was still in flight is lost; returns how much. 0 for a domain that was never sent anything.
        """
        domain = self._domains.pop(uuid, None)
        if domain is None:
            return 0
        self._all.lost += domain.in_flight
        return domain.in_flight

    def in_flight(self, uuid: str) -> int:
        """Bytes sent to the domain of which neither is known yet."""
        return self.domain(uuid).in_flight

    def source(self, name: str) -> SourceCount:
        """All zero for a source that was never posted to."""
        source = self._sources.get(name) or _Source()
        return SourceCount(source.read, source.discarded, source.destroyed, source.conditioned, source.sent)

    def domain(self, uuid: str) -> DomainCount:
        """All zero for a domain that was never sent anything, or is forgotten."""
        domain = self._domains.get(uuid) or _Domain()
        return DomainCount(domain.sent, domain.acked, domain.lost, domain.in_flight, domain.unconfirmed)

    def origins(self, uuid: str) -> Mapping[Origin, int]:
        """Where the bytes that were sent to the domain came from."""
        return dict((self._domains.get(uuid) or _Domain()).origins)

    @property
    def totals(self) -> Totals:
        """Sources and domains together."""
        every = self._all
        return Totals(
            self._read, self._discarded, every.sent, every.acked, every.lost, every.in_flight,
            every.unconfirmed,
        )  # fmt: skip

    def check(
        self,
        held: Mapping[str, int],
        stored: Mapping[Origin, int],
        in_flight: Mapping[str, int] | None = None,
    ) -> None:
        """LedgerError unless every byte read is somewhere.

        `held`: each source's bytes in health tests, conditioning and mixing; `stored`: bytes in the reservoir
        by origin, seed reserve included; `in_flight`, where given: what each domain's session counts as in
        flight, domains without one left out.
        """
        kept = dict(held)
        for origin, n in stored.items():
            for name in origin:
                kept[name] = kept.get(name, 0) + n
        for name in self._sources.keys() | kept.keys():
            here, there = self.left(name), kept.get(name, 0)
            if here != there:
                raise LedgerError(f"source {name}: {here} bytes are left, but {there} are held or stored")
        if in_flight is None:
            return
        for uuid in self._domains.keys() | in_flight.keys():
            here, there = self.in_flight(uuid), in_flight.get(uuid, 0)
            if here != there:
                raise LedgerError(f"domain {uuid}: {here} bytes in flight, but its session says {there}")

    def _source(self, name: str) -> _Source:
        source = self._sources.get(name)
        if source is None:
            source = self._sources[name] = _Source()
        return source

    def _discard(self, name: str, n: int) -> None:
        left = self.left(name)
        if not 0 <= n <= left:
            raise LedgerError(f"source {name}: discarded {n} bytes where {left} are left")
        self._source(name).discarded += n
        self._discarded += n

    def _in_flight(self, uuid: str, n: int, fate: str) -> _Domain:
        domain = self._domains.get(uuid) or _Domain()
        if not 0 <= n <= domain.in_flight:
            raise LedgerError(f"domain {uuid}: {n} bytes {fate} where {domain.in_flight} are in flight")
        return domain


class _Source:
    __slots__ = ("conditioned", "destroyed", "discarded", "read", "sent")

    def __init__(self) -> None:
        self.read = self.discarded = self.destroyed = self.conditioned = self.sent = 0


class _Domain:
    __slots__ = ("acked", "lost", "origins", "sent", "unconfirmed")

    def __init__(self) -> None:
        self.sent = self.acked = self.lost = self.unconfirmed = 0
        self.origins: dict[Origin, int] = {}

    @property
    def in_flight(self) -> int:
        return self.sent - self.acked - self.lost - self.unconfirmed
