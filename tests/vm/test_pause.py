# SPDX-License-Identifier: Apache-2.0
"""A VM that stands still: the others go on, little is parked with it, and a new session follows."""

from __future__ import annotations

from pathlib import Path

from bed.libvirtd import PrivateLibvirtd
from tests.edge.rig import Guest, fed_fifo, wait_for
from tests.streams import assert_disjoint, stream
from tests.vm.diary import diary
from tests.vm.rig import BootVM, boot_with_agent, make_hostd, wait_for_acked

WINDOW = 4096
BLOCK = 2500


def test_a_paused_vm_goes_on_in_a_new_session(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    data = stream(8_000_000)
    other = Guest(tmp_path / "other.sock")
    static = f'[[channel]]\nname = "other"\npath = "{tmp_path / "other.sock"}"\n'
    try:
        with (
            # The other takes all that it can get: at this rate there is enough for a slow machine.
            fed_fifo(tmp_path / "fifo", data, rate=20_000),
            make_hostd(tmp_path, libvirtd, tmp_path / "fifo", extra=static) as hostd,
        ):
            hostd.start()
            guest = boot_with_agent(boot_vm, "sleeper", arguments="--rate 8kB/s", memory_mib=192)
            wait_for_acked(hostd, guest, 64 + 2 * BLOCK)
            guest.suspend()
            before = hostd.domain("other")["bytes_acked"]
            wait_for(
                lambda: hostd.domain("other")["bytes_acked"] > before + 10 * WINDOW, "the other's bytes", 60
            )
            paused = hostd.domain("sleeper")
            assert paused["state"] == "open", "silence alone ends no session"
            assert paused["in_flight"] <= WINDOW
            guest.resume()
            wait_for_acked(hostd, guest, paused["bytes_acked"] + 64 + 2 * BLOCK)
            assert hostd.domain("sleeper")["seeds"] == 2
            assert "sleeper: session ended: renewed" in hostd.log
            assert hostd.status()["ledger_ok"]
            assert hostd.stop() == 0
            seen = diary(guest)
            assert len(seen.sessions) == 2
            for session in seen.sessions:
                session.assert_seeded()
            assert_disjoint(data, [*(bytes(one.data) for one in seen.sessions), bytes(other.taken)])
    finally:
        other.close()
