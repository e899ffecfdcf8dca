# SPDX-License-Identifier: Apache-2.0
"""The systemd units: known to systemd, and exposed no more than they must be."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from netrng_hostd.channels.listen import GROUP
from netrng_hostd.config import AdmissionConfig, load
from netrng_hostd.main import build_parser

CONF = Path(__file__).parents[2] / "conf"
UNITS = sorted((CONF / "systemd").glob("*.service"))
HOSTD = CONF / "systemd" / "netrng-hostd.service"
DOM0 = CONF.parent / "contrib/xen/netrng-hostd-dom0.conf"
EXPOSURE_MAX = 2.0

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian: systemd)"
)


def settings(unit: Path) -> dict[str, list[str]]:
    """Each key's values in the file's order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Za-z]+)=(.*)$", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def test_both_are_here() -> None:
    assert [unit.name for unit in UNITS] == ["netrng-guest.service", "netrng-hostd.service"]


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_exposure(unit: Path) -> None:
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told.stdout)
    assert level is not None, told
    assert float(level[1]) <= EXPOSURE_MAX, told.stdout


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_knows_every_setting(unit: Path) -> None:
    told = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    # That what they start is not installed on this machine is no fault of the unit.
    complaints = [line for line in told.stderr.splitlines() if "is not executable" not in line]
    assert complaints == []


@needs_systemd
def test_a_port_of_this_host_costs_little(tmp_path: Path) -> None:
    """The drop-in for kind = "egd" with an address, by the unit's own comment."""
    text = HOSTD.read_text(encoding="utf-8")
    comment = re.search(r"^# For an EGD server.*\n((?:#   .*\n)+)", text, re.MULTILINE)
    assert comment is not None
    unit = tmp_path / HOSTD.name
    unit.write_text(text + comment[1].replace("#   ", ""))
    found = settings(unit)
    assert found["RestrictAddressFamilies"] == ["AF_UNIX", "AF_INET AF_INET6"]
    assert (found["IPAddressDeny"], found["IPAddressAllow"]) == (["any"], ["localhost"])
    test_exposure(unit)
    test_systemd_knows_every_setting(unit)


@needs_systemd
def test_dom0s_drop_in_is_one_of_hostds_unit(tmp_path: Path) -> None:
    unit = tmp_path / HOSTD.name
    unit.write_text(HOSTD.read_text(encoding="utf-8"))
    drop_in = tmp_path / f"{HOSTD.name}.d" / "xen.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(DOM0.read_text(encoding="utf-8"))
    test_systemd_knows_every_setting(unit)
    drop_in.write_text(DOM0.read_text(encoding="utf-8").replace("After=", "Afterwards="))
    with pytest.raises(AssertionError, match=r"xen\.conf.*Afterwards"):  # so it was looked at
        test_systemd_knows_every_setting(unit)


def test_dom0s_drop_in_changes_the_order_alone() -> None:
    assert set(settings(DOM0)) == {"After"}
    (before,) = settings(HOSTD)["After"]
    (after,) = settings(DOM0)["After"]
    assert {"xen.service", "xenstored.service", "xenconsoled.service"} <= set(after.split())
    assert not set(after.split()) & set(before.split()), "the two add up"
    told = re.search(r"/etc/systemd/system/(\S+)/xen\.conf", DOM0.read_text(encoding="utf-8"))
    assert told is not None
    assert told[1] == f"{HOSTD.name}.d"


def test_the_agent_may_open_what_a_channel_is_under_kvm_and_under_xen() -> None:
    allowed = settings(CONF / "systemd/netrng-guest.service")["DeviceAllow"]
    assert {"char-virtio-portsdev rw", "char-hvc rw", "/dev/xen/xenbus rw"} <= set(allowed)


def test_hostd_is_root_with_one_capability() -> None:
    found = settings(HOSTD)
    assert found["User"] == ["root"]
    assert found["CapabilityBoundingSet"] == ["CAP_DAC_OVERRIDE"]
    assert found["AmbientCapabilities"] == [""]
    assert found["NoNewPrivileges"] == ["yes"]


def test_hostds_entropy_stays_in_memory() -> None:
    found = settings(HOSTD)
    assert found["LimitMEMLOCK"] == ["infinity"]
    assert found["MemorySwapMax"] == ["0"]
    assert found["LimitCORE"] == ["0"]


def test_hostd_is_not_started_again_with_an_invalid_configuration() -> None:
    found = settings(HOSTD)
    assert found["Restart"] == ["on-failure"]
    assert found["RestartPreventExitStatus"] == ["2"]


def test_hostd_has_descriptors_for_all_its_domains() -> None:
    (limit,) = settings(HOSTD)["LimitNOFILE"]
    assert int(limit) >= 3 * AdmissionConfig().max_domains


def test_a_reload_checks_the_configuration_first() -> None:
    found = settings(HOSTD)
    check, kill = found["ExecReload"]
    assert kill == "/bin/kill -HUP $MAINPID"
    program, *arguments = check.split()
    assert found["ExecStart"] == [f"{program} run"]
    options = build_parser().parse_args(arguments)
    assert (options.command, options.config_only) == ("check", True)


def test_the_group_of_the_control_socket() -> None:
    assert settings(HOSTD)["Group"] == [GROUP]
    text = (CONF / "sysusers.d" / "netrng.conf").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if not line.startswith("#")] == [f"g {GROUP} -"]
    shipped = load(str(CONF / "hostd.toml"))
    assert shipped.control == f"/run/{settings(HOSTD)['RuntimeDirectory'][0]}/hostd.sock"
