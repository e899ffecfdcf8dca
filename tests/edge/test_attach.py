# SPDX-License-Identifier: Apache-2.0
"""attach, detach, xml and quota: on real paused QEMUs of a private libvirtd, and on libvirt's test driver."""

from __future__ import annotations

import functools
import os
import re
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
from netrng_hostd.hypervisor.domain_xml import LiveChannel, parse_live
from netrng_hostd.operate.administer import Refused, Result
from netrng_hostd.operate.attach import attach, detach, xml
from netrng_hostd.operate.quota import quota
from netrng_hostd.operate.rng_device import rng_path, rng_xml

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


attach_rng = functools.partial(attach, virtio_rng=True)
detach_rng = functools.partial(detach, virtio_rng=True)


def rng_paths(domain: libvirt.virDomain, flags: int = 0) -> list[str]:
    """Those of the sockets that its EGD backends listen on."""
    text = domain.XMLDesc(flags)
    return re.findall(r"<backend model='egd' type='unix'>\s*<source mode='bind' path='([^']*)'/>", text)


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


class TestVirtioRngOfQemu:
    pytestmark = needs_qemu

    @pytest.fixture(autouse=True)
    def folder(self, qemu: PrivateLibvirtd, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Its own, of this session's libvirt."""
        monkeypatch.setenv("XDG_CONFIG_HOME", str(qemu.folder / "c"))
        return qemu.folder / "c/libvirt/qemu"

    def test_a_running_persistent_domain_gets_both(self, qemu: PrivateLibvirtd, folder: Path) -> None:
        text = paused_domain("both", UUID_A, channel=False, acpi=True)
        domain = qemu.connection().defineXML(text)
        domain.createWithFlags(PAUSED)
        path = f"{folder}/both.netrng"
        try:
            assert good(attach_rng("both", qemu.uri)) == (
                "both: virtio-rng added to the definition\n"
                "both: virtio-rng added to the running domain, active now"
            )
            assert rng_paths(domain) == rng_paths(domain, INACTIVE) == [path]
            assert Path(path).is_socket()
            live = parse_live(domain.XMLDesc(0), qemu.uri)
            assert live is not None
            assert (live.channel, live.rng) == (None, LiveChannel("virtio-rng", path, "bind", None))
            assert good(attach_rng(UUID_A, qemu.uri)) == "both: has the virtio-rng already"
            assert "has no channel" in good(detach("both", qemu.uri))
            assert rng_paths(domain) == rng_paths(domain, INACTIVE) == [path]
        finally:
            domain.destroy()
            domain.undefine()

    def test_what_the_guest_does_not_let_go_of_is_not_called_gone(self, qemu: PrivateLibvirtd) -> None:
        """A paused one cannot; libvirt waits for it, and calls it done."""
        domain = qemu.connection().createXML(paused_domain("holds", UUID_A, channel=False, acpi=True), PAUSED)
        try:
            assert good(attach_rng("holds", qemu.uri)) == (
                "holds: virtio-rng added to the running domain, active now; "
                "it is transient: what creates it next time has to bring the virtio-rng along"
            )
            assert good(detach_rng("holds", qemu.uri)) == (
                "holds: gone once the guest lets go of it, at the latest after its next full power-off"
            )
            assert rng_paths(domain)
        finally:
            domain.destroy()

    def test_where_nothing_can_be_plugged_in_it_is_active_after_a_power_off(
        self, qemu: PrivateLibvirtd
    ) -> None:
        """A machine "pc" without ACPI."""
        domain = qemu.connection().defineXML(paused_domain("fixed", UUID_B, channel=False))
        domain.createWithFlags(PAUSED)
        try:
            text = good(attach_rng("fixed", qemu.uri))
            assert ACTIVE in text
            assert "does not support hotplugging" in text
            assert rng_paths(domain, INACTIVE)
            assert not rng_paths(domain)
            assert "power-off" in good(attach_rng("fixed", qemu.uri)), "again: still not active"
            domain.destroy()
            domain.createWithFlags(PAUSED)
            assert Path(*rng_paths(domain)).is_socket()
            assert "has the virtio-rng already" in good(attach_rng("fixed", qemu.uri))
            text = good(detach_rng("fixed", qemu.uri))
            assert "virtio-rng removed from the definition" in text
            assert "gone after the next full power-off, not a guest reboot (" in text
            domain.destroy()
            assert not rng_paths(domain)
            assert "has no virtio-rng" in good(detach_rng("fixed", qemu.uri))
        finally:
            domain.undefine()

    def test_a_transient_domain_that_cannot_take_it_is_an_error(self, qemu: PrivateLibvirtd) -> None:
        domain = qemu.connection().createXML(paused_domain("poor", UUID_A, channel=False), PAUSED)
        try:
            text = bad(attach_rng("poor", qemu.uri))
            assert "hotplugging" in text
            assert text.endswith("what creates it next time has to bring the virtio-rng along")
        finally:
            domain.destroy()

    def test_another_rng_device_is_left_alone_and_named(self, qemu: PrivateLibvirtd) -> None:
        other = "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng></devices>"
        text = paused_domain("two", UUID_A, channel=False).replace("</devices>", other)
        domain = qemu.connection().defineXML(text)
        try:
            assert "has no virtio-rng" in good(detach_rng("two", qemu.uri))
            added, named = good(attach_rng("two", qemu.uri)).splitlines()
            assert added == "two: virtio-rng added to the definition; active at its next start"
            assert named.startswith(
                "two: it has another RNG device, which the guest's kernel may go on reading"
            )
            good(detach_rng("two", qemu.uri))
            assert not rng_paths(domain)
            assert "/dev/urandom" in domain.XMLDesc(0)
        finally:
            domain.undefine()


class TestWhereTheSocketOfAVirtioRngIs:
    @pytest.mark.parametrize(
        ("name", "file"),
        [
            ("web-1", "web-1"),
            ("a" * 78, "a" * 78),
            ("a" * 79, UUID_A),
            *((name, UUID_A) for name in ("a b", "a/b", "..", ".a", "b\u00fcro", "a*", "a'<&", "")),
        ],
    )
    def test_it_has_the_domains_name_or_its_uuid(self, name: str, file: str) -> None:
        path = rng_path("qemu:///system", name, UUID_A, {})
        assert path == f"/var/lib/libvirt/qemu/{file}.netrng"
        assert len(path) <= 107

    @pytest.mark.parametrize(
        "uri", ["qemu:///system", "qemu+ssh://host/system", "qemu+unix:///system?socket=/session"]
    )
    def test_a_systems(self, uri: str) -> None:
        assert rng_path(uri, "a", UUID_A, {"XDG_CONFIG_HOME": "/x"}) == "/var/lib/libvirt/qemu/a.netrng"

    def test_a_sessions(self, tmp_path: Path) -> None:
        for folder, environment in (
            (tmp_path / "c", {"HOME": "/nonexistent", "XDG_CONFIG_HOME": f"{tmp_path}/c/"}),
            (tmp_path / "h/.config", {"HOME": f"{tmp_path}/h", "XDG_CONFIG_HOME": ""}),
        ):
            with pytest.raises(Refused, match=f"no folder {folder}/libvirt/qemu; set XDG_CONFIG_HOME"):
                rng_path("qemu:///session", "a", UUID_A, environment)
            (folder / "libvirt/qemu").mkdir(parents=True)
            path = rng_path("qemu:///session", "a", UUID_A, environment)
            assert path == f"{folder}/libvirt/qemu/a.netrng"

    def test_a_session_on_another_host_is_not_guessed(self) -> None:
        with pytest.raises(Refused, match="known on its host alone; run this there"):
            rng_path("qemu+ssh://host/session", "a", UUID_A, {})

    def test_a_path_that_no_socket_could_have(self, tmp_path: Path) -> None:
        deep = tmp_path / ("d" * 90)
        (deep / "libvirt/qemu").mkdir(parents=True)
        with pytest.raises(Refused, match="too long for a socket, 107 bytes are allowed"):
            rng_path("qemu:///session", "a", UUID_A, {"XDG_CONFIG_HOME": str(deep)})

    def test_it_is_escaped(self) -> None:
        text = (
            f"<domain type='kvm' id='1'><name>a</name><uuid>{UUID_A}</uuid><devices>{{}}</devices></domain>"
        )
        live = parse_live(text.format(rng_xml("/a'<&\">")), "")
        assert live is not None
        assert live.rng == LiveChannel("virtio-rng", "/a'<&\">", "bind", None)


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

    def test_a_virtio_rng_alike(self) -> None:
        with fake_hypervisor() as hypervisor:
            domain = hypervisor.defineXML(domain_xml("a", UUID_A))
            before = domain.XMLDesc(INACTIVE)
            domain.create()
            text = good(attach_rng("a", "test:///default"))
            assert text.startswith("a: virtio-rng added to the definition\na: " + ACTIVE)
            assert rng_paths(domain, INACTIVE) == ["/var/lib/libvirt/qemu/a.netrng"]
            assert not rng_paths(domain)
            domain.managedSave(0)
            good(detach_rng("a", "test:///default"))
            assert domain.XMLDesc(INACTIVE) == before
            saved = "active at its next full start: the next one restores a saved state"
            assert saved in good(attach_rng("a", "test:///default"))
            assert f"; {saved}" in good(detach_rng("a", "test:///default"))
            assert good(detach_rng("a", "test:///default")) == "a: has no virtio-rng"
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)

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

    def test_a_virtio_rng_is_refused(self) -> None:
        with fake_hypervisor() as hypervisor:
            domain = hypervisor.defineXML(domain_xml("pv", UUID_A))
            assert bad(attach_rng("pv", "test:///default")) == (
                "pv: Xen has no virtio-rng; "
                "give it a channel: netrng-hostd attach --connect test:///default pv"
            )
            assert "<rng" not in domain.XMLDesc(INACTIVE)
            domain.undefine()

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
            assert "did not answer" in bad(attach("a", f"qemu+unix:///session?socket={path}", answer_s=0.2))
