# SPDX-License-Identifier: Apache-2.0
"""A guest that is hostile at its real port: the one beside it is served as if nothing were."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from bed.libvirtd import PrivateLibvirtd
from tests.vm.rig import AGENT, DRAIN, PYZ, BootVM, boot_with_agent, make_hostd, wait_for_acked

# The flood comes last: hostd reads what it left no faster than a guest may speak.
ATTACKS = (
    "reopens",  # opens its port, writes half a frame and closes it
    "lies",  # acknowledges more than it was sent, in session after session
    "greedy",  # asks for everything, acknowledges nothing and never reads
    "knocks",  # claims again and again to have just started
    "garbage",  # writes what is no frame, as fast as it goes
)
# Run in the guest with the attacks as arguments: a line for each thing done, SIGUSR1 for the next attack.
ATTACKER = f"""
import os, signal, sys, time
sys.path.insert(0, "{AGENT}")
from netrng_guest import wire
from netrng_guest.finder import find_virtio

class Next(Exception):
    pass

def next_attack(*_):
    raise Next

signal.signal(signal.SIGUSR1, next_attack)
junk = os.urandom(4000)

def attack(name, port):
    while True:
        if name == "reopens":
            os.write(port, junk[:17])
            os.close(port)
            time.sleep(0.01)
            port = opened()
        elif name == "lies":
            os.write(port, wire.encode(wire.Grant(shaken_hands(port), 1 << 40, 1 << 39, 0)))
        elif name == "greedy":
            os.write(port, 100 * wire.encode(wire.Grant(shaken_hands(port), 1 << 40, 0, 0)))
            time.sleep(1000)
        elif name == "knocks":
            os.write(port, b"".join(wire.encode(wire.Knock(os.urandom(8))) for _ in range(100)))
            time.sleep(0.2)
        else:
            os.write(port, junk)
        print(name, flush=True)

def opened():
    while find_virtio() is None:
        time.sleep(0.1)
    port = os.open(find_virtio(), os.O_RDWR)
    os.write(port, wire.encode(wire.Knock(os.urandom(8))))
    return port

def shaken_hands(port):
    decoder = wire.Decoder(from_host=True, max_payload=wire.MAX_DATA + 8)
    while True:
        for frame in decoder.feed(os.read(port, 65536)):
            if isinstance(frame, wire.Probe):
                os.write(port, wire.encode(wire.Open(frame.session, os.urandom(8), 1, 1)))
            elif isinstance(frame, wire.Accept):
                return frame.session

for name in sys.argv[1:]:
    try:
        attack(name, opened())
    except Next:
        os.closerange(3, 64)
"""


@pytest.mark.parametrize(("transport", "attacks"), [("socket", ATTACKS), ("stream", ("reopens", "garbage"))])
def test_a_hostile_guest_hurts_nobody(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path, transport: str, attacks: Sequence[str]
) -> None:
    begun = time.monotonic()
    with make_hostd(tmp_path, libvirtd, "/dev/urandom", transport=transport) as hostd:
        hostd.start()
        files = {AGENT: PYZ, "/attacker.py": ATTACKER.encode()}
        evil = boot_vm("evil", wait=False, memory_mib=192, files=files)
        good = boot_with_agent(
            boot_vm, "good", arguments=f"--rate 20kB/s {DRAIN}", trace=False, wait=False, memory_mib=192
        )
        evil.wait_up()
        attacker = evil.spawn(f"exec python3 -I -S /attacker.py {' '.join(attacks)} 2>/dev/console")
        wait_for_acked(hostd, good, 4096)
        before = hostd.status()
        signs = {
            "reopens": lambda: "reopens" in attacker.output(),
            "lies": lambda: "evil: protocol violation" in hostd.log,
            "greedy": lambda: hostd.domain("evil")["in_flight"] >= 4096,
            "knocks": lambda: "knocks" in attacker.output(),
            "garbage": lambda: "evil: the guest sends more than it may" in hostd.log,
        }
        for name in attacks:
            evil.wait_for(signs[name], 60, f"the attack {name}, in {hostd.log_path}")
            wait_for_acked(hostd, good, hostd.domain("good")["bytes_acked"] + 10_000)
            if name == "knocks":  # the more often it lied, the fewer lines are left for what comes next
                time.sleep(12)
            attacker.kill("USR1")
        after = hostd.status()
        assert after["ledger_ok"]
        assert after["rss_bytes"] < before["rss_bytes"] + 8_000_000
        (then,), (now,) = (
            [domain for domain in status["domains"] if domain["name"] == "good"] for status in (before, after)
        )
        assert (now["state"], now["seeds"], now["bytes_lost"]) == ("open", 1, 0)
        assert abs(now["since"] - then["since"]) < 0.5
        lines = [line for line in hostd.log.splitlines() if " evil: " in line]
        allowed = 20 + (time.monotonic() - begun) / 6
        assert len(lines) <= allowed + 5, "a line for an event, not for a byte, and discovery's"
        assert hostd.stop() == 0
        assert "Traceback" not in hostd.log
