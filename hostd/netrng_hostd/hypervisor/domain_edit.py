# SPDX-License-Identifier: Apache-2.0
"""Adds and removes the channel in a domain's whole XML.

For drivers that cannot change one device of a definition (Xen's).  minidom keeps what it does not touch as it
was, namespace prefixes included, which ElementTree does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.dom import minidom

from netrng_hostd.hypervisor.domain_xml import DEFAULT_CHANNEL_NAME, DomainXmlError


def channel_of(xml: str, channel_name: str = DEFAULT_CHANNEL_NAME) -> str | None:
    """The XML of the domain's channel of that name, None where it has none."""
    for channel in _channels(_devices(xml), channel_name):
        return str(channel.toxml())
    return None


def with_channel(xml: str, channel: str) -> str:
    """The domain's XML with the channel's XML added.  Raises DomainXmlError."""
    devices = _devices(xml)
    added = minidom.parseString(channel).documentElement  # noqa: S318 - our own
    if added is not None:
        devices.appendChild(added)
    return _whole(devices)


def without_channel(xml: str, channel_name: str = DEFAULT_CHANNEL_NAME) -> str:
    """The domain's XML without any channel of that name.  Raises DomainXmlError."""
    devices = _devices(xml)
    for channel in list(_channels(devices, channel_name)):
        devices.removeChild(channel)
    return _whole(devices)


def is_xen(xml: str) -> bool:
    """Whether it is a domain of Xen, whose channels have another target type."""
    root = _devices(xml).parentNode
    return isinstance(root, minidom.Element) and root.getAttribute("type") == "xen"


def _devices(xml: str) -> minidom.Element:
    root = minidom.parseString(xml).documentElement  # noqa: S318 - from libvirtd, which is trusted
    for devices in _children(root, "devices"):
        return devices
    raise DomainXmlError("the domain's XML has no <devices>")


def _whole(devices: minidom.Element) -> str:
    root = devices.parentNode
    assert isinstance(root, minidom.Element)
    return str(root.toxml())


def _channels(devices: minidom.Element, channel_name: str) -> Iterator[minidom.Element]:
    for channel in _children(devices, "channel"):
        if any(target.getAttribute("name") == channel_name for target in _children(channel, "target")):
            yield channel


def _children(parent: minidom.Element | None, tag: str) -> Iterator[minidom.Element]:
    for node in [] if parent is None else parent.childNodes:
        if isinstance(node, minidom.Element) and node.tagName == tag:
            yield node
