# SPDX-License-Identifier: Apache-2.0
"""attach, detach, xml and quota: on real paused QEMUs of a private libvirtd, and on libvirt's test driver."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from bed.libvirtd import PrivateLibvirtd
from bed.rundir import RunDirectory
from tests.edge.lab import UUID_A, UUID_B, domain_xml, fake_hypervisor, paused_domain
from tests.edge.rig import Hostd, run_command, wait_for

from netrng_hostd.hypervisor import administration
from netrng_hostd.operate.administer import Result
from netrng_hostd.operate.attach import attach, detach, xml
from netrng_hostd.operate.quota import quota

CONF = Path(__file__).resolve().parents[2] / "conf" / "libvirt"
PAUSED = libvirt.VIR_DOMAIN_START_PAUSED
INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE
ACTIVE = "active after the next full power-off, not a guest reboot"

needs_qemu = [
    pytest.mark.shared_state,
    pytest.mark.skipif(
        not (shutil.which("libvirtd", path="/usr/sbin:/usr/bin") and shutil.which("qemu-system-x86_64")),
        reason="needs libvirt-daemon, libvirt-daemon-driver-qemu and qemu-system-x86",
    ),
]
pytestmark = pytest.mark.usefixtures("libvirt_events")


@pytest.fixture(scope="module")
def qemu(libvirt_events: None) -> Iterator[PrivateLibvirtd]:
    with RunDirectory() as run, PrivateLibvirtd(run) as libvirtd:
        yield libvirtd


def has_channel(domain: libvirt.virDomain, flags: int = 0) -> bool:
    return "org.netrng.0" in domain.XMLDesc(flags)


def good(result: Result) -> str:
    assert result.exit_code == 0, result.lines
    return one_line_each(result)


def bad(result: Result) -> str:
    assert result.exit_code == 1, result.lines
    return one_line_each(result)


def one_line_each(result: Result) -> str:
    assert result.lines
    assert not [line for line in result.lines if "\n" in line or not line]
    return "\n".join(result.lines)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("channel-virtio.xml", xml()),
        ("channel-xen.xml", xml(xen=True)),
        ("rng-virtio.xml", xml(virtio_rng=True)),
    ],
)
def test_the_files_in_conf_are_what_xml_prints(name: str, text: str) -> None:
    assert (CONF / name).read_text() == text


class TestQemu:
    pytestmark = needs_qemu

    def test_a_running_persistent_domain_gets_and_loses_both(self, qemu: PrivateLibvirtd) -> None:
        domain = qemu.connection().defineXML(paused_domain("both", UUID_A, channel=False))
        domain.createWithFlags(PAUSED)
        try:
            text = good(attach("both", qemu.uri))
            assert "definition" in text
            assert "active now" in text
            assert "power-off" not in text
            assert has_channel(domain)
            assert has_channel(domain, INACTIVE)
            assert "already" in good(attach(UUID_A, qemu.uri))
            assert domain.XMLDesc(0).count("name='org.netrng.0'") == 1
            text = good(detach("both", qemu.uri))
            assert "removed from the definition" in text
            assert "removed from the running domain" in text
            assert not has_channel(domain)
            assert not has_channel(domain, INACTIVE)
            assert "no channel" in good(detach("both", qemu.uri))
        finally:
            domain.destroy()
            domain.undefine()

    def test_without_a_controller_the_running_domain_cannot_take_it(self, qemu: PrivateLibvirtd) -> None:
        domain = qemu.connection().defineXML(paused_domain("bare", UUID_B, channel=False, controller=False))
        domain.createWithFlags(PAUSED)
        try:
            text = good(attach("bare", qemu.uri))
            assert ACTIVE in text
            assert "virtio-serial" in text
            assert has_channel(domain, INACTIVE)
            assert not has_channel(domain)
            assert "power-off" in good(attach("bare", qemu.uri)), "again: still not active"
        finally:
            domain.destroy()
        domain.createWithFlags(PAUSED)
        try:
            assert has_channel(domain)
        finally:
            domain.destroy()
            domain.undefine()

    def test_a_stopped_domain_gets_it_at_its_next_start(self, qemu: PrivateLibvirtd) -> None:
        domain = qemu.connection().defineXML(paused_domain("off", UUID_A, channel=False))
        try:
            text = good(attach("off", qemu.uri))
            assert "next start" in text
            assert "power-off" not in text
            assert has_channel(domain)
            good(detach("off", qemu.uri))
            assert not has_channel(domain)
        finally:
            domain.undefine()

    def test_a_transient_domain_takes_it_live_only(self, qemu: PrivateLibvirtd) -> None:
        domain = qemu.connection().createXML(paused_domain("once", UUID_A, channel=False), PAUSED)
        try:
            text = good(attach("once", qemu.uri))
            assert "active now" in text
            assert "transient" in text
            assert has_channel(domain)
            good(detach("once", qemu.uri))
            assert not has_channel(domain)
        finally:
            domain.destroy()

    def test_a_transient_domain_that_cannot_take_it_is_an_error(self, qemu: PrivateLibvirtd) -> None:
        domain = qemu.connection().createXML(
            paused_domain("poor", UUID_A, channel=False, controller=False), PAUSED
        )
        try:
            text = bad(attach("poor", qemu.uri))
            assert "virtio-serial" in text
            assert "transient" in text
            assert "after the next full power-off" not in text
        finally:
            domain.destroy()


class TestQuotaOfQemu:
    pytestmark = needs_qemu

    def test_a_running_daemon_follows_it_and_the_definition_keeps_it(
        self, qemu: PrivateLibvirtd, tmp_path: Path
    ) -> None:
        domain = qemu.connection().defineXML(paused_domain("db", UUID_A))
        domain.createWithFlags(PAUSED)
        config = (
            f'[libvirt]\nuris = ["{qemu.uri}"]\n[[source]]\nkind = "prng"\n'
            '[[quota]]\nname = "all"\nmatch = ["*"]\nweight = 7\nmax_weight = 500\n'
        )
        try:
            with Hostd(tmp_path, config).start() as hostd:

                def in_force(**expected: object) -> None:
                    wait_for(lambda: expected.items() <= hostd.domain("db").items(), f"{expected}")

                in_force(quota="all", weight=7, state="waiting")
                done = run_command(
                    "quota", "db", "--connect", qemu.uri, "--reservation", "1KiB/s", "--weight", "900"
                )
                assert done.returncode == 0, done.stderr
                in_force(quota="metadata", reservation=1024, weight=500, limit=None)
                good(quota("db", {"limit": "2KiB/s"}, uri=qemu.uri))
                in_force(reservation=1024, weight=500, limit=2048)
                good(quota("db", {}, reset=True, uri=qemu.uri))
                in_force(quota="all", reservation=0, weight=7, limit=None)
                domain.setMetadata(2, "<quota wieght='3'/>", "netrng", "urn:netrng:1", 1)
                wait_for(lambda: hostd.domain("db")["quota_detail"], "the complaint")
                assert "malformed" in good(quota("db", {}, uri=qemu.uri))
                assert "--reset" in bad(quota("db", {"weight": "3"}, uri=qemu.uri))
                good(quota("db", {"weight": "3"}, reset=True, uri=qemu.uri))
                in_force(quota="metadata", quota_detail="", weight=3)
                connected = [line for line in hostd.log.splitlines() if line.endswith("db: waiting")]
                assert len(connected) == 1, "the channel was kept"
                assert hostd.log.count("quota in its metadata ignored: unknown attribute 'wieght'") == 1
                domain.destroy()
                domain.createWithFlags(PAUSED)
                in_force(quota="metadata", weight=3)
        finally:
            domain.destroy()
            domain.undefine()

    def test_a_transient_domain_has_it_while_it_runs(self, qemu: PrivateLibvirtd) -> None:
        domain = qemu.connection().createXML(paused_domain("once", UUID_A), PAUSED)
        try:
            assert "transient" in good(quota("once", {"weight": "3"}, uri=qemu.uri))
            assert "running domain: set: weight 3; the rest" in good(quota("once", {}, uri=qemu.uri))
        finally:
            domain.destroy()


class TestDriversThatChangeWholeDefinitionsOnly:
    """libvirt's test driver knows no attachDevice at all, as Xen's knows none for channels."""

    def test_the_definition_is_rewritten_and_keeps_everything_else(self) -> None:
        metadata = "<metadata><x:y xmlns:x='urn:x'>&lt;devices&gt;</x:y></metadata>"
        text = domain_xml("a", UUID_A, "<controller type='virtio-serial' index='0'/>").replace(
            "<memory>", f"{metadata}<memory>"
        )
        with fake_hypervisor() as hypervisor:
            domain = hypervisor.defineXML(text)
            before = domain.XMLDesc(INACTIVE)
            assert "next start" in good(attach("a", "test:///default"))
            assert has_channel(domain, INACTIVE)
            assert "already" in good(attach("a", "test:///default"))
            good(detach("a", "test:///default"))
            assert domain.XMLDesc(INACTIVE) == before
            domain.undefine()

    def test_a_saved_state_has_no_channel_yet(self) -> None:
        with fake_hypervisor() as hypervisor:
            domain = hypervisor.defineXML(domain_xml("a", UUID_A))
            domain.create()
            domain.managedSave(0)
            text = good(attach("a", "test:///default"))
            assert "active at its next full start: the next one restores a saved state" in text
            assert "; active at its next full start:" in good(detach("a", "test:///default"))
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)

    def test_a_running_domain_waits_for_its_power_off(self) -> None:
        with fake_hypervisor() as hypervisor:
            domain = hypervisor.defineXML(domain_xml("a", UUID_A))
            domain.create()
            text = good(attach("a", "test:///default"))
            assert ACTIVE in text
            assert has_channel(domain, INACTIVE)
            assert not has_channel(domain)
            domain.destroy()
            domain.create()
            assert has_channel(domain)
            gone = good(detach("a", "test:///default"))
            assert "gone after the next full power-off, not a guest reboot" in gone
            assert not has_channel(domain, INACTIVE)
            domain.destroy()
            domain.undefine()


class TestXen:
    """libxl's driver plugs disks, networks and host devices, and refuses channels in these words."""

    @pytest.fixture(autouse=True)
    def libxl(self, monkeypatch: pytest.MonkeyPatch) -> None:
        refused = libvirt.libvirtError("")
        code, source = libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_FROM_LIBXL
        refused.err = (code, source, "device type 'channel' cannot be attached", 2, "", None, None, -1, -1)

        def refuse(_: libvirt.virDomain, xml: str, flags: int) -> int:
            assert "type='xen'" in xml.replace('"', "'")
            raise refused

        for name in ("attachDeviceFlags", "detachDeviceFlags"):
            monkeypatch.setattr(libvirt.virDomain, name, refuse)
        monkeypatch.setattr(administration, "is_xen", lambda _: True)

    def test_a_running_domain_has_it_after_its_power_off(self) -> None:
        with fake_hypervisor() as hypervisor:
            domain = hypervisor.defineXML(domain_xml("pv", UUID_A))
            domain.create()
            waits = "pv: active after the next full power-off or guest reboot (Xen cannot hot-plug channels)"
            assert good(attach("pv", "test:///default")) == f"pv: channel added to the definition\n{waits}"
            assert "<target type='xen' name='org.netrng.0'" in domain.XMLDesc(INACTIVE)
            assert good(attach("pv", "test:///default")) == waits, "again: nothing was added twice"
            assert domain.XMLDesc(INACTIVE).count("org.netrng.0") == 1
            domain.destroy()
            assert good(attach("pv", "test:///default")) == "pv: has the channel already"
            domain.create()
            assert good(detach("pv", "test:///default")) == (
                "pv: channel removed from the definition\n"
                "pv: gone after the next full power-off or guest reboot (Xen cannot hot-plug channels)"
            )
            domain.destroy()
            domain.undefine()

    def test_a_transient_domain_cannot_have_it(self) -> None:
        with fake_hypervisor() as hypervisor:
            domain = hypervisor.createXML(domain_xml("pv", UUID_A), 0)
            assert bad(attach("pv", "test:///default")) == (
                "pv: Xen cannot hot-plug channels; "
                "it is transient: what creates it next time has to bring the channel along"
            )
            domain.destroy()

    def test_what_else_goes_wrong_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: libvirt.virDomain, xml: str, flags: int) -> int:
            if flags != libvirt.VIR_DOMAIN_AFFECT_LIVE:
                return 0
            error = libvirt.libvirtError("")
            error.err = (libvirt.VIR_ERR_INTERNAL_ERROR, 0, "cannot acquire job", 2, "", None, None, -1, -1)
            raise error

        monkeypatch.setattr(libvirt.virDomain, "attachDeviceFlags", fail)
        with fake_hypervisor() as hypervisor:
            domain = hypervisor.defineXML(domain_xml("pv", UUID_A))
            domain.create()
            said = good(attach("pv", "test:///default"))
            assert "cannot acquire job" in said
            assert "hot-plug" not in said
            domain.destroy()
            domain.undefine()


class TestErrors:
    def test_an_unknown_domain(self) -> None:
        with fake_hypervisor():
            for name in ("nobody", UUID_B, "-"):
                assert name in bad(attach(name, "test:///default"))

    def test_an_absent_libvirtd(self, tmp_path: Path) -> None:
        uri = f"qemu+unix:///session?socket={tmp_path / 'none'}"
        assert "is libvirtd" in bad(detach("a", uri))

    def test_a_refused_permission(self, tmp_path: Path) -> None:
        path = tmp_path / "sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            path.chmod(0)
            root = os.geteuid() == 0
            if root:
                os.seteuid(65534)
            try:
                text = bad(attach("a", f"qemu+unix:///session?socket={path}"))
            finally:
                if root:
                    os.seteuid(0)
            assert "Permission denied" in text
            assert "group libvirt" in text

    def test_a_libvirtd_that_hangs(self, tmp_path: Path) -> None:
        path = tmp_path / "sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            assert "did not answer" in bad(
                attach("a", f"qemu+unix:///session?socket={path}", answer_s=0.2)
            )
