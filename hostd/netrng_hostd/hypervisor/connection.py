# SPDX-License-Identifier: Apache-2.0
"""One connection to one libvirtd: listing, live XML, events, streams.

Every method blocks and belongs in the URI's worker thread; the callbacks come from libvirt's event thread.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Callable
from urllib.parse import urlsplit

from netrng_hostd.hypervisor import event_thread
from netrng_hostd.hypervisor.binding import libvirt
from netrng_hostd.hypervisor.domain_xml import METADATA_NAMESPACE
from netrng_hostd.hypervisor.errors import (
    HypervisorError,
    NoDomainError,
    UnreachableError,
    UnsupportedError,
    translated,
)
from netrng_hostd.hypervisor.stream import StreamPump

# A libvirtd that answers nothing for 5 s * 3 is given up, and calls that wait for it fail.
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_COUNT = 3

# libvirt's libxl driver has no virDomainOpenChannel.
XEN_HAS_NO_STREAMS = 'Xen\'s driver has no streams to channels; set transport = "socket" in [libvirt]'

_CLOSE_REASONS = {0: "error", 1: "libvirtd closed the connection", 2: "no answer to keepalives", 3: "closed"}


def drives_xen(uri: str) -> bool:
    """Whether libvirt's Xen driver answers there; the transport may stand behind a plus: "xen+ssh://host/"."""
    return urlsplit(uri).scheme.partition("+")[0] == "xen"


