# SPDX-License-Identifier: Apache-2.0
"""What is read in a live XML: texts as libvirt 9 prints them for QEMU and Xen, and what is refused."""

from __future__ import annotations

import pytest

from netrng_hostd.core.quota import QuotaRule
from netrng_hostd.core.spelling import QuotaError
from netrng_hostd.hypervisor.domain_xml import (
    MAX_XML_CHARS,
    DomainXmlError,
    LiveChannel,
    LiveDomain,
    QuotaElement,
    parse_live,
)

UUID = "8b1f0a52-5c3e-4b7e-9d53-0d6f3f1f9f11"

LINE = '<netrng:quota xmlns:netrng="urn:netrng:1" weight="300" reservation="1KiB/s"/>'
QEMU = f"""\
<domain type='qemu' id='3'>
  <name>db-1</name>
  <uuid>{UUID}</uuid>
  <metadata>
    {LINE}
    <other:quota xmlns:other="urn:other" weight="9"/>
  </metadata>
  <devices>
    <channel type='unix'>
      <source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-3-db-1/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
    </channel>
    <channel type='unix'>
      <source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-3-db-1/org.netrng.0'/>
      <target type='virtio' name='org.netrng.0' state='disconnected'/>
      <alias name='channel0'/>
      <address type='virtio-serial' controller='0' bus='0' port='1'/>
    </channel>
  </devices>
</domain>
"""

XEN = f"""\
<domain type='xen' id='14'>
  <name>pv</name>
  <uuid>{UUID.upper()}</uuid>
  <devices>
    <channel type='unix'>
      <source mode='bind' path='/var/lib/libvirt/libxl/channel/target/pv-org.netrng.0'/>
      <target type='xen' name='org.netrng.0'/>
    </channel>
  </devices>
</domain>
"""


def parse(xml: str) -> LiveDomain:
    domain = parse_live(xml, "qemu:///system")
    assert domain is not None
    return domain


def test_a_virtio_channel_of_qemu() -> None:
    assert parse(QEMU) == LiveDomain(
        name="db-1",
        uuid=UUID,
        uri="qemu:///system",
        id=3,
        channel=LiveChannel(
            "virtio", "/var/lib/libvirt/qemu/channel/target/domain-3-db-1/org.netrng.0", "bind", False
        ),
        quota=QuotaElement((("reservation", "1KiB/s"), ("weight", "300"))),
    )


def egd_rng(source: str, kind: str = "unix") -> str:
    return f"<rng model='virtio'><backend model='egd' type='{kind}'>{source}</backend></rng>"


BOUND = egd_rng("<source mode='bind' path='/b'/>")


@pytest.mark.parametrize(
    ("rngs", "found"),
    [
        ("<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>", None),
        (egd_rng("<source mode='bind' host='::1'/>", "tcp"), None),
        ("<rng model='virtio'/>", None),
        (egd_rng("<source mode='bind' path='/a'/>"), "/a"),
        (egd_rng("<source mode='connect' path='/a'/>"), None),
        (egd_rng("<source mode='connect' path='/a'/>") + BOUND, "/b"),
        (egd_rng("<source mode='bind' path='/a'/>") + BOUND, "/a"),
        (egd_rng(""), None),
    ],
)
def test_a_virtio_rng_that_waits_for_an_egd_server(rngs: str, found: str | None) -> None:
    rng = parse(QEMU.replace("</devices>", f"{rngs}</devices>")).rng
    assert rng == (None if found is None else LiveChannel("virtio-rng", found, "bind", None))


def test_a_quota_element_becomes_a_rule() -> None:
    quota = parse(QEMU).quota
    assert quota is not None
    assert quota.rule() == QuotaRule("metadata", (), reservation=1024, weight=300)


OWN = 'xmlns:netrng="urn:netrng:1"'


