# SPDX-License-Identifier: Apache-2.0
"""Who is served: turns what discovery says, and the configuration's static sockets, into channels."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid as uuids
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from netrng_hostd.channels.channel import Channel
from netrng_hostd.channels.connect import ChannelUnavailable, connect_unix
from netrng_hostd.channels.session import HostSession
from netrng_hostd.config import ChannelConfig
from netrng_hostd.core.mistake import where_raised
from netrng_hostd.core.quota import Quota, QuotaError, QuotaRule, resolve
from netrng_hostd.dispatch import Dispatcher
from netrng_hostd.hypervisor.domain_xml import LiveDomain
from netrng_hostd.hypervisor.errors import HypervisorError

log = logging.getLogger("netrng.roster")

Connect = Callable[[], Awaitable[socket.socket]]
OpenStream = Callable[[LiveDomain], Awaitable[socket.socket]]


class Metadata(NamedTuple):
    """What a domain says of its quota; ``detail``: why that does not count, "" if all is well."""

    rule: QuotaRule | None = None
    detail: str = ""


@dataclass
class Entry:
    """One domain on one connection, and the channel that serves it."""

    name: str
    uuid: str
    uri: str
    kind: str  # virtio | xen | static
    path: str | None
    metadata: Metadata
    quota: Quota
    channel: Channel
    task: asyncio.Task[None]


def static_uuid(name: str) -> str:
    """A static socket has no domain UUID; its name gives it one that stays the same."""
    return str(uuids.uuid5(uuids.NAMESPACE_URL, f"urn:netrng:channel:{name}"))


class Roster:
    """Keeps one Channel task per domain and connection; call everything from the event loop."""

    def __init__(
        self, dispatcher: Dispatcher, rules: Sequence[QuotaRule], max_domains: int,
        trust_metadata: bool = True,
    ) -> None:  # fmt: skip
        self._dispatcher = dispatcher
        self._rules = tuple(rules)
        self._max_domains = max_domains
        self._trust_metadata = trust_metadata
        self._entries: dict[tuple[str, str], Entry] = {}
        self._of_uuid: dict[str, list[Entry]] = {}  # several during a migration, the newest last
        # Those beyond max_domains, first come first: admitted as soon as there is room.
        self._refused: dict[tuple[str, str], tuple[str, str, str | None, Connect, Metadata]] = {}
        self.without_channel: dict[tuple[str, str], str] = {}  # names of domains that have no channel

    @property
    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def use_rules(self, rules: Sequence[QuotaRule]) -> None:
        """New quotas from a reload; sessions, bytes in flight and buckets are kept."""
        self._rules = tuple(rules)
        for uuid in self._of_uuid:
            self._set_quota(uuid)

    def add_static(self, config: ChannelConfig) -> None:
        async def connect() -> socket.socket:
            return connect_unix(config.path)

        self._add(config.name, static_uuid(config.name), "", "static", config.path, connect, Metadata())

    def remove_static(self, name: str) -> None:
        self._refused.pop(("", static_uuid(name)), None)
        self._remove(("", static_uuid(name)))
        self._admit_refused()

    def appeared(self, domain: LiveDomain, open_stream: OpenStream | None) -> None:
        """``open_stream`` is given where the configuration says transport = "stream"."""
        live = domain.channel
        if live is None:
            self.without_channel[(domain.uri, domain.uuid)] = domain.name
            return
        connect = _connector(domain, open_stream)
        metadata = self._metadata(domain)
        self._add(domain.name, domain.uuid, domain.uri, live.kind, live.path, connect, metadata)

    def changed(self, old: LiveDomain, new: LiveDomain, open_stream: OpenStream | None) -> None:
        """The definition or the state of a running domain changed."""
        entry = self._entries.get((new.uri, new.uuid))
        if entry is not None and old.channel is not None and new.channel is not None:
            same = (old.channel.kind, old.channel.path, old.channel.mode) == (
                new.channel.kind, new.channel.path, new.channel.mode,
            )  # fmt: skip
            if same and old.name == new.name:
                if old.quota != new.quota:
                    entry.metadata = self._metadata(new)
                    self._settle(entry)
                entry.channel.retry_now()
                return
        self.vanished(old)
        self.appeared(new, open_stream)

    def vanished(self, domain: LiveDomain) -> None:
        self.without_channel.pop((domain.uri, domain.uuid), None)
        self._refused.pop((domain.uri, domain.uuid), None)
        self._remove((domain.uri, domain.uuid))
        self._admit_refused()

    def renewed(self, domain: LiveDomain) -> None:
        """The domain was resumed, restored or reverted: its memory may be a copy of another time's."""
        entry = self._entries.get((domain.uri, domain.uuid))
        if entry is not None:
            entry.channel.renew()

    def tick(self, now_ns: int) -> None:
        for entry in self._entries.values():
            entry.channel.tick(now_ns)

    async def close(self) -> None:
        tasks = [entry.task for entry in self._entries.values()]
        for key in list(self._entries):
            self._remove(key, "shutdown")
        await asyncio.gather(*tasks, return_exceptions=True)

    def _metadata(self, domain: LiveDomain) -> Metadata:
        if domain.quota is None or not self._trust_metadata:
            return Metadata()
        try:
            return Metadata(domain.quota.rule())
        except QuotaError as error:
            return Metadata(None, f"quota in its metadata ignored: {error}; the file's is used")

    def _settle(self, entry: Entry) -> None:
        """The entry is new, or its metadata."""
        if entry.metadata.detail:
            log.warning("%s: %s", entry.name, entry.metadata.detail)
        self._set_quota(entry.uuid)

    def _set_quota(self, uuid: str) -> None:
        """One UUID has one bucket, so one quota: where two entries have it, the newest's metadata decides."""
        entries = self._of_uuid[uuid]
        newest = entries[-1]
        quota = resolve(self._rules, newest.name, uuid, newest.metadata.rule)
        for entry in entries:
            entry.quota = quota
        self._dispatcher.set_quota(uuid, quota)

    def _add(
        self, name: str, uuid: str, uri: str, kind: str, path: str | None, connect: Connect,
        metadata: Metadata,
    ) -> None:  # fmt: skip
        key = (uri, uuid)
        self._remove(key)
        if len(self._entries) >= self._max_domains:
            if key not in self._refused:
                log.warning(
                    "%s: not served: %d domains are served already; raise admission.max_domains",
                    name, self._max_domains,
                )  # fmt: skip
            self._refused[key] = (name, kind, path, connect, metadata)
            return
        quota = resolve(self._rules, name, uuid, metadata.rule)
        session = HostSession(lambda: os.urandom(8))
        channel = Channel(name, path or f"{uri} {name}", connect, session, self._dispatcher)
        self._dispatcher.add(uuid, channel, quota)
        task = asyncio.get_running_loop().create_task(channel.run(), name=f"channel {name}")
        task.add_done_callback(lambda done: self._ended(name, channel, done))
        entry = Entry(name, uuid, uri, kind, path, metadata, quota, channel, task)
        self._entries[key] = entry
        self._of_uuid.setdefault(uuid, []).append(entry)
        self._settle(entry)

    def _ended(self, name: str, channel: Channel, task: asyncio.Task[None]) -> None:
        self._dispatcher.remove(channel)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s: no longer served: %s", name, where_raised(task.exception()))

    def _remove(self, key: tuple[str, str], reason: str = "removed") -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            entry.channel.leaving = reason
            entry.task.cancel()
            self._of_uuid[entry.uuid].remove(entry)
            if self._of_uuid[entry.uuid]:
                self._set_quota(entry.uuid)
            else:
                del self._of_uuid[entry.uuid]

    def _admit_refused(self) -> None:
        while self._refused and len(self._entries) < self._max_domains:
            (uri, uuid), (name, kind, path, connect, metadata) = next(iter(self._refused.items()))
            del self._refused[(uri, uuid)]
            self._add(name, uuid, uri, kind, path, connect, metadata)


def _connector(domain: LiveDomain, open_stream: OpenStream | None) -> Connect:
    live = domain.channel

    async def connect() -> socket.socket:
        if open_stream is not None:
            try:
                return await open_stream(domain)
            except HypervisorError as error:
                raise ChannelUnavailable(str(error)) from None
        if live is None or live.path is None:
            raise ChannelUnavailable(f"libvirt shows no socket for the channel of {domain.name}")
        if live.mode == "connect":
            raise ChannelUnavailable(
                f"the channel of {domain.name} has <source mode='connect'>; netrng needs mode='bind'"
            )
        return connect_unix(live.path)

    return connect
