# SPDX-License-Identifier: Apache-2.0
"""A VM that ends with a sample half sent: its bytes are lost in the books, its neighbour notices nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
from bed.libvirtd import PrivateLibvirtd
from bed.vm import VM
from tests.edge.rig import Hostd
from tests.vm.diary import wait_for_lost
from tests.vm.rig import (
    DRAIN,
    BootVM,
    boot_with_agent,
    hostd_config,
    make_hostd,
    wait_for_acked,
    wait_for_state,
)

WINDOW = 65_536  # twice what a channel's socket holds at once


def qemu_of(vm: VM) -> int:
    """The pid of the QEMU that runs ``vm``."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if vm.uuid in line and any("qemu-system" in word for word in line[:1]):
            return int(process.pid)
    raise AssertionError(f"{vm.name} does not run")


def stop_with_little_on_its_way(vm: VM, hostd: Hostd) -> int:
    """Stops QEMU itself when the guest took most of what it was sent; what follows stays in the socket."""
    qemu = qemu_of(vm)

    def stopped() -> bool:
        os.kill(qemu, signal.SIGSTOP)
        if hostd.domain(vm.name)["in_flight"] < WINDOW // 8:
            return True
        os.kill(qemu, signal.SIGCONT)
        return False

    vm.wait_for(stopped, 30, "a moment with little on its way")
    return qemu


def test_destroyed_in_mid_sample_and_started_again(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    stores = '[reservoir]\nsize = "256KiB"\nseed_reserve = "1KiB"\n'
    config = f"sample_size = {WINDOW}\n{hostd_config(libvirtd.uri, '/dev/urandom', extra=stores)}"
    with make_hostd(tmp_path, libvirtd, "/dev/urandom") as hostd:
        hostd.write(config + '[[quota]]\nname = "slow"\nmatch = ["victim"]\nlimit = "4kB/s"\n')
        hostd.start()
        arguments = {"victim": f"--window {WINDOW} {DRAIN}", "neighbour": f"--rate 10kB/s {DRAIN}"}
        victim, neighbour = (
            boot_with_agent(boot_vm, name, arguments=line, trace=False, wait=False, memory_mib=192)
            for name, line in arguments.items()
        )
        for vm in (victim, neighbour):
            wait_for_acked(hostd, vm, 4096)
        before = hostd.domain("neighbour")

        def neighbour_is_served_on() -> None:
            wait_for_acked(hostd, neighbour, hostd.domain("neighbour")["bytes_acked"] + 4096)
            after = hostd.domain("neighbour")
            assert (after["state"], after["seeds"], after["bytes_lost"]) == ("open", 1, 0)
            assert abs(after["since"] - before["since"]) < 0.5

        qemu = stop_with_little_on_its_way(victim, hostd)
        hostd.write(config)
        hostd.send_signal(signal.SIGHUP)  # no limit any more: the rest of the window goes out as one sample
        victim.wait_for(
            lambda: hostd.domain("victim")["in_flight"] > WINDOW * 5 // 8, 30, "more than a socket holds"
        )
        neighbour_is_served_on()
        os.kill(qemu, signal.SIGKILL)
        wait_for_state(hostd, victim, "")
        (lost,) = wait_for_lost(hostd, "victim")
        assert lost > WINDOW * 5 // 8
        status = hostd.status()
        assert status["ledger_ok"]
        assert [domain["name"] for domain in status["domains"]] == ["neighbour"]
        assert status["without_channel"] == []
        neighbour_is_served_on()

        victim.boot_again()
        wait_for_acked(hostd, victim, 4096)
        assert hostd.domain("victim")["seeds"] == 1
        victim.destroy()
        wait_for_state(hostd, victim, "")
        neighbour_is_served_on()
        assert hostd.status()["ledger_ok"]
        assert hostd.stop() == 0
        assert "Traceback" not in hostd.log
