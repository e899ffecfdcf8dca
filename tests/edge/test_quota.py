# SPDX-License-Identifier: Apache-2.0
"""netrng-hostd quota, on libvirt's test driver; on real QEMUs: test_attach.py."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from tests.edge.lab import UUID_A, domain_xml, fake_hypervisor

from netrng_hostd.hypervisor.administration import Definition
from netrng_hostd.hypervisor.domain_xml import DomainXmlError, find_quota, parse_domain
from netrng_hostd.hypervisor.errors import HypervisorError
from netrng_hostd.main import main
from netrng_hostd.operate.administer import Result, command_line
from netrng_hostd.operate.quota import quota

URI = "test:///default"
INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE
ELEMENT, LIVE, CONFIG = 2, 1, 2
FROM_FILE = "nothing set, all comes from hostd.toml"
REST = "the rest from hostd.toml"
IN_FORCE = "netrng-hostd status tells what is in force, which hostd.toml may cap"


pytestmark = pytest.mark.usefixtures("libvirt_events")


@pytest.fixture
def hypervisor() -> Iterator[libvirt.virConnect]:
    with fake_hypervisor() as connection:
        yield connection


@pytest.fixture
def both(hypervisor: libvirt.virConnect) -> Iterator[libvirt.virDomain]:
    """A domain with a definition, that runs."""
    domain = hypervisor.defineXML(domain_xml("db-1", UUID_A))
    domain.create()
    yield domain
    if domain.isActive():
        domain.destroy()
    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)


def told(result: Result, exit_code: int = 0) -> list[str]:
    assert result.exit_code == exit_code, result.lines
    assert all(line.isprintable() for line in result.lines)
    return list(result.lines)


def set_quota(**given: str) -> Result:
    return quota("db-1", given, uri=URI)


def attributes(domain: libvirt.virDomain, flags: int = 0) -> dict[str, str] | None:
    element = find_quota(parse_domain(domain.XMLDesc(flags)))
    return None if element is None else dict(element.attributes)


def spell(domain: libvirt.virDomain, xml: str | None, flags: int = LIVE | CONFIG) -> None:
    domain.setMetadata(ELEMENT, xml, "other", "urn:netrng:1", flags)


def test_without_options_it_shows_what_the_metadata_says(both: libvirt.virDomain) -> None:
    assert told(set_quota()) == [f"db-1: definition and running domain: {FROM_FILE}", IN_FORCE]
    spell(both, "<quota weight='300' reservation='1 KiB/s' limit='none'/>")
    said = f"set: reservation 1KiB/s, weight 300, limit none; {REST}"
    assert told(quota(UUID_A, {}, uri=URI)) == [f"db-1: definition and running domain: {said}", IN_FORCE]
    spell(both, "<quota weight='300' reservation='1024' limit='none'/>", LIVE)
    assert len(told(set_quota())) == 2, "another spelling is no difference"
    spell(both, "<quota weight='7'/>", CONFIG)
    assert told(set_quota()) == [
        f"db-1: definition: set: weight 7; {REST}",
        f"db-1: running domain: {said}",
        "db-1: the two differ; what the definition says is in force from its next start on",
        IN_FORCE,
    ]
    both.destroy()
    assert told(set_quota()) == [f"db-1: definition: set: weight 7; {REST}"]


def test_keys_are_set_in_both_and_the_others_stay(both: libvirt.virDomain) -> None:
    said = f"set: reservation 2kB/s, limit none; {REST}"
    assert told(set_quota(reservation="2000", limit="none")) == [
        f"db-1: definition: {said}", f"db-1: running domain: {said}", IN_FORCE,
    ]  # fmt: skip
    assert attributes(both) == attributes(both, INACTIVE) == {"reservation": "2kB/s", "limit": "none"}
    assert "xmlns:netrng=" in both.XMLDesc(0).replace("'", '"')
    spell(both, "<quota weight='5'/>", LIVE)
    told(set_quota(limit="65536", burst="8192"))
    assert attributes(both) == {"weight": "5", "limit": "64KiB/s", "burst": "8KiB"}
    assert attributes(both, INACTIVE) == {"reservation": "2kB/s", "limit": "64KiB/s", "burst": "8KiB"}
    said = "db-1: definition: set: reservation 2kB/s, weight 9, limit 64KiB/s, burst 8KiB"
    assert told(set_quota(weight="9"))[0] == said


def test_reset_removes_all_and_then_sets_what_is_given(both: libvirt.virDomain) -> None:
    told(set_quota(reservation="5", weight="3"))
    told(quota("db-1", {"weight": "9"}, reset=True, uri=URI))
    assert attributes(both) == attributes(both, INACTIVE) == {"weight": "9"}
    assert told(quota("db-1", {}, reset=True, uri=URI)) == [
        "db-1: definition: quota removed, all comes from hostd.toml",
        "db-1: running domain: quota removed, all comes from hostd.toml",
        IN_FORCE,
    ]
    assert attributes(both) is attributes(both, INACTIVE) is None
    told(set_quota(weight="3"))
    spell(both, None, LIVE)
    lines = told(quota("db-1", {}, reset=True, uri=URI))
    assert lines[1] == "db-1: running domain: has no quota in its metadata"
    assert attributes(both, INACTIVE) is None
    assert "urn:netrng:1" not in both.XMLDesc(0) + both.XMLDesc(INACTIVE)


def test_a_stopped_domain_has_it_at_its_next_start(both: libvirt.virDomain) -> None:
    both.destroy()
    (line,) = told(set_quota(weight="3"))
    assert line == f"db-1: definition: set: weight 3; {REST}; in force from its next start on"
    both.create()
    assert attributes(both) == {"weight": "3"}


def test_a_driver_that_changes_no_metadata(both: libvirt.virDomain, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> int:
        raise no_support

    no_support = libvirt.libvirtError("")
    text = "this function is not supported by the connection driver: virDomainSetMetadata"
    no_support.err = (libvirt.VIR_ERR_NO_SUPPORT, 0, text, 2, "", None, None, -1, -1)
    monkeypatch.setattr(libvirt.virDomain, "setMetadata", unknown)
    assert told(set_quota(weight="3"), 1) == [
        f"{URI}: cannot set the quota in the metadata of the definition db-1: {text}; "
        "give db-1 a [[quota]] in hostd.toml instead"
    ]


def test_a_saved_state_is_restored_with_its_own_quota(
    both: libvirt.virDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    both.managedSave(0)
    (line,) = told(set_quota(weight="3"))
    full = "in force from its next full start on"
    full += ": the next one restores a saved state, with that state's quota"
    assert line == f"db-1: definition: set: weight 3; {REST}; {full}"
    assert told(set_quota()) == [
        f"db-1: definition: set: weight 3; {REST}",
        f"db-1: what the definition says is {full}",
    ]

    def unknown(self: libvirt.virDomain, flags: int) -> int:
        raise no_support

    no_support = libvirt.libvirtError("")
    no_support.err = (libvirt.VIR_ERR_NO_SUPPORT, 0, "", 0, "", None, None, -1, -1)
    with monkeypatch.context() as patched:
        patched.setattr(libvirt.virDomain, "hasManagedSaveImage", unknown)
        assert len(told(set_quota())) == 1, "a driver that keeps no states"
    both.managedSaveRemove(0)
    assert len(told(set_quota())) == 1


def test_a_transient_domain_has_it_while_it_runs(hypervisor: libvirt.virConnect) -> None:
    domain = hypervisor.createXML(domain_xml("db-1", UUID_A), 0)
    assert told(set_quota())[0] == f"db-1: running domain: {FROM_FILE}"
    line, _ = told(set_quota(weight="3"))
    assert line.startswith(f"db-1: running domain: set: weight 3; {REST};")
    assert line.endswith("; it is transient: what creates it next time has to bring the quota along")
    assert attributes(domain) == {"weight": "3"}
    domain.destroy()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"weight": "0"}, "weight: found weight '0'; allowed: a whole number from 1 to 10000"),
        ({"limit": "fast"}, "limit: found rate 'fast'; allowed: bytes per second as 100"),
        ({"burst": "1"}, "quota 'metadata': burst is 1B; allowed: 64B to 1GiB"),
        ({"reservation": "2", "limit": "1"}, "quota 'metadata': reservation 2B/s exceeds limit 1B/s"),
        ({"reservation": "\udcff\x1b"}, r"reservation: found rate '\udcff\x1b'; allowed"),
    ],
)
def test_a_bad_value_is_exit_code_2_before_libvirt_is_asked(given: dict[str, str], complaint: str) -> None:
    (line,) = told(quota("db-1", given, uri="nonsense:///"), 2)
    assert line.startswith(complaint)


def test_a_reservation_above_the_limit_that_stays_is_refused_and_nothing_is_changed(
    both: libvirt.virDomain,
) -> None:
    spell(both, "<quota limit='1000'/>", LIVE)
    (line,) = told(set_quota(reservation="2000", weight="3"), 2)
    assert line == (
        "db-1: running domain: quota 'metadata': reservation 2kB/s exceeds limit 1kB/s;"
        " allowed: a reservation up to the limit; nothing was changed"
    )
    assert attributes(both, INACTIVE) is None
    assert attributes(both) == {"limit": "1000"}
    told(quota("db-1", {"reservation": "2000"}, reset=True, uri=URI))


@pytest.mark.parametrize("xml", ["<quota weight='0'/>", "<quotta weight='3'/>", "<quota><weight/></quota>"])
def test_what_is_malformed_is_shown_and_only_a_reset_changes_it(both: libvirt.virDomain, xml: str) -> None:
    spell(both, xml, CONFIG)
    lines = told(set_quota())
    assert lines[0].startswith("db-1: definition: malformed, so hostd.toml's is used: ")
    assert lines[0].endswith(f"; mend it: netrng-hostd quota --reset --connect {URI} db-1")
    assert lines[1] == f"db-1: running domain: {FROM_FILE}"
    (line,) = told(set_quota(weight="3"), 1)
    assert line.startswith("db-1: definition: the quota in its metadata is malformed: ")
    assert line.endswith("; nothing was changed; begin anew with --reset")
    assert attributes(both) is None
    told(quota("db-1", {"weight": "3"}, reset=True, uri=URI))
    assert attributes(both) == attributes(both, INACTIVE) == {"weight": "3"}


@pytest.mark.parametrize("name", ["-v", "it's; reboot", "$(reboot)"])
def test_the_command_that_mends_it_can_be_typed_as_it_stands(
    hypervisor: libvirt.virConnect, name: str
) -> None:
    domain = hypervisor.createXML(domain_xml(name, UUID_A), 0)
    spell(domain, "<quota weight='0'/>", LIVE)
    command = shlex.split(told(quota(UUID_A, {}, uri=URI))[0].partition("; mend it: ")[2])
    assert command.pop(0) == "netrng-hostd"
    assert main(command) == 0
    assert attributes(domain) is None
    domain.destroy()


def test_the_default_uri_need_not_be_typed() -> None:
    assert command_line("attach", "web-1", "qemu:///system") == "netrng-hostd attach web-1"


def test_what_was_done_before_libvirt_refuses_is_told(
    both: libvirt.virDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_it = Definition.set_quota

    def refuse_live(self: Definition, wanted: Any, *, live: bool) -> None:
        if live:
            raise HypervisorError(f"{URI}: cannot set the quota: not now")
        set_it(self, wanted, live=live)

    monkeypatch.setattr(Definition, "set_quota", refuse_live)
    lines = told(set_quota(weight="3"), 1)
    assert lines[0].startswith("db-1: definition: set: ")
    assert lines[1:] == [f"{URI}: cannot set the quota: not now"]
    assert attributes(both, INACTIVE) == {"weight": "3"}


def test_a_name_that_would_command_the_terminal_is_escaped(hypervisor: libvirt.virConnect) -> None:
    domain = hypervisor.createXML(domain_xml("a\tb\u202ec", UUID_A), 0)
    line, _ = told(quota(UUID_A, {}, uri=URI))
    assert line == rf"a\tb\u202ec: running domain: {FROM_FILE}"
    domain.destroy()


def test_xml_that_cannot_be_read_is_told_with_its_place(
    both: libvirt.virDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_: Definition) -> None:
        raise DomainXmlError("the domain's XML has 5000000 characters; 4194304 are allowed")

    monkeypatch.setattr(Definition, "kept_quota", unreadable)
    (line,) = told(set_quota(weight="3"), 1)
    assert line == f"{URI}: db-1: the domain's XML has 5000000 characters; 4194304 are allowed"
    assert attributes(both) is None


def test_trouble_with_libvirt_is_exit_code_1(hypervisor: libvirt.virConnect, tmp_path: Path) -> None:
    (line,) = told(quota("nobody", {}, uri=URI), 1)
    assert "no domain nobody" in line
    (line,) = told(quota("db-1", {}, uri=f"qemu+unix:///session?socket={tmp_path / 'none'}"), 1)
    assert "is libvirtd" in line


def test_the_command_line(both: libvirt.virDomain, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["quota", "db-1", "--connect", URI]
    assert main([*command, "--reservation", "1KiB/s", "--weight", "300", "--limit", "none"]) == 0
    assert main([*command, "--burst", "4096", "--reset", "--weight=9"]) == 0
    assert attributes(both) == {"weight": "9", "burst": "4KiB"}
    capsys.readouterr()
    assert main(command) == 0
    assert f"set: weight 9, burst 4KiB; {REST}\n" in capsys.readouterr().out
    assert main([*command, "--limit", "0"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("netrng-hostd: limit: found limit '0'; allowed:")
    assert said.err.count("\n") == 1
