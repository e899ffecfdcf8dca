# SPDX-License-Identifier: Apache-2.0
"""Adding and removing the channel in a whole definition."""

from __future__ import annotations

import pytest

from netrng_hostd.hypervisor.domain_edit import channel_of, is_xen, with_channel, without_channel
from netrng_hostd.hypervisor.domain_xml import DomainXmlError

CHANNEL = "<channel type='unix'><target type='xen' name='org.netrng.0'/></channel>"
OTHER = '<channel type="pty"><target type="xen" name="org.example.0"/></channel>'
DOMAIN = (
    '<domain xmlns:q="urn:q" type="xen"><name>a &amp; b</name>'
    "<metadata><devices><channel/></devices></metadata>"
    f'<devices>{OTHER}</devices><q:commandline><q:arg value="&lt;devices&gt;"/></q:commandline></domain>'
)


def test_what_was_added_is_found_and_what_is_removed_is_gone() -> None:
    assert channel_of(DOMAIN) is None
    changed = with_channel(DOMAIN, CHANNEL)
    assert channel_of(changed) == CHANNEL.replace("'", '"')
    assert channel_of(changed, "org.example.0") == OTHER
    assert without_channel(changed) == DOMAIN


def test_every_channel_of_the_name_is_removed() -> None:
    assert without_channel(with_channel(with_channel(DOMAIN, CHANNEL), CHANNEL)) == DOMAIN


def test_removing_nothing_changes_nothing() -> None:
    assert without_channel(DOMAIN) == DOMAIN


def test_the_type_of_the_domain_says_what_channel_it_needs() -> None:
    assert is_xen(DOMAIN)
    assert not is_xen(DOMAIN.replace('type="xen"', 'type="kvm"'))


def test_a_text_without_devices_is_refused() -> None:
    with pytest.raises(DomainXmlError, match="no <devices>"):
        with_channel("<domain/>", CHANNEL)
