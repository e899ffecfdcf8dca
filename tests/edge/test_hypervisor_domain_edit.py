# SPDX-License-Identifier: Apache-2.0
"""Adding and removing the channel, or the virtio-rng, in a whole definition."""

from __future__ import annotations

from xml.etree.ElementTree import canonicalize

import pytest

from netrng_hostd.hypervisor.domain_edit import (
    CHANNEL,
    RNG,
    Device,
    device_of,
    has_foreign,
    is_xen,
    with_device,
    without_device,
)
from netrng_hostd.hypervisor.domain_xml import DomainXmlError
from netrng_hostd.operate.rng_device import rng_xml

CHANNEL_XML = "<channel type='unix'><target type='xen' name='org.netrng.0'/></channel>"
RNG_XML = rng_xml("/a <'&\">/b").rstrip("\n")
OTHERS = (
    '<channel type="pty"><target type="xen" name="org.example.0"/></channel>'
    '<rng model="virtio"><backend model="random">/dev/urandom</backend></rng>'
    '<rng model="virtio"><backend model="egd" type="udp"><source mode="bind"/></backend></rng>'
    '<rng model="virtio"><backend model="egd" type="unix"><source mode="connect" path="/x"/></backend></rng>'
)
DOMAIN = (
    '<domain xmlns:q="urn:q" type="xen"><name>a &amp; b</name>'
    '<metadata><devices><channel/><rng><backend model="egd" type="unix"/></rng></devices></metadata>'
    f'<devices>{OTHERS}</devices><q:commandline><q:arg value="&lt;devices&gt;"/></q:commandline></domain>'
)

each_device = pytest.mark.parametrize(
    ("device", "added"), [(CHANNEL, CHANNEL_XML), (RNG, RNG_XML)], ids=["channel", "rng"]
)


@each_device
def test_what_was_added_is_found_and_what_is_removed_is_gone(device: Device, added: str) -> None:
    assert device_of(DOMAIN, device) is None
    changed = with_device(DOMAIN, added)
    assert canonicalize(device_of(changed, device)) == canonicalize(added)
    assert without_device(changed, device) == DOMAIN


@each_device
def test_each_of_ours_is_removed(device: Device, added: str) -> None:
    twice = with_device(with_device(DOMAIN, added), added)
    assert without_device(twice, device) == DOMAIN


@each_device
def test_removing_nothing_changes_nothing(device: Device, added: str) -> None:
    assert without_device(DOMAIN, device) == DOMAIN


def test_one_kind_is_not_the_other() -> None:
    both = with_device(with_device(DOMAIN, CHANNEL_XML), RNG_XML)
    assert without_device(both, CHANNEL) == with_device(DOMAIN, RNG_XML)
    assert without_device(both, RNG) == with_device(DOMAIN, CHANNEL_XML)


def test_a_device_of_others_is_foreign() -> None:
    bare = "<domain><devices/></domain>"
    assert has_foreign(DOMAIN, RNG)
    assert not has_foreign(bare, RNG)
    assert not has_foreign(with_device(bare, RNG_XML), RNG)


def test_the_type_of_the_domain_says_what_channel_it_needs() -> None:
    assert is_xen(DOMAIN)
    assert not is_xen(DOMAIN.replace('type="xen"', 'type="kvm"'))


def test_a_text_without_devices_is_refused() -> None:
    with pytest.raises(DomainXmlError, match="no <devices>"):
        with_device("<domain/>", CHANNEL_XML)