class Connection:
    """``on_event(uuid, id, renews, urgent)``: something happened to the domain; ``renews`` says that its
    guest may have gone back in time or was started over, so that a new session is due; ``urgent`` that an
    administrator changed its quota and waits for the effect; no guest can.  ``on_close(reason)``: the
    connection is gone.  Both are called in libvirt's event thread, until close() has returned.
    ``later(function)`` runs a function in the worker thread.
    """

    def __init__(
        self,
        uri: str,
        *,
        read_only: bool,
        on_event: Callable[[str, int, bool, bool], None],
        on_close: Callable[[str], None],
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self.uri = uri
        self._read_only = read_only
        self._on_event = on_event
        self._on_close = on_close
        self._later = later
        self._conn: Any = None
        self._callbacks: list[int] = []
        self._domains: dict[str, Any] = {}
        self._pumps: dict[str, StreamPump] = {}

    def open(self) -> None:
        """Connect and register for events.  Raises HypervisorError; close() is due in every case."""
        event_thread.start()
        with translated(self.uri, "connect"):
            opener = libvirt.openReadOnly if self._read_only else libvirt.open
            self._conn = opener(self.uri)
            with suppress(libvirt.libvirtError):  # an old daemon, or a driver inside this process
                self._conn.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
            with suppress(libvirt.libvirtError):  # then losses show in the next call that fails
                self._conn.registerCloseCallback(self._closed, None)
            self._register()

    def _register(self) -> None:
        for name in _EVENTS:
            event = getattr(libvirt, "VIR_DOMAIN_EVENT_ID_" + name, None)
            if event is None:
                continue  # newer than this libvirt
            handler = self._lifecycle if name == "LIFECYCLE" else self._other
            try:
                self._callbacks.append(self._conn.domainEventRegisterAny(None, event, handler, name))
            except libvirt.libvirtError:
                continue  # unknown to this driver; the periodic listing finds what it would have told

    def active(self) -> list[tuple[str, int]]:
        """(UUID, id) of every running domain.  Raises HypervisorError."""
        with translated(self.uri, "list the domains"):
            domains = self._conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        self._domains = {str(domain.UUIDString()): domain for domain in domains}
        self._pumps = {uuid: pump for uuid, pump in self._pumps.items() if not pump.aborted}
        return [(uuid, int(domain.ID())) for uuid, domain in self._domains.items()]

    def live_xml(self, uuid: str) -> str:
        """The live XML of a domain of the last listing.  Raises NoDomainError, HypervisorError."""
        with self._asking(uuid, "read the domain's XML") as domain:
            return str(domain.XMLDesc(0))

    def open_channel(self, uuid: str, channel_name: str) -> socket.socket:
        """A socket whose other end is pumped to the domain's channel.  Raises HypervisorError.

        A channel takes one stream: an earlier one of this connection is ended first, another program's is
        an error.
        """
        earlier = self._pumps.pop(uuid, None)
        if earlier is not None:
            earlier.close()
        try:
            with self._asking(uuid, f"open a stream to the channel {channel_name}") as domain:
                stream = self._conn.newStream(libvirt.VIR_STREAM_NONBLOCK)
                domain.openChannel(channel_name, stream, 0)
                pump = self._pumps[uuid] = StreamPump(stream, self._later)
                return pump.start()
        except UnsupportedError as error:
            if drives_xen(self.uri):
                raise UnsupportedError(f"{self.uri}: {XEN_HAS_NO_STREAMS}") from error
            raise

    @contextmanager
    def _asking(self, uuid: str, doing: str) -> Iterator[Any]:
        """The domain, for calls that fail in driver-dependent ways once it has ended."""
        domain = self._domains.get(uuid)
        if domain is None:
            raise NoDomainError(f"{self.uri}: cannot {doing}: no running domain {uuid}")
        try:
            with translated(self.uri, doing):
                yield domain
        except HypervisorError as error:
            if not isinstance(error, UnreachableError) and not self._is_active(domain):
                raise NoDomainError(str(error)) from error
            raise

    @staticmethod
    def _is_active(domain: Any) -> bool:
        try:
            return bool(domain.isActive())
        except libvirt.libvirtError as error:
            # Who may not read it may not ask this either.
            return bool(error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN)

    def close(self) -> None:
        """End streams, registrations and the connection; never raises, may be called twice."""
        pumps, self._pumps = self._pumps, {}
        for pump in pumps.values():
            pump.close()
        # Domains and registered callbacks hold references: with one left, libvirt keeps the connection.
        self._domains = {}
        conn, self._conn = self._conn, None
        if conn is None:
            return
        for callback in self._callbacks:
            _quietly(conn.domainEventDeregisterAny, callback)
        self._callbacks = []
        _quietly(conn.unregisterCloseCallback)
        _quietly(conn.close)

    def _lifecycle(self, _conn: Any, domain: Any, event: int, detail: int, _name: str) -> None:
        self._on_event(str(domain.UUIDString()), int(domain.ID()), (event, detail) in _RENEWS, False)

    def _other(self, _conn: Any, domain: Any, *rest: Any) -> None:
        name = rest[-1]
        # Of a change of metadata, rest is its kind, the namespace (None for a title or a description), name.
        urgent = name == "METADATA_CHANGE" and rest[1] == METADATA_NAMESPACE
        self._on_event(str(domain.UUIDString()), int(domain.ID()), name == "REBOOT", urgent)

    def _closed(self, _conn: Any, reason: int, _opaque: Any) -> None:
        self._on_close(_CLOSE_REASONS.get(reason, f"reason {reason}"))


def _quietly(function: Callable[..., Any], *arguments: Any) -> None:
    """Closing: the daemon may be gone, and then it has forgotten us already."""
    with suppress(libvirt.libvirtError):
        function(*arguments)


# CHANNEL_LIFECYCLE exists from libvirt 12.4 on.
_EVENTS = (
    "LIFECYCLE",
    "REBOOT",
    "DEVICE_ADDED",
    "DEVICE_REMOVED",
    "METADATA_CHANGE",
    "AGENT_LIFECYCLE",
    "CHANNEL_LIFECYCLE",
)


def _renewing() -> frozenset[tuple[int, int]]:
    """(event, detail) after which a guest runs on from a state that may have been run from before."""
    if libvirt is None:
        return frozenset()
    prefix = "VIR_DOMAIN_EVENT_"
    pairs = {(libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_FROM_SNAPSHOT)}
    for event in ("STARTED", "RESUMED"):
        number = getattr(libvirt, prefix + event)
        # All but STARTED_BOOTED: a boot has a new id, is a new domain here, and its guest remembers nothing.
        # The RESUMED_UNPAUSED that QEMU tells with it may cost it one session more, which is harmless.
        names = {name for name in dir(libvirt) if name.startswith(f"{prefix}{event}_")}
        names.discard(prefix + "STARTED_BOOTED")
        pairs.update((number, int(getattr(libvirt, name))) for name in names)
    return frozenset(pairs)


_RENEWS = _renewing()
