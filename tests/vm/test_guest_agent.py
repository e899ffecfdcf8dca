# SPDX-License-Identifier: Apache-2.0
"""The agent on a real port and a real kernel: no host, a host, a second agent, a detached port."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest
from bed.domain_xml import CHANNEL_XML
from bed.vm import VM
from tests.edge.guest_lab import Host

ROOT = Path(__file__).parents[2]
AGENT = "/opt/netrng-guest.pyz"
RUN = f"python3 -I -S {AGENT}"
LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
BootVM = Callable[..., VM]


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dist") / "netrng-guest.pyz"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "build_pyz.py"), str(path)], check=True)
    return path


@contextmanager
def connected(vm: VM) -> Iterator[Host]:
    """The host's half of the protocol on the VM's channel."""
    path = vm.channel_socket()
    assert path is not None
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(path))
        yield Host(link.fileno())


def channel_of(vm: VM) -> str:
    for element in ET.fromstring(vm.domain.XMLDesc()).iter("channel"):
        text = ET.tostring(element, encoding="unicode")
        if "org.netrng.0" in text:
            return text
    raise AssertionError("no channel")


def test_hostless_then_served_then_detached_and_attached(boot_vm: BootVM, pyz: Path) -> None:
    vm = boot_vm("agent", files={AGENT: pyz}, main=f"exec {RUN} run --sink kernel")
    vm.wait_for(lambda: "opened /dev/vport" in vm.run("cat /run/main.out").out, 60, "the port")

    # A wakeup is a voluntary switch, a spin an involuntary one; it looks every 0.2 s, later every 2 s.
    switches = "cat /proc/$(pidof python3)/status | grep ctxt_switches"
    counts = vm.check(f"{switches}; sleep 5; {switches}").splitlines()  # by the guest's own clock
    first, second = (sum(map(int, re.findall(r"\d+", " ".join(two)))) for two in (counts[:2], counts[2:]))
    assert 0 < second - first < 30, "it spins without a host"

    told = vm.run(f"{RUN} check")
    assert told.rc == 0
    assert "in use, presumably by netrng-guest itself" in told.out
    other = f"{RUN} run --sink kernel >/run/second 2>&1 & p=$!; "
    other += "until grep -qs 'another program has it open' /run/second; do sleep 0.1; done; "
    other += "kill $p; wait $p; echo $?"
    assert vm.check(other, 60) == "0\n"

    with connected(vm) as host:
        # A slow guest has earned more before it has taken the first block.
        host.until(lambda: host.session.acked >= 64 + 2500, "seed and block", 90)
        vm.domain.detachDeviceFlags(channel_of(vm), LIVE)
        vm.wait_for(lambda: "no channel org.netrng.0" in vm.run("cat /run/main.out").out, 30, "the loss")

    vm.domain.attachDeviceFlags(CHANNEL_XML, LIVE)
    with connected(vm) as host:
        host.until(lambda: host.session.acked >= 64, "a seed through the new port", 90)
    assert "Traceback" not in vm.run("cat /run/main.out").out
