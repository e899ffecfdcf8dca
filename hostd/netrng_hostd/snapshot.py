# SPDX-License-Identifier: Apache-2.0
"""Gathers what `status` shows from those who know it; changes nothing."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import psutil

from netrng_hostd import __version__
from netrng_hostd.channels.channel import Channel
from netrng_hostd.channels.server import EgdServer
from netrng_hostd.config import AdmissionConfig, Config
from netrng_hostd.core.admission import Admission
from netrng_hostd.core.ledger import DomainCount, Ledger, LedgerError
from netrng_hostd.discovery.watcher import UriState
from netrng_hostd.dispatch import Dispatcher, account
from netrng_hostd.operate.status import (
    AdmissionStatus,
    DaemonStatus,
    DomainStatus,
    ReservoirStatus,
    SourceStatus,
    UriStatus,
)
from netrng_hostd.promises import Holding
from netrng_hostd.roster import Candidate, Entry, Refusal, Roster
from netrng_hostd.supervision import SourceWatch
from netrng_hostd.supply import Supply

RATE_SPAN_NS = 10_000_000_000  # rates are means over the last ten seconds


class RateMeter:
    """Bytes per second over the last ten seconds, from a counter that is looked at now and then."""

    def __init__(self, now_ns: int, total: int) -> None:
        self._seen: deque[tuple[int, int]] = deque([(now_ns, total)])

    def look(self, now_ns: int, total: int) -> None:
        if total < self._seen[-1][1]:  # the domain went and came back, and is counted from nothing
            self._seen.clear()
        self._seen.append((now_ns, total))
        while len(self._seen) > 2 and self._seen[1][0] <= now_ns - RATE_SPAN_NS:
            self._seen.popleft()

    @property
    def rate(self) -> int:
        (begun_ns, before), (ended_ns, after) = self._seen[0], self._seen[-1]
        return (after - before) * 1_000_000_000 // (ended_ns - begun_ns) if ended_ns > begun_ns else 0


class Meters:
    """The rates of the sources and of each domain."""

    def __init__(self) -> None:
        self._meters: dict[str, RateMeter] = {}
        self.process = psutil.Process()
        self.process.cpu_percent()
        self.started = time.time()

    def tick(self, now_ns: int, sources: Iterable[str], ledger: Ledger, roster: Roster) -> None:
        """Call it about twice a second."""
        served = {_account(entry) for entry in roster.entries}
        totals = {own: _arrived(ledger.domain(own)) for own in served}
        totals.update({"source " + name: ledger.source(name).read for name in sources})
        for key, total in totals.items():
            if key in self._meters:
                self._meters[key].look(now_ns, total)
            else:
                self._meters[key] = RateMeter(now_ns, total)
        for gone in self._meters.keys() - totals.keys():
            del self._meters[gone]

    def rate(self, key: str) -> int:
        meter = self._meters.get(key)
        return meter.rate if meter is not None else 0


def take_snapshot(
    watches: Iterable[SourceWatch], dispatcher: Dispatcher, roster: Roster, uris: Iterable[UriState],
    meters: Meters, config: Config,
) -> DaemonStatus:  # fmt: skip
    """The state of everything, now."""
    try:
        dispatcher.check()
        ledger_ok = True
    except LedgerError:
        ledger_ok = False
    reservoir = dispatcher.reservoir
    return DaemonStatus(
        version=__version__,
        sources=tuple(_source(watch, dispatcher.supply, meters) for watch in watches),
        policy=config.policy,
        min_sources=config.min_sources,
        domains=(
            *(_served(entry, roster, dispatcher, meters) for entry in roster.entries),
            *(_refused(refusal, roster) for refusal in roster.refusals),
        ),
        uris=tuple(UriStatus(uri.uri, uri.state, uri.detail, _wall(uri.since_ns)) for uri in uris),
        reservoir=ReservoirStatus(
            size=config.reservoir.size,
            stored=reservoir.available + reservoir.seed_available,
            seed_reserve=config.reservoir.seed_reserve,
            seed_stored=reservoir.seed_available,
        ),
        without_channel=tuple(sorted(roster.without_channel.values())),
        ledger_ok=ledger_ok,
        pid=os.getpid(),
        started=meters.started,
        time=time.time(),
        rss_bytes=meters.process.memory_info().rss,
        cpu_percent=meters.process.cpu_percent(),
        sample_size=config.sample_size,
        sample_size_effective=dispatcher.scheduler.sample_size,
        admission=_admission(roster.promises.admission, config.admission),
    )


def _admission(admission: Admission, config: AdmissionConfig) -> AdmissionStatus:
    return AdmissionStatus(
        capacity=admission.capacity,
        headroom=config.headroom,
        policy=config.policy,
        promisable=admission.promisable,
        promised=admission.promised,
        shrunk=admission.shrunk,
    )


def _source(watch: SourceWatch, supply: Supply, meters: Meters) -> SourceStatus:
    config, state, counts = watch.config, watch.state, supply.ledger.source(watch.config.name)
    measured_ns = watch.capacity.measured_ns
    return SourceStatus(
        name=config.name,
        kind=config.kind,
        state=state.name,
        path=config.place,
        detail=state.detail,
        since=_wall(watch.since_ns),
        rng_current=watch.rng_current,
        virtual=watch.virtual,
        upstream=config.upstream,
        origin=config.origin or None,
        bytes_read=counts.read,
        bytes_discarded=counts.discarded,
        bytes_conditioned=counts.conditioned,
        bytes_sent=counts.sent,
        serving=config.name in supply.serving,
        credit=config.credit,
        min_entropy=config.min_entropy,
        rate=meters.rate("source " + config.name),
        capacity=supply.capacity_of(config.name),
        capacity_age_s=None if measured_ns is None else round((time.monotonic_ns() - measured_ns) / 1e9, 3),
    )


def _account(entry: Entry) -> str:
    return account(entry.candidate.uuid, entry.channel.acknowledges)


def _arrived(counts: DomainCount) -> int:
    """What the domain took, as far as that can be known."""
    return counts.acked + counts.unconfirmed


def _served(entry: Entry, roster: Roster, dispatcher: Dispatcher, meters: Meters) -> DomainStatus:
    channel, own = entry.channel, _account(entry)
    counts, knows = dispatcher.ledger.domain(own), entry.channel.acknowledges
    return _status(
        entry.candidate, roster.holding(entry.candidate), channel.state, channel.since_ns,
        bytes_sent=counts.sent,
        bytes_acked=counts.acked if knows else None,
        bytes_lost=counts.lost if knows else None,
        origins={"+".join(origin): n for origin, n in dispatcher.ledger.origins(own).items()},
        rate=meters.rate(own),
        agent=channel.agent,
        detail=channel.detail,
        in_flight=counts.in_flight if knows else None,
        seeds=dispatcher.seeds.get(entry.candidate.uuid, 0) if knows else None,
        clients=channel.clients if isinstance(channel, EgdServer) else None,
        last_heard=_heard(channel),
    )  # fmt: skip


def _refused(refusal: Refusal, roster: Roster) -> DomainStatus:
    candidate = refusal.candidate
    return _status(candidate, roster.holding(candidate), "refused", refusal.since_ns, detail=refusal.why)


def _status(
    candidate: Candidate, holding: Holding, state: str, since_ns: int, **more: Any
) -> DomainStatus:
    """What is known of a domain whether it is served or not, and more."""
    quota = holding.quota
    return DomainStatus(
        name=candidate.name,
        uuid=candidate.uuid,
        uri=candidate.uri,
        channel=candidate.path,
        kind=candidate.kind,
        state=state,
        since=_wall(since_ns),
        reservation=quota.reservation,
        reservation_effective=holding.in_force.reservation,
        weight=quota.weight,
        limit=quota.limit,
        burst=quota.burst,
        quota=quota.name,
        quota_detail=candidate.metadata.detail,
        admission=holding.verdict.state,
        **more,
    )


def _heard(channel: Channel | EgdServer) -> float | None:
    return None if channel.last_heard_ns is None else _wall(channel.last_heard_ns)


def _wall(monotonic_ns: int) -> float:
    """The Unix time of a moment of the monotonic clock."""
    return round(time.time() - (time.monotonic_ns() - monotonic_ns) / 1e9, 3)
