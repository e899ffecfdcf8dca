# SPDX-License-Identifier: Apache-2.0
"""The main job: a source, a daemon, real VMs, a real rngd in each, and kernels that are credited."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bed.libvirtd import PrivateLibvirtd
from tests.edge.rig import Hostd, fed_fifo, wait_for
from tests.streams import assert_disjoint, spans, stream
from tests.vm.rig import (
    BootVM,
    boot_with_agent,
    credits,
    evidence,
    make_hostd,
    wait_for_acked,
    wait_for_credits,
    wait_for_ok,
)

BLOCK = 2500


def hwrng_delivers() -> bool:
    """Whether /dev/hwrng gives this user bytes here."""
    try:
        probe = subprocess.run(["head", "-c", "16", "/dev/hwrng"], capture_output=True, timeout=30)
    except subprocess.TimeoutExpired:
        return False
    return len(probe.stdout) == 16


def kept_or_under_way(status: dict[str, Any]) -> int:
    """Bytes that have been read and tested, and that no guest has acknowledged yet."""
    return int(status["reservoir"]["stored"] + sum(domain["in_flight"] for domain in status["domains"]))


def all_ok(hostd: Hostd) -> dict[str, Any] | None:
    """The status, if all agents have told in it that their sinks took what came."""
    status = hostd.status()
    states = [(domain["agent"] or {}).get("sink_state") for domain in status["domains"]]
    return status if set(states) == {"ok"} else None


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
        first = [wait_for_credits(guest, 40) for guest in guests]
        for guest in guests:
            wait_for_acked(hostd, guest, hostd.domain(guest.name)["bytes_acked"] + 2 * BLOCK)
        for guest, before in zip(guests, first):
            wait_for_credits(guest, before)
            wait_for_ok(hostd, guest)
        # One block in a thousand is rejected by chance, and rngd complains for a moment.
        status = wait_for(lambda: all_ok(hostd), "a status in which all sinks are ok", 60)
        assert status["ledger_ok"]
        assert len(status["domains"]) == len(guests)
        for domain in status["domains"]:
            assert domain["state"] == "open"
            assert domain["agent"]["sink"] == "rngd"
        assert "no QEMU" not in hostd.log, "who listens for a VM that starts is no stranger"
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
            # The seed may come from the reserve, which runs ahead; all that follows is in the source's order.
            body = b"".join(one.pieces)[64:]
            starts = [start for start, _ in spans(data, body)]
            assert starts == sorted(starts)
            assert one.credited[0] == 512, "the seed comes first, and all of it is credited"
            assert one.reseeds == 1


@pytest.mark.skipif(not hwrng_delivers(), reason="/dev/hwrng delivers nothing to this user on this machine")
def test_the_hardware_rng_itself(boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path) -> None:
    reserve = '[reservoir]\nsize = "8KiB"\nseed_reserve = "1KiB"\n'
    with make_hostd(tmp_path, libvirtd, "/dev/hwrng", kind="device", extra=reserve) as hostd:
        hostd.start()
        guest = boot_with_agent(boot_vm, "fed", arguments="--rate 100kB/s")
        wait_for_credits(guest, 40)
        before = hostd.status()
        wait_for_acked(hostd, guest, 150_000, 90)
        after = hostd.status()
        read, thrown = (
            after["sources"][0][key] - before["sources"][0][key] for key in ("bytes_read", "bytes_discarded")
        )
        acked = after["domains"][0]["bytes_acked"] - before["domains"][0]["bytes_acked"]
        # A guest that is slow for a moment lets the reservoir fill: that is kept, not wasted.
        kept = kept_or_under_way(after) - kept_or_under_way(before)
        assert acked + kept + thrown >= 0.95 * read
        # Where there is no room, a measurement throws a second's bytes away, once a minute.
        measurements = 1 + (after["time"] - before["time"]) // 60
        assert thrown <= 0.05 * read + measurements * 1.2 * after["sources"][0]["capacity"]
        assert after["sources"][0]["kind"] == "device"
        assert after["sources"][0]["rng_current"]
        wait_for_credits(guest, 41 * 10)
        figures = {"read": read, "acked": acked, "kept": kept, "thrown": thrown, "credits": credits(guest)}
        print(json.dumps({**figures, "uid": os.geteuid()}))
