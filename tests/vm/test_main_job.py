# SPDX-License-Identifier: Apache-2.0
"""The main job: a source, a daemon, real VMs, a real rngd in each, and kernels that are credited."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from bed.libvirtd import PrivateLibvirtd
from tests.edge.rig import fed_fifo, wait_for
from tests.streams import assert_disjoint, stream
from tests.vm.rig import BootVM, boot_with_agent, credits, evidence, make_hostd

BLOCK = 2500


def hwrng_delivers() -> bool:
    """Whether /dev/hwrng gives this user bytes here."""
    try:
        probe = subprocess.run(["head", "-c", "16", "/dev/hwrng"], capture_output=True, timeout=30)
    except subprocess.TimeoutExpired:
        return False
    return len(probe.stdout) == 16


def test_two_guests_get_disjoint_pieces_and_their_kernels_are_credited(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    data = stream(2_000_000)
    with (
        fed_fifo(tmp_path / "fifo", data, rate=20_000),
        make_hostd(tmp_path, libvirtd, tmp_path / "fifo") as hostd,
    ):
        hostd.start()
        variants = ("rng-tools5", "rng-tools-debian")
        guests = [
            boot_with_agent(boot_vm, f"guest-{n}", arguments="--rate 4kB/s", wait=False, rngd=variant)
            for n, variant in enumerate(variants)
        ]
        for guest in guests:
            guest.wait_up()
        for guest in guests:
            guest.wait_for(lambda g=guest: credits(g) > 40, 60, "the first block to be credited")
        first = [credits(guest) for guest in guests]
        acked = [hostd.domain(guest.name)["bytes_acked"] for guest in guests]
        for guest, before in zip(guests, acked):
            wait_for(
                lambda g=guest, b=before: hostd.domain(g.name)["bytes_acked"] >= b + 2 * BLOCK,
                "two more blocks acknowledged", 60,
            )  # fmt: skip
        for guest, before in zip(guests, first):
            guest.wait_for(lambda g=guest, b=before: credits(g) > b, 30, "more credit than before")
        status = hostd.status()
        assert status["ledger_ok"]
        for domain in status["domains"]:
            assert domain["state"] == "open"
            assert domain["agent"]["sink"] == "rngd"
            assert domain["agent"]["sink_state"] == "ok", domain
        assert hostd.stop() == 0
        found = [evidence(guest) for guest in guests]
        given = sum(len(piece) for one in found for piece in one.pieces)
        looked_up = assert_disjoint(data, [piece for one in found for piece in one.pieces])
        assert looked_up > 0.98 * given
        for one in found:
            offset = 0
            for sample in one.samples:
                assert sample.offset == offset
                offset += len(sample.data)
            assert len(one.sessions) == 1
            assert one.credited[0] == 512, "the seed comes first, and all of it is credited"
            assert one.reseeds == 1


@pytest.mark.skipif(not hwrng_delivers(), reason="/dev/hwrng delivers nothing to this user on this machine")
def test_the_hardware_rng_itself(boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path) -> None:
    reserve = '[reservoir]\nsize = "8KiB"\nseed_reserve = "1KiB"\n'
    with make_hostd(tmp_path, libvirtd, "/dev/hwrng", kind="device", extra=reserve) as hostd:
        hostd.start()
        guest = boot_with_agent(boot_vm, "fed", arguments="--rate 100kB/s")
        guest.wait_for(lambda: credits(guest) > 40, 60, "the first block to be credited")
        before = hostd.status()
        wait_for(lambda: hostd.domain("fed")["bytes_acked"] > 150_000, "150,000 bytes acknowledged", 90)
        after = hostd.status()
        read = after["sources"][0]["bytes_read"] - before["sources"][0]["bytes_read"]
        acked = after["domains"][0]["bytes_acked"] - before["domains"][0]["bytes_acked"]
        assert acked >= 0.95 * read
        assert after["sources"][0]["kind"] == "device"
        assert after["sources"][0]["rng_current"]
        guest.wait_for(lambda: credits(guest) > 41 * 10, 30, "the kernel credited block by block")
        print(json.dumps({"read": read, "acked": acked, "credits": credits(guest), "uid": os.geteuid()}))
