# SPDX-License-Identifier: Apache-2.0
"""`netrng-hostd attach` and `detach` on VMs that run, beside a daemon that shall notice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import libvirt
from bed.libvirtd import PrivateLibvirtd
from bed.vm import VM
from tests.edge.rig import Hostd, run_command, wait_for
from tests.vm.rig import DRAIN, BootVM, boot_with_agent, make_hostd, wait_for_acked, wait_for_state

LATER = "active after the next full power-off, not a guest reboot"


def administer(command: str, vm: VM) -> str:
    """`netrng-hostd COMMAND NAME --connect URI`, as an administrator types it; what it printed."""
    done = run_command(command, vm.name, "--connect", vm.host.uri)
    assert done.returncode == 0, done
    assert done.stderr == ""
    return done.stdout


def administer_rng(command: str, vm: VM) -> str:
    """The same with --virtio-rng, by one whose session libvirt it is."""
    own = str(vm.host.folder / "c")
    done = run_command(command, vm.name, "--virtio-rng", "--connect", vm.host.uri, XDG_CONFIG_HOME=own)
    assert done.returncode == 0, done
    assert done.stderr == ""
    return done.stdout


def rng_sockets(vm: VM, flags: int = 0) -> list[str]:
    """Where its QEMU listens for who feeds a virtio-rng."""
    return re.findall(r"<source mode='bind' path='([^']*\.netrng)'/>", vm.domain.XMLDesc(flags))


def wait_for_rngs(vm: VM, *names: str) -> None:
    """Until the guest's kernel has those and no others to choose from."""

    def there() -> bool:
        return vm.check("cat /sys/class/misc/hw_random/rng_available").split() == list(names)

    vm.wait_for(there, 60, f"the RNGs {names}")


def kept_channel(vm: VM) -> bool:
    """Whether the persistent definition has the channel."""
    return "org.netrng.0" in vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)


def wait_without_channel(hostd: Hostd, *names: str) -> None:
    """Until those, and no others, are shown to run without a channel."""
    wait_for(lambda: hostd.status()["without_channel"] == list(names), f"{names} without a channel", 90)


def test_attached_and_detached_live(boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path) -> None:
    with make_hostd(tmp_path, libvirtd, "/dev/urandom") as hostd:
        hostd.start()
        options: dict[str, Any] = {"channel": False, "memory_mib": 192, "trace": False, "wait": False}
        kept = boot_with_agent(boot_vm, "kept", arguments=f"--rate 10kB/s {DRAIN}", **options)
        transient = boot_with_agent(
            boot_vm, "transient", arguments=f"--rate 10kB/s {DRAIN}", persistent=False, **options
        )
        for vm in (kept, transient):
            vm.wait_up()
        wait_without_channel(hostd, "kept", "transient")
        for vm in (kept, transient):
            said = administer("attach", vm)
            assert "active now" in said
            assert ("definition" in said) == (vm is kept)
        for vm in (kept, transient):
            wait_for_acked(hostd, vm, 4096)
        assert hostd.status()["without_channel"] == []
        assert kept_channel(kept)
        assert "has the channel already" in administer("attach", kept)

        for vm in (kept, transient):
            assert "removed from the running domain" in administer("detach", vm)
        for vm in (kept, transient):
            wait_for_state(hostd, vm, "")
        wait_without_channel(hostd, "kept", "transient")
        assert not kept_channel(kept)
        assert hostd.status()["ledger_ok"]

        administer("attach", kept)
        wait_for_acked(hostd, kept, 4096)
        assert hostd.status()["ledger_ok"]
        assert "Traceback" not in hostd.log


def test_without_a_controller_it_is_active_after_a_power_off(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    with make_hostd(tmp_path, libvirtd, "/dev/urandom") as hostd:
        hostd.start()
        vm = boot_with_agent(
            boot_vm,
            "later",
            arguments=DRAIN,
            channel=False,
            controller=False,
            memory_mib=192,
            trace=False,
        )
        assert LATER in administer("attach", vm)
        assert kept_channel(vm)
        assert vm.channel_socket() is None
        wait_without_channel(hostd, "later")
        vm.destroy()
        wait_without_channel(hostd)
        vm.boot_again()
        wait_for_acked(hostd, vm, 4096)
        wait_for_state(hostd, vm, "open")

        transient = boot_with_agent(
            boot_vm,
            "brief",
            channel=False,
            controller=False,
            persistent=False,
            memory_mib=192,
            trace=False,
            wait=False,
        )
        wait_without_channel(hostd, "brief")
        refused = run_command("attach", "brief", "--connect", transient.host.uri)
        assert refused.returncode == 1, "nothing to keep it in"
        assert "virtio-serial" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert LATER not in refused.stdout + refused.stderr
        assert "Traceback" not in hostd.log


def test_a_virtio_rng_is_plugged_in_and_out(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    """There, asking, in the guest and its host, served; and gone from both."""
    with make_hostd(tmp_path, libvirtd, "/dev/urandom") as hostd:
        hostd.start()
        kept = boot_vm("rng", channel=False, memory_mib=192, wait=False)
        transient = boot_vm("rng-once", channel=False, memory_mib=192, wait=False, persistent=False)
        for vm in (kept, transient):
            vm.wait_up()
        wait_without_channel(hostd, "rng", "rng-once")
        for vm in (kept, transient):
            wait_for_rngs(vm)
            said = administer_rng("attach", vm)
            assert "virtio-rng added to the running domain, active now" in said
            assert ("definition" in said) == (vm is kept)
            assert ("transient" in said) == (vm is transient)
            wait_for_rngs(vm, "virtio_rng.0")
            (path,) = rng_sockets(vm)
            assert path == str(vm.host.folder / f"c/libvirt/qemu/{vm.name}.netrng")
            assert vm.check("dd if=/dev/hwrng bs=64 count=20 2>/dev/null | wc -c").split() == ["1280"]
            served = wait_for_state(hostd, vm, "open")
            assert (served["kind"], served["channel"]) == ("virtio-rng", path)
            assert served["bytes_sent"] >= 1280
            assert "has the virtio-rng already" in administer_rng("attach", vm)
        assert rng_sockets(kept, libvirt.VIR_DOMAIN_XML_INACTIVE) == rng_sockets(kept)
        assert hostd.status()["without_channel"] == []

        for vm in (kept, transient):
            said = administer_rng("detach", vm)
            assert "virtio-rng removed from the running domain" in said
            assert ("definition" in said) == (vm is kept)
            wait_for_rngs(vm)
            assert rng_sockets(vm) == rng_sockets(vm, libvirt.VIR_DOMAIN_XML_INACTIVE) == []
            assert "<rng" not in vm.domain.XMLDesc(0)
            assert "has no virtio-rng" in administer_rng("detach", vm)
        wait_without_channel(hostd, "rng", "rng-once")
        assert hostd.status()["domains"] == []
        assert "Traceback" not in hostd.log


def test_a_vm_boots_with_a_virtio_rng_that_nobody_feeds(boot_vm: BootVM) -> None:
    """Attached while it is off."""
    vm = boot_vm("unfed", channel=False, memory_mib=192)
    vm.destroy()
    assert "active at its next start" in administer_rng("attach", vm)
    vm.boot_again()
    wait_for_rngs(vm, "virtio_rng.0")
    (path,) = rng_sockets(vm)
    assert Path(path).is_socket()
