# SPDX-License-Identifier: Apache-2.0
"""Whether libvirt answers, and which domains can be served. No channel is connected to."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Union
from urllib.parse import urlsplit

from netrng_hostd.config import Config
from netrng_hostd.config.sections import LOCAL_HOSTS
from netrng_hostd.core.spelling import QuotaError, printable
from netrng_hostd.hypervisor import (
    HypervisorError,
    LiveDomain,
    NoDomainError,
    UnreachableError,
)
from netrng_hostd.hypervisor.connection import XEN_HAS_NO_STREAMS, Connection, drives_xen
from netrng_hostd.hypervisor.domain_xml import DomainXmlError, parse_live
from netrng_hostd.operate.administer import command_line
from netrng_hostd.operate.check.dom0 import XENSTORE_S, check_dom0
from netrng_hostd.operate.check.finding import Finding, TooLate, note, problem, within
from netrng_hostd.operate.check.sockets import check_domain, check_sockets, find_channels

LIBVIRT_S = 10.0
SCAN_S = 10.0  # of a folder's file system


class Unread(NamedTuple):
    """A running domain whose XML libvirt did not give, or that is none; ``id``: libvirt's number."""

    id: int
    why: str


Listed = Union[LiveDomain, Unread]
ListDomains = Callable[[str], Sequence[Listed]]


class Listing(NamedTuple):
    """What runs at a URI; ``found`` is None where libvirt did not answer, and ``trouble`` says why."""

    uri: str
    found: Sequence[Listed] | None
    trouble: str = ""

    @property
    def domains(self) -> list[LiveDomain]:
        """Those whose XML could be read."""
        return [one for one in self.found or () if not isinstance(one, Unread)]

    @property
    def unread(self) -> list[Unread]:
        """The others."""
        return [one for one in self.found or () if isinstance(one, Unread)]


def list_domains(uri: str) -> list[Listed]:
    """The running domains, over a read-only connection.

    Raises HypervisorError where that is not one domain's matter.
    """
    connection = Connection(
        uri, read_only=True, on_event=lambda *_: None, on_close=lambda _: None, later=lambda _: None
    )
    found: list[Listed] = []
    try:
        connection.open()
        for uuid, number in connection.active():
            try:
                domain = parse_live(connection.live_xml(uuid), uri)
            except UnreachableError:
                raise
            except NoDomainError:  # it has just ended
                continue
            except (HypervisorError, DomainXmlError) as error:  # one that we may not see hides no other
                found.append(Unread(number, str(error)))
                continue
            if domain is not None:
                found.append(domain)
    finally:
        connection.close()
    return found


def check_domains(
    config: Config,
    list_them: ListDomains = list_domains,
    libvirt_s: float = LIBVIRT_S,
    xenstore_s: float = XENSTORE_S,
    scan_s: float = SCAN_S,
) -> Iterator[Finding]:
    """Each URI and its domains, the sockets of the configuration, then what else runs on a Xen host."""
    if not (config.libvirt.uris or config.channels or config.serves):
        nothing = "libvirt.uris is empty and there is no [[channel]] and no [[serve]]"
        yield problem(f"nothing to serve: {nothing}; set one of them")
    listings = []
    for uri in config.libvirt.uris:
        listings.append(_ask(uri, list_them, libvirt_s))
        yield from _check_uri(listings[-1], config)
    # Streams also go to other hosts, whose domains' sockets have the same paths, and through tunnels.
    here = LOCAL_HOSTS if config.libvirt.transport == "socket" else ("",)
    near = (one for one in listings if (urlsplit(one.uri).hostname or "") in here)
    channels, notices = find_channels(config, scan_s)
    yield from notices
    yield from check_sockets(channels, [domain for one in near for domain in one.domains], config)
    # To the patterns too, so that their names are not proposed for another.
    patterns = tuple(channel for channel in config.channels if channel.is_pattern)
    config = dataclasses.replace(config, channels=(*channels, *patterns))
    yield from check_dom0(config, _xen_ids(listings), xenstore_s)


def _ask(uri: str, list_them: ListDomains, libvirt_s: float) -> Listing:
    try:
        return Listing(uri, within(libvirt_s, lambda: list_them(uri)))
    except TooLate:
        trouble = f"{uri}: no answer from libvirt in {libvirt_s:g} s; look at its log, or restart it"
    except HypervisorError as error:
        trouble = str(error)
    return Listing(uri, None, trouble)


def _xen_ids(listings: Sequence[Listing]) -> frozenset[int] | None:
    """Of the domains at Xen's URIs; None where one of these did not answer."""
    xen = [listing for listing in listings if drives_xen(listing.uri)]
    if any(listing.found is None for listing in xen):
        return None
    return frozenset(one.id for listing in xen for one in listing.found or ())


def _check_uri(listing: Listing, config: Config) -> Iterator[Finding]:
    uri, libvirt = listing.uri, config.libvirt
    if libvirt.transport == "stream" and drives_xen(uri):
        yield problem(f"{uri}: {XEN_HAS_NO_STREAMS}")
    if listing.found is None:
        yield problem(listing.trouble)
        return
    if not listing.found:
        yield note(f"{uri}: no domain is running")
    if listing.unread:
        ids = ", ".join(str(one.id) for one in listing.unread)
        first = listing.unread[0]
        why = printable(first.why.removeprefix(f"{uri}: "))
        yield problem(
            f"{uri}: running domains that cannot be served: {ids}: {why}; "
            f"see: virsh -r -c {shlex.quote(uri)} dumpxml {first.id}"
        )
    for domain in listing.domains:
        name = printable(domain.name)
        yield from _check_metadata(name, domain, libvirt.trust_metadata)
        yield from check_domain(name, domain, config)


def _check_metadata(name: str, domain: LiveDomain, trusted: bool) -> Iterator[Finding]:
    if domain.quota is None:
        return
    if not trusted:
        yield note(f"{name} has a quota in its metadata that does not count: libvirt.trust_metadata is false")
        return
    try:
        domain.quota.rule()
    except QuotaError as error:
        yield note(
            f"{name}: the quota in its metadata is malformed, so the file's is used: {error}; "
            f"mend it: {command_line('quota', name, domain.uri, '--reset')}"
        )
