# SPDX-License-Identifier: Apache-2.0
"""A VM whose agent does not run, and one that has no channel: what they cost, and what is said of them."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
from bed.libvirtd import PrivateLibvirtd
from tests.edge.rig import fed_fifo, run_command
from tests.streams import stream
from tests.vm.rig import (
    AGENT,
    DRAIN,
    PYZ,
    BootVM,
    make_hostd,
    start_agent,
    wait_for_acked,
    wait_for_state,
)

from netrng_guest import wire
from netrng_hostd.operate.administer import command_line

# Run in the guest: all that waits at its port, in hexadecimal.
READ_PORT = f"""
import os, select, sys
sys.path.insert(0, "{AGENT}")
from netrng_guest.finder import find_virtio
port = os.open(find_virtio(), os.O_RDWR | os.O_NONBLOCK)
found, patience_s = b"", 10
while select.select([port], [], [], patience_s)[0]:
    found += os.read(port, 65536)
    patience_s = 1
print(found.hex())
"""


def test_no_agent_and_no_channel(boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path) -> None:
    with (
        # Slow: of a fast source, the measurement that is due each minute takes a second of CPU time, and what
        # the reservoir still lacks takes some as well.
        fed_fifo(tmp_path / "fifo", stream(2_000_000), rate=2_000),
        make_hostd(tmp_path, libvirtd, tmp_path / "fifo") as hostd,
    ):
        hostd.start()
        files = {AGENT: PYZ, "/read-port.py": READ_PORT.encode()}
        idle = boot_vm("idle", wait=False, memory_mib=192, files=files)
        bare = boot_vm("bare", wait=False, memory_mib=192, channel=False)
        waiting = wait_for_state(hostd, idle, "waiting")
        idle.wait_for(lambda: hostd.status()["without_channel"] == ["bare"], 30, "bare to be named")
        for guest in (idle, bare):
            guest.wait_up()

        checked = run_command("check", "--config", str(hostd.config))
        hint = command_line("attach", "bare", libvirtd.uri)
        assert f"bare has no channel; give it one: {hint}\n" in checked.stdout
        assert "idle" not in checked.stdout

        assert hostd.process is not None
        process = psutil.Process(hostd.process.pid)
        begun, used = time.monotonic(), process.cpu_times()
        found = bytes.fromhex(idle.check("python3 -I -S /read-port.py"))
        spent_s = process.cpu_times().user - used.user
        assert spent_s < max(0.5, 0.04 * (time.monotonic() - begun)), "waiting costs nothing"
        decoder = wire.Decoder(from_host=True, max_payload=wire.MAX_DATA + 8)
        # A question for each event that may have brought a new guest; the boot has some.
        assert {type(frame) for frame in decoder.feed(found)} == {wire.Probe}, "questions wait, no byte"
        assert len(found) < 200
        assert decoder.garbage_bytes == 0
        status = hostd.domain("idle")
        assert (status["state"], status["bytes_sent"], status["agent"]) == ("waiting", 0, None)
        assert abs(status["since"] - waiting["since"]) < 0.5, "check left the channel alone"
        idle.wait_for(lambda: "netrng-guest is not running" in hostd.domain("idle")["detail"], 30, "advice")

        agent = start_agent(idle, DRAIN, trace=False)
        wait_for_acked(hostd, idle, 4096)
        assert hostd.domain("idle")["detail"] == ""
        agent.kill()
        agent.result()
        assert wait_for_state(hostd, idle, "waiting")["in_flight"] == 0
        assert hostd.status()["ledger_ok"]
        assert "Traceback" not in hostd.log
