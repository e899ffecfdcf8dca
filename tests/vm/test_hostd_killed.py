# SPDX-License-Identifier: Apache-2.0
"""hostd killed under load, again and again: the next one serves the VMs, and no byte goes out twice."""

from __future__ import annotations

import signal
from pathlib import Path

from bed.libvirtd import PrivateLibvirtd
from bed.vm import VM
from tests.edge.rig import fed_fifo
from tests.streams import assert_disjoint, stream
from tests.vm.rig import (
    DRAIN,
    SMALL,
    BootVM,
    boot_with_agent,
    evidence_of,
    make_hostd,
    wait_for_acked,
)

KILLS = 10
BODY = 1000  # bytes beyond the seed, acknowledged by each VM in each round


def cpu_ticks(vm: VM) -> int:
    """What the agent in ``vm`` has cost so far, in hundredths of a second of CPU time."""
    stat = vm.check("for p in /proc/[0-9]*; do grep -q netrng-guest $p/cmdline && cat $p/stat; done; true")
    agents = [line.rpartition(")")[2].split() for line in stat.splitlines() if "(python3" in line]
    assert agents, "no agent runs"
    return sum(int(fields[11]) + int(fields[12]) for fields in agents)


def test_killed_and_started_ten_times_under_load(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    data = stream(16_000_000)  # more than is asked for, however long it takes
    with (
        # Slower than the VMs ask: at each kill there are bytes on their way.
        fed_fifo(tmp_path / "fifo", data, rate=15_000),
        make_hostd(tmp_path, libvirtd, tmp_path / "fifo", extra=SMALL) as hostd,
    ):
        guests = [
            boot_with_agent(boot_vm, f"g{n}", arguments=DRAIN, wait=False, memory_mib=192) for n in (1, 2)
        ]
        for guest in guests:
            guest.wait_up()
        for round_number in range(KILLS):
            hostd.start()
            for guest in guests:
                wait_for_acked(hostd, guest, 64 + BODY)
            status = hostd.status()
            assert status["ledger_ok"], f"in round {round_number}"
            assert [domain["seeds"] for domain in status["domains"]] == [1, 1]
            hostd.stop(signal.SIGKILL)
        assert "Traceback" not in hostd.log
        found = evidence_of(guests)
        pieces = [piece for one in found for piece in one.pieces]
        assert assert_disjoint(data, pieces) >= 0.95 * sum(map(len, pieces)) >= KILLS * 2 * BODY
        for one in found:
            assert len(one.sessions) == KILLS, "a session for each daemon"
            assert one.reseeds == KILLS, "each begins with a seed for the kernel"
            assert one.credited == [512] * KILLS
            end = dict.fromkeys(one.sessions, 0)
            for sample in one.samples:
                assert sample.offset == end[sample.session]
                end[sample.session] += len(sample.data)
        before = cpu_ticks(guests[0])
        guests[0].check("sleep 2")
        assert cpu_ticks(guests[0]) - before < 70, "without a host an agent rests"
