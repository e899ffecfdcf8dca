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


def wait_for_sink(hostd: Hostd, vm: VM, state: str, deadline_s: float = 180) -> None:
    wait_for(
        lambda: sink(hostd, vm) == state, f"{vm.name}: sink_state {state}, in {hostd.log_path}", deadline_s
    )


def rngd_of(vm: VM) -> str:
    """The process ID of the guest's rngd, "" while there is none."""
    return vm.run("pidof rngd").out.strip()


def wait_for_another_rngd(vm: VM, pid: str) -> None:
    vm.wait_for(lambda: rngd_of(vm) not in ("", pid), 90, "another rngd")


def signal_until_told(hostd: Hostd, vm: VM, signal: str, state: str) -> list[str]:
    """Sends rngd that signal, and the next one, until the host shows ``state``; which ones it was sent to.

    The state is shown until the next rngd is started, each time for twice as long.
    """
    pids: list[str] = []
    for _ in range(6):
        pids.append(rngd_of(vm))
        vm.check(f"kill -{signal} {pids[-1]}")

        def told() -> str:
            if sink(hostd, vm) == state:
                return state
            return "over" if rngd_of(vm) not in ("", pids[-1]) else ""

        if vm.wait_for(told, 90, f"{state}, or another rngd") == state:
            return pids
        wait_for_acked(hostd, vm, hostd.domain(vm.name)["bytes_acked"] + BLOCK)  # the next one works
    raise AssertionError(f"{vm.name}: {state} is never shown, in {hostd.log_path}")


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
        ended = signal_until_told(hostd, killed, "KILL", "dying")
        wait_for_another_rngd(killed, ended[-1])
        wait_for_sink(hostd, killed, "ok")
        wait_for_acked(hostd, killed, hostd.domain("killed")["bytes_acked"] + BLOCK)
        assert killed.check("cat /run/main.out").count("rngd ended, signal 9") == len(ended)

        none.wait_up()
        wait_for_sink(hostd, none, "absent")
        assert "install rng-tools" in hostd.domain("none")["agent"]["detail"]
        wait_for_acked(hostd, none, 64)
        diary(none).last.assert_seeded()
        assert hostd.domain("none")["state"] == "open"
        assert hostd.domain("none")["in_flight"] <= WINDOW

        stopped.wait_up()
        wait_for_sink(hostd, stopped, "ok")
        parked = signal_until_told(hostd, stopped, "STOP", "parked")
        wait_for_another_rngd(stopped, parked[-1])
        wait_for_sink(hostd, stopped, "ok")
        wait_for_acked(hostd, stopped, hostd.domain("stopped")["bytes_acked"] + BLOCK)
        for pid in parked:
            assert stopped.run(f"test -e /proc/{pid}").rc == 1, "a stopped one is not left behind"
        assert hostd.status()["ledger_ok"]
