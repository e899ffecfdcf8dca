# SPDX-License-Identifier: Apache-2.0
"""Adds and removes netrng's device, a channel or a virtio-rng, in a domain's whole XML.

For drivers that cannot change one device of a definition (Xen's).  minidom keeps what it does not touch as it
was, namespace prefixes included, which ElementTree does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable, NamedTuple
from xml.dom import minidom

from netrng_hostd.hypervisor.domain_xml import DEFAULT_CHANNEL_NAME, OUR_RNG, VIRTIO_RNG, DomainXmlError


class Device(NamedTuple):
    """A kind of device: what people call it, its element in <devices>, and which of those are netrng's."""

    name: str
    tag: str
    is_ours: Callable[[minidom.Element], bool]


def _is_our_channel(channel: minidom.Element) -> bool:
    return any(target.getAttribute("name") == DEFAULT_CHANNEL_NAME for target in _children(channel, "target"))


def _is_our_rng(rng: minidom.Element) -> bool:
    return any(
        (one.getAttribute("model"), one.getAttribute("type"), source.getAttribute("mode")) == OUR_RNG
        for one in _children(rng, "backend")
        for source in _children(one, "source")
    )


CHANNEL = Device("channel", "channel", _is_our_channel)
RNG = Device(VIRTIO_RNG, "rng", _is_our_rng)


def device_of(xml: str, device: Device) -> str | None:
    """The XML of the domain's device of that kind, None where it has none."""
    for one in _ours(_devices(xml), device):
        return str(one.toxml())
    return None


def has_foreign(xml: str, device: Device) -> bool:
    """Whether it has one with the same element that is not netrng's."""
    return any(not device.is_ours(one) for one in _children(_devices(xml), device.tag))


def with_device(xml: str, added_xml: str) -> str:
    """The domain's XML with the device's XML added.  Raises DomainXmlError."""
    devices = _devices(xml)
    added = minidom.parseString(added_xml).documentElement  # noqa: S318 - our own
    if added is not None:
        devices.appendChild(added)
    return _whole(devices)


def without_device(xml: str, device: Device) -> str:
    """The domain's XML without any device of that kind.  Raises DomainXmlError."""
    devices = _devices(xml)
    for one in list(_ours(devices, device)):
        devices.removeChild(one)
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


def _ours(devices: minidom.Element, device: Device) -> Iterator[minidom.Element]:
    return (one for one in _children(devices, device.tag) if device.is_ours(one))


def _children(parent: minidom.Element | None, tag: str) -> Iterator[minidom.Element]:
    for node in [] if parent is None else parent.childNodes:
        if isinstance(node, minidom.Element) and node.tagName == tag:
            yield node
