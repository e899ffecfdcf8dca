# SPDX-License-Identifier: Apache-2.0
"""What netrng reads in a domain's live XML: who it is and where its channel and its virtio-rng are.

libvirtd writes this XML and is trusted (it can do anything to the host), so the standard library's parser
is good enough; the size is bounded all the same, because parts of it (metadata, description) are tenants'.
Format: https://libvirt.org/formatdomain.html#channel and #random-number-generator-device
"""

from __future__ import annotations

import uuid as uuid_module
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple
from xml.etree import ElementTree

from netrng_hostd.core.quota import QuotaRule, parse_metadata
from netrng_hostd.core.spelling import QuotaError, shown

DEFAULT_CHANNEL_NAME = "org.netrng.0"
VIRTIO_RNG = "virtio-rng"
# Of the backend its model and type, of its source the mode: one that QEMU connects to is somebody else's.
OUR_RNG = ("egd", "unix", "bind")
METADATA_NAMESPACE = "urn:netrng:1"
METADATA_PREFIX = "netrng"

# libvirt's own limit for a string on its wire (REMOTE_STRING_MAX); real ones are 5 to 30 KB.
MAX_XML_CHARS = 4 * 1024 * 1024


class DomainXmlError(ValueError):
    """The XML is not a domain's, or too large; one line, for a log."""


@dataclass(frozen=True)
class LiveChannel:
    """The channel of a running domain, or the socket behind its virtio-rng.

    ``kind``: "virtio", "xen" or "virtio-rng".  ``mode`` "bind": the hypervisor listens on ``path``.
    ``guest_open``: whether the guest has its end open, None where the hypervisor does not say (Xen never
    does, and nobody of a virtio-rng).
    """

    kind: str
    path: str | None
    mode: str
    guest_open: bool | None


class QuotaElement(NamedTuple):
    """What a domain's metadata says in our namespace, unchecked: the attributes as (key, value).

    ``trouble``: why it is no <netrng:quota>, "" if it is one.
    """

    attributes: tuple[tuple[str, str], ...]
    trouble: str = ""

    def rule(self) -> QuotaRule:
        """Raises QuotaError, in one printable line, if it is malformed."""
        if self.trouble:
            raise QuotaError(self.trouble)
        return parse_metadata(self.attributes)


@dataclass(frozen=True)
class LiveDomain:
    """A running domain; ``channel`` is None where it has none, ``quota`` where its metadata has none.

    ``rng``: its virtio-rng behind which QEMU waits for an EGD server at a UNIX socket, None without one.
    """

    name: str
    uuid: str
    uri: str
    id: int
    channel: LiveChannel | None
    quota: QuotaElement | None = None
    rng: LiveChannel | None = None


def parse_live(xml: str, uri: str, channel_name: str = DEFAULT_CHANNEL_NAME) -> LiveDomain | None:
    """Read a live XML; None if it is of a domain that does not run, or of Xen's Domain-0, which is this host
    itself (libvirt lists it among the others, with the id 0).  Raises DomainXmlError.
    """
    root = parse_domain(xml)
    domain_id = root.get("id")
    if domain_id is None:
        return None
    try:
        number = int(domain_id)
        uuid = str(uuid_module.UUID(root.findtext("uuid", "")))
    except ValueError as error:
        raise DomainXmlError(f"no domain id and UUID in the XML: {error}") from None
    if number == 0 and root.get("type") == "xen":
        return None
    name = root.findtext("name")
    if not name:
        raise DomainXmlError("no name in the domain's XML")
    channel = find_channel(root, channel_name)
    return LiveDomain(
        name,
        uuid,
        uri,
        number,
        None if channel is None else _live_channel(channel),
        find_quota(root),
        find_rng(root),
    )


def parse_domain(xml: str) -> ElementTree.Element:
    """The <domain> element; raises DomainXmlError."""
    if len(xml) > MAX_XML_CHARS:
        raise DomainXmlError(f"the domain's XML has {len(xml)} characters; {MAX_XML_CHARS} are allowed")
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314 - from libvirtd: see above
    except ElementTree.ParseError as error:
        raise DomainXmlError(f"the domain's XML is not well-formed: {error}") from None
    if root.tag != "domain":
        raise DomainXmlError(f"the domain's XML begins with <{root.tag[:40]}>, not <domain>")
    return root


def find_channel(root: ElementTree.Element, channel_name: str) -> ElementTree.Element | None:
    """The first UNIX <channel> of that name, or None."""
    for channel in root.iterfind("devices/channel"):
        target = channel.find("target")
        if target is not None and target.get("name") == channel_name and channel.get("type") == "unix":
            kind = target.get("type")
            if kind in ("virtio", "xen"):
                return channel
    return None


def find_rng(root: ElementTree.Element) -> LiveChannel | None:
    """The first virtio-rng with OUR_RNG, or None."""
    for backend in root.iterfind("devices/rng/backend"):
        for source in backend.iterfind("source"):
            if (backend.get("model"), backend.get("type"), source.get("mode")) == OUR_RNG:
                return LiveChannel(VIRTIO_RNG, source.get("path"), OUR_RNG[2], None)
    return None


def find_quota(root: ElementTree.Element) -> QuotaElement | None:
    """What the domain's metadata says in our namespace; None if nothing."""
    prefix = f"{{{METADATA_NAMESPACE}}}"
    elements = [element for element in root.iterfind("metadata/*") if element.tag.startswith(prefix)]
    if not elements:
        return None
    first = elements[0]
    name, trouble = first.tag[len(prefix) :], ""
    if name != "quota":
        trouble = f"unknown element {shown(name)}; allowed: quota"
    elif len(elements) > 1 or len(first) or (first.text or "").strip():
        trouble = "found more than one element, or text; allowed: one quota, with attributes alone"
    return QuotaElement(tuple(sorted(first.attrib.items())), trouble)


def quota_xml(attributes: Iterable[tuple[str, str]]) -> str:
    """The element for virDomainSetMetadata, which adds namespace and prefix."""
    return ElementTree.tostring(ElementTree.Element("quota", dict(attributes)), encoding="unicode")


def _live_channel(channel: ElementTree.Element) -> LiveChannel:
    target, source = channel.find("target"), channel.find("source")
    assert target is not None  # find_channel looked at it
    state = target.get("state")
    return LiveChannel(
        kind=target.get("type", ""),
        path=None if source is None else source.get("path"),
        mode="bind" if source is None else source.get("mode", "bind"),
        guest_open=None if state is None else state == "connected",
    )
