# SPDX-License-Identifier: Apache-2.0
"""Who is served: turns what discovery says, and the configuration's sockets, into channels."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid as uuids
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from netrng_hostd.channels.budget import PARKED
from netrng_hostd.channels.channel import Channel
from netrng_hostd.channels.connect import ChannelUnavailable, connect_unix
from netrng_hostd.channels.egd import LOST_REQUEST, WAITING, EgdSession
from netrng_hostd.channels.server import EgdServer
from netrng_hostd.channels.session import HostSession
from netrng_hostd.config import AdmissionConfig, ChannelConfig, ServeConfig
from netrng_hostd.core.admission import PENDING, REFUSED
from netrng_hostd.core.mistake import where_raised
from netrng_hostd.core.quota import QuotaRule, serve_id
from netrng_hostd.core.spelling import QuotaError
from netrng_hostd.dispatch import Dispatcher
from netrng_hostd.hypervisor.domain_xml import VIRTIO_RNG, LiveChannel, LiveDomain
from netrng_hostd.hypervisor.errors import HypervisorError
from netrng_hostd.promises import Holding, Promises

log = logging.getLogger("netrng.roster")

Connect = Callable[[], Awaitable[socket.socket]]
OpenStream = Callable[[LiveDomain], Awaitable[socket.socket]]
Key = tuple[str, str, bool]

STATIC, STATIC_EGD, SERVE = "static", "egd", "serve"  # beside those of a LiveChannel

NOT_YET = "whether its reservation fits the source is not decided yet"


class Metadata(NamedTuple):
    """What a domain says of its quota; ``detail``: why that does not count, "" if all is well."""

    rule: QuotaRule | None = None
    detail: str = ""


@dataclass
class Candidate:
    """One channel of a domain on one connection, or one [[serve]].

    ``kind``: of libvirt's, "virtio", "xen" or "virtio-rng"; of [[channel]], "static" (an agent's) or "egd";
    "serve".  ``mode``: of a LiveChannel.
    """

    name: str
    uuid: str
    uri: str
    kind: str
    path: str | None
    connect: Connect | None  # None: others connect to it
    metadata: Metadata
    mode: str = "bind"

    @property
    def key(self) -> Key:
        return self.uri, self.uuid, self.kind == VIRTIO_RNG

    def is_like(self, other: Candidate) -> bool:
        """Whether it is the same place under the same name."""
        mine, theirs = ((one.name, one.kind, one.path, one.mode) for one in (self, other))
        return mine == theirs


@dataclass
class Entry:
    """A candidate that is served, and the channel that serves it."""

    candidate: Candidate
    channel: Channel | EgdServer
    task: asyncio.Task[None]


@dataclass
class Refusal:
    """A candidate that is not served, why, and since when."""

    candidate: Candidate
    why: str
    since_ns: int


def static_uuid(name: str) -> str:
    """A static socket has no domain UUID; its name gives it one that stays the same."""
    return str(uuids.uuid5(uuids.NAMESPACE_URL, f"urn:netrng:channel:{name}"))


class Roster:
    """Keeps one task per channel or [[serve]]; call everything from the event loop."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        rules: Sequence[QuotaRule],
        admission: AdmissionConfig,
        trust_metadata: bool = True,
        control: str = "",
    ) -> None:
        self._dispatcher = dispatcher
        self._config = admission
        self._trust_metadata = trust_metadata
        self._control = control
        self.promises = Promises(rules, admission, changed=self._quota_changed, decided=self._serve_refused)
        self._candidates: dict[str, list[Candidate]] = {}  # by UUID; several in a migration, the newest last
        self._entries: dict[Key, Entry] = {}
        self._served: Counter[str] = Counter()  # how many entries each UUID has
        self._refusals: dict[Key, Refusal] = {}  # served as soon as there is room, in this order
        self.without_channel: dict[tuple[str, str], str] = {}  # names of domains that have no channel

    @property
    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    @property
    def refusals(self) -> list[Refusal]:
        return list(self._refusals.values())

    def holding(self, candidate: Candidate) -> Holding:
        """Its quota, and what of it is in force."""
        return self.promises[candidate.uuid]

    def use(self, rules: Sequence[QuotaRule], admission: AdmissionConfig) -> None:
        """New quotas from a reload; sessions, bytes in flight and buckets are kept, nobody is sent away."""
        self._config = admission
        self.promises.use_rules(rules)
        self.promises.use_headroom(admission.headroom_thousandths)

    def add_static(self, config: ChannelConfig) -> None:
        uuid, kind = static_uuid(config.name), STATIC_EGD if config.kind == "egd" else STATIC
        connect = self._connector_to(config.path)
        self._add(Candidate(config.name, uuid, "", kind, config.path, connect, Metadata()))

    def remove_static(self, name: str) -> None:
        self._remove(("", static_uuid(name), False))

    def add_serve(self, config: ServeConfig) -> None:
        name = serve_id(config.name)
        self._add(Candidate(name, name, "", SERVE, config.path, None, Metadata()))

    def remove_serve(self, name: str) -> None:
        self._remove(("", serve_id(name), False))

    def appeared(self, domain: LiveDomain, open_stream: OpenStream | None) -> None:
        """``open_stream`` is given where the configuration says transport = "stream"."""
        offered = self._offered(domain, open_stream, self._metadata(domain))
        for candidate in offered:
            self._add(candidate)
        self._note_without(domain, bool(offered))

    def changed(self, old: LiveDomain, new: LiveDomain, open_stream: OpenStream | None) -> None:
        """The definition or the state of a running domain changed; channels that stay are left alone."""
        offered = self._offered(new, open_stream, Metadata())
        stays = [known for known in self._known(new) if any(known.is_like(one) for one in offered)]
        came = [one for one in offered if not any(one.is_like(known) for known in stays)]
        if came or old.quota != new.quota:
            metadata = self._metadata(new)
            for one in (*stays, *came):
                one.metadata = metadata
        if stays and old.quota != new.quota:
            self._hold(new.uuid)
        replaced = {one.key for one in came}
        for known in self._known(new):
            if known not in stays and known.key not in replaced:
                self._remove(known.key)
        for one in came:
            self._add(one)
        self._note_without(new, bool(offered))
        for channel in self._channels(stays):
            channel.retry_now()

    def vanished(self, domain: LiveDomain) -> None:
        self.without_channel.pop((domain.uri, domain.uuid), None)
        for known in self._known(domain):
            self._remove(known.key)

    def renewed(self, domain: LiveDomain) -> None:
        """The domain was resumed, restored or reverted: its memory may be a copy of another time's."""
        for channel in self._channels(self._known(domain)):
            channel.renew()

    def tick(self, now_ns: int) -> None:
        for entry in self._entries.values():
            entry.channel.tick(now_ns)

    async def close(self) -> None:
        self.promises.close()
        tasks = [entry.task for entry in self._entries.values()]
        for entry in self.entries:
            self._end(entry, "shutdown")
        await asyncio.gather(*tasks, return_exceptions=True)

    def _offered(
        self, domain: LiveDomain, open_stream: OpenStream | None, metadata: Metadata
    ) -> list[Candidate]:
        """The domain's channel, and its virtio-rng where that waits for us here: no stream leads there."""
        found = []
        if domain.channel is not None:
            found.append((domain.channel, _connector(domain, domain.channel, open_stream)))
        rng = domain.rng
        if rng is not None and rng.path is not None and open_stream is None:
            found.append((rng, self._connector_to(rng.path)))
        return [
            Candidate(domain.name, domain.uuid, domain.uri, one.kind, one.path, connect, metadata, one.mode)
            for one, connect in found
        ]

    def _connector_to(self, path: str) -> Connect:
        async def connect() -> socket.socket:
            if self._is_own(path):
                raise ChannelUnavailable(f"{path} is netrng-hostd's own socket; take it out of [[channel]]")
            return connect_unix(path)

        return connect

    def _is_own(self, path: str) -> bool:
        """Whether hostd itself listens there: what is to be given out would come back to it."""
        served = (entry.candidate.path for entry in self._entries.values() if entry.candidate.kind == SERVE)
        own = {os.path.realpath(one) for one in (self._control, *served) if one}
        return os.path.realpath(path) in own

    def _find(self, key: Key) -> Candidate | None:
        return next((known for known in self._candidates.get(key[1], ()) if known.key == key), None)

    def _known(self, domain: LiveDomain) -> list[Candidate]:
        """Its channels, as far as they are known."""
        return [known for known in self._candidates.get(domain.uuid, ()) if known.uri == domain.uri]

    def _channels(self, candidates: Iterable[Candidate]) -> Iterator[Channel]:
        """Those of them that are served."""
        for candidate in candidates:
            entry = self._entries.get(candidate.key)
            if entry is not None and isinstance(entry.channel, Channel):
                yield entry.channel

    def _note_without(self, domain: LiveDomain, has_channel: bool) -> None:
        if has_channel:
            self.without_channel.pop((domain.uri, domain.uuid), None)
        else:
            self.without_channel[(domain.uri, domain.uuid)] = domain.name

    def _metadata(self, domain: LiveDomain) -> Metadata:
        if domain.quota is None or not self._trust_metadata:
            return Metadata()
        try:
            return Metadata(domain.quota.rule())
        except QuotaError as error:
            detail = f"quota in its metadata ignored: {error}; the file's is used"
            log.warning("%s: %s", domain.name, detail)
            return Metadata(None, detail)

    def _hold(self, uuid: str, served: bool = False) -> None:
        """One UUID has one bucket, so one quota: where two connections show it, the newest decides.

        ``served``: one of them is, although it is in no entry at this moment.
        """
        candidates = self._candidates.get(uuid)
        if candidates:
            newest = candidates[-1]
            claims = served or self._may_claim(uuid)
            self.promises.hold(uuid, newest.name, newest.metadata.rule, claims)
        else:
            self.promises.drop(uuid)

    def _may_claim(self, uuid: str) -> bool:
        """Who is kept out by max_domains is promised nothing."""
        return uuid in self._served or len(self._served) < self._config.max_domains

    def _add(self, candidate: Candidate) -> None:
        """It may be known already: its verdict stays, and if it is served it goes on to be."""
        served = candidate.key in self._entries
        before = self._take_out(candidate.key)
        self._candidates.setdefault(candidate.uuid, []).append(candidate)
        self._hold(candidate.uuid, served)
        why = "" if served else self._why_not(candidate)
        if why:
            self._refusals[candidate.key] = Refusal(candidate, why, time.monotonic_ns())
            if before is None or before.why != why:
                self._log_refusal(candidate, why)
        else:
            self._serve(candidate)

    def _why_not(self, candidate: Candidate) -> str:
        """Why it is not served, "" if it may be."""
        if not self._may_claim(candidate.uuid):
            return f"{self._config.max_domains} domains are served already; raise admission.max_domains"
        verdict = self.holding(candidate).verdict
        if self._config.policy == "refuse" and verdict.state == PENDING:
            return NOT_YET
        if self._config.policy == "refuse" and verdict.state == REFUSED and not verdict.reservation:
            return 'its reservation does not fit the source, and admission.policy is "refuse"'
        return ""

    def _serve(self, candidate: Candidate) -> None:
        name, uuid = candidate.name, candidate.uuid
        channel = self._make_channel(candidate)
        self._dispatcher.add(uuid, channel, self.holding(candidate).in_force)
        task = asyncio.get_running_loop().create_task(channel.run(), name=f"channel {name}")
        task.add_done_callback(lambda done: self._ended(name, channel, done))
        self._entries[candidate.key] = Entry(candidate, channel, task)
        self._served[uuid] += 1

    def _make_channel(self, candidate: Candidate) -> Channel | EgdServer:
        name, kind, dispatcher = candidate.name, candidate.kind, self._dispatcher
        where = candidate.path or f"{candidate.uri} {name}"
        if candidate.connect is None:
            return EgdServer(name, where, dispatcher.available, dispatcher.wants_changed)
        if kind in (VIRTIO_RNG, STATIC_EGD):
            asker = EgdSession(dispatcher.available, unasked=LOST_REQUEST, commands=(WAITING,))
            return Channel(name, where, candidate.connect, asker, dispatcher)
        session = HostSession(lambda: os.urandom(8))
        # Of a virtio-serial port QEMU reads nothing while nobody is connected; a static one may be Xen's.
        parked = 0 if kind == "virtio" else PARKED
        return Channel(name, where, candidate.connect, session, dispatcher, parked)

    def _serve_refused(self) -> None:
        """Whether they are served now: somebody has left, or verdicts were given anew."""
        for refusal in self.refusals:
            candidate = refusal.candidate
            if self.holding(candidate).claims != self._may_claim(candidate.uuid):
                self._hold(candidate.uuid)
            why = self._why_not(candidate)
            if not why:
                del self._refusals[candidate.key]
                self._serve(candidate)
            elif why != refusal.why:
                refusal.why = why
                self._log_refusal(candidate, why)

    def _log_refusal(self, candidate: Candidate, why: str) -> None:
        if why != NOT_YET:  # which is so for a moment only
            log.warning("%s: not served: %s", candidate.name, why)

    def _quota_changed(self, uuid: str) -> None:
        if any(candidate.key in self._entries for candidate in self._candidates[uuid]):
            self._dispatcher.set_quota(uuid, self.promises[uuid].in_force)

    def _ended(self, name: str, channel: Channel | EgdServer, task: asyncio.Task[None]) -> None:
        self._dispatcher.remove(channel)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s: no longer served: %s", name, where_raised(task.exception()))

    def _remove(self, key: Key) -> None:
        if self._find(key) is not None:
            self._take_out(key)
            self._hold(key[1])

    def _take_out(self, key: Key) -> Refusal | None:
        """All but its quota; returns its refusal, if it is not served."""
        candidate = self._find(key)
        if candidate is not None:
            self._candidates[candidate.uuid].remove(candidate)
            if not self._candidates[candidate.uuid]:
                del self._candidates[candidate.uuid]
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._end(entry, "removed")
            self._served[key[1]] -= 1
            if not self._served[key[1]]:
                del self._served[key[1]]
            if self._refusals:
                self.promises.decide_soon()  # there is room
        return self._refusals.pop(key, None)

    def _end(self, entry: Entry, reason: str) -> None:
        entry.channel.leaving = reason
        entry.task.cancel()


def _connector(domain: LiveDomain, live: LiveChannel, open_stream: OpenStream | None) -> Connect:
    async def connect() -> socket.socket:
        if open_stream is not None:
            try:
                return await open_stream(domain)
            except HypervisorError as error:
                raise ChannelUnavailable(str(error)) from None
        if live.path is None:
            raise ChannelUnavailable(f"libvirt shows no socket for the channel of {domain.name}")
        if live.mode == "connect":
            raise ChannelUnavailable(
                f"the channel of {domain.name} has <source mode='connect'>; netrng needs mode='bind'"
            )
        return connect_unix(live.path)

    return connect