@pytest.mark.parametrize(
    ("elements", "complaint"),
    [
        (f"<netrng:quotta {OWN} weight='3'/>", "unknown element 'quotta'; allowed: quota"),
        (f"<netrng:limit {OWN}>5</netrng:limit>", "unknown element 'limit'"),
        (f"<netrng:{'q' * 999} {OWN}/>", f"unknown element '{'q' * 56}…"),
        (f"<netrng:quota {OWN}>weight=3</netrng:quota>", "found more than one element"),
        (f"<netrng:quota {OWN}><netrng:weight>3</netrng:weight></netrng:quota>", "found more than one"),
        (f"<netrng:quota {OWN}/><netrng:quota {OWN} weight='3'/>", "found more than one element"),
        (f"<netrng:quota {OWN} wieght='3'/>", "unknown attribute 'wieght'"),
        (f"<netrng:quota {OWN} netrng:weight='3'/>", "unknown attribute '{urn:netrng:1}weight'"),
    ],
)
def test_what_is_no_quota_element_and_stands_in_our_namespace_is_malformed(
    elements: str, complaint: str
) -> None:
    quota = parse(QEMU.replace("<other:quota", f"{elements}<other:quota").replace(LINE, "")).quota
    assert quota is not None
    with pytest.raises(QuotaError) as refused:
        quota.rule()
    assert str(refused.value).startswith(complaint)
    assert len(str(refused.value)) < 250


def test_other_namespaces_are_others_affair() -> None:
    assert parse(QEMU.replace("urn:netrng:1", "urn:netrng:10")).quota is None


def test_a_channel_of_xen_says_nothing_of_the_guests_end() -> None:
    domain = parse(XEN)
    path = "/var/lib/libvirt/libxl/channel/target/pv-org.netrng.0"
    assert domain.channel == LiveChannel("xen", path, "bind", None)
    assert domain.uuid == UUID, "UUIDs are compared: one spelling"
    assert domain.quota is None


def test_the_host_of_xen_is_no_vm() -> None:
    assert parse_live(XEN.replace("id='14'", "id='0'"), "xen:///system") is None
    first = parse_live(QEMU.replace("id='3'", "id='0'"), "test:///default")
    assert first is not None
    assert first.id == 0, "of another hypervisor 0 is an id as any other"


def test_the_guests_end_is_open() -> None:
    channel = parse(QEMU.replace("disconnected", "connected")).channel
    assert channel is not None
    assert channel.guest_open is True


def test_another_name_is_another_channel() -> None:
    domain = parse_live(QEMU, "u", "org.qemu.guest_agent.0")
    assert domain is not None
    assert domain.channel is not None
    assert domain.channel.guest_open is True
    other = parse_live(QEMU, "u", "org.example.0")
    assert other is not None
    assert other.channel is None


@pytest.mark.parametrize(
    ("before", "after"),
    [("<channel type='unix'>", "<channel type='pty'>"), ("type='virtio'", "type='guestfwd'")],
)
def test_what_is_no_unix_channel_of_a_known_kind_is_none(before: str, after: str) -> None:
    assert parse(QEMU.replace(before, after)).channel is None


def test_a_channel_without_source_has_no_path() -> None:
    channel = parse(
        f"<domain id='1'><name>a</name><uuid>{UUID}</uuid><devices><channel type='unix'>"
        "<target type='virtio' name='org.netrng.0'/></channel></devices></domain>"
    ).channel
    assert channel == LiveChannel("virtio", None, "bind", None)


def test_mode_connect_is_told() -> None:
    channel = parse(QEMU.replace("mode='bind'", "mode='connect'")).channel
    assert channel is not None
    assert channel.mode == "connect"


def test_a_definition_that_does_not_run_is_none() -> None:
    assert parse_live(QEMU.replace(" id='3'", ""), "u") is None


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("", "not well-formed"),
        ("<domain", "not well-formed"),
        ("<network/>", "<network>"),
        (QEMU.replace("id='3'", "id='three'"), "id"),
        (QEMU.replace(UUID, "nonsense"), "UUID"),
        (QEMU.replace("<name>db-1</name>", ""), "name"),
        (QEMU.replace("</domain>", " " * MAX_XML_CHARS + "</domain>"), str(MAX_XML_CHARS)),
    ],
)
def test_what_is_no_domain_is_refused_in_one_line(xml: str, reason: str) -> None:
    with pytest.raises(DomainXmlError) as caught:
        parse_live(xml, "u")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
