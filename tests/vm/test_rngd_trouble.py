# SPDX-License-Identifier: Apache-2.0
"""An rngd that is killed, one that is stopped and none at all: noticed, told to the host, and mended."""

from __future__ import annotations

from pathlib import Path

from bed.libvirtd import PrivateLibvirtd
from bed.vm import VM
from tests.edge.rig import Hostd, fed_fifo, wait_for
from tests.streams import stream
from tests.vm.diary import diary
from tests.vm.rig import BootVM, boot_with_agent, make_hostd, wait_for_acked

BLOCK = 2500
WINDOW = 4096


def sink(hostd: Hostd, vm: VM) -> str:
    """The state of the guest's sink as the host shows it; "" before the agent told."""
    agent = hostd.domain(vm.name)["agent"]
    return str(agent["sink_state"]) if agent else ""


def wait_for_sink(hostd: Hostd, vm: VM, state: str, deadline_s: float = 90) -> None:
    wait_for(
        lambda: sink(hostd, vm) == state, f"{vm.name}: sink_state {state}, in {hostd.log_path}", deadline_s
    )


def rngd_of(vm: VM) -> str:
    """The process ID of the guest's rngd, "" while there is none."""
    return vm.run("pidof rngd").out.strip()


def wait_for_another_rngd(vm: VM, pid: str) -> None:
    vm.wait_for(lambda: rngd_of(vm) not in ("", pid), 60, "another rngd")


def test_a_killed_a_stopped_and_a_missing_rngd(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    data = stream(4_000_000)
    with (
        fed_fifo(tmp_path / "fifo", data, rate=40_000),
        make_hostd(tmp_path, libvirtd, tmp_path / "fifo") as hostd,
    ):
        hostd.start()
        stopped, killed, none = (
            boot_with_agent(
                boot_vm, name, arguments="--rate 4kB/s", wait=False, rngd=rngd, trace=trace, memory_mib=192
            )
            for name, rngd, trace in (
                ("stopped", "rng-tools-debian", False),
                ("killed", "rng-tools5", False),
                ("none", None, True),
            )
        )
        killed.wait_up()
        wait_for_sink(hostd, killed, "ok")
        first = rngd_of(killed)
        killed.check(f"kill -KILL {first}")
        wait_for_another_rngd(killed, first)
        second = rngd_of(killed)
        killed.check(f"kill -KILL {second}")
        wait_for_sink(hostd, killed, "dying")  # now for two seconds, longer than a status may wait
        wait_for_another_rngd(killed, second)
        wait_for_sink(hostd, killed, "ok")
        wait_for_acked(hostd, killed, hostd.domain("killed")["bytes_acked"] + BLOCK)
        assert killed.check("cat /run/main.out").count("rngd ended, signal 9") == 2

        none.wait_up()
        wait_for_sink(hostd, none, "absent")
        assert "install rng-tools" in hostd.domain("none")["agent"]["detail"]
        wait_for_acked(hostd, none, 64)
        diary(none).last.assert_seeded()
        assert hostd.domain("none")["state"] == "open"
        assert hostd.domain("none")["in_flight"] <= WINDOW

        # Last, for the state is shown for a few seconds only.
        stopped.wait_up()
        wait_for_sink(hostd, stopped, "ok")
        parked = rngd_of(stopped)
        stopped.check(f"kill -STOP {parked}")
        wait_for_sink(hostd, stopped, "parked")
        wait_for_another_rngd(stopped, parked)
        wait_for_sink(hostd, stopped, "ok")
        wait_for_acked(hostd, stopped, hostd.domain("stopped")["bytes_acked"] + BLOCK)
        assert stopped.run(f"test -e /proc/{parked}").rc == 1, "the stopped one is not left behind"
        assert hostd.status()["ledger_ok"]
