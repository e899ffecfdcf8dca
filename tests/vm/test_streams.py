# SPDX-License-Identifier: Apache-2.0
"""The basic case through libvirt's streams instead of the channels' sockets."""

from __future__ import annotations

from pathlib import Path

from bed.libvirtd import PrivateLibvirtd
from tests.edge.rig import fed_fifo
from tests.streams import assert_disjoint, stream
from tests.vm.rig import SMALL, BootVM, boot_with_agent, evidence_of, make_hostd, wait_for_acked, wait_for_ok

DATA = stream(2_000_000)


def test_two_guests_through_streams_get_disjoint_pieces(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    with (
        fed_fifo(tmp_path / "fifo", DATA, rate=15_000),
        make_hostd(tmp_path, libvirtd, tmp_path / "fifo", transport="stream", extra=SMALL) as hostd,
    ):
        hostd.start()
        guests = [
            boot_with_agent(
                boot_vm, f"s{n}", arguments="--sink kernel --rate 4kB/s", wait=False, memory_mib=192
            )
            for n in (1, 2)
        ]
        for guest in guests:
            wait_for_acked(hostd, guest, 6_000)
            wait_for_ok(hostd, guest)
        status = hostd.status()
        assert status["ledger_ok"]
        for domain in status["domains"]:
            assert (domain["state"], domain["seeds"], domain["bytes_lost"]) == ("open", 1, 0)
        assert hostd.stop() == 0
        found = evidence_of(guests)
        pieces = [piece for one in found for piece in one.pieces]
        assert assert_disjoint(DATA, pieces) >= 0.95 * sum(map(len, pieces))
        acked = {domain["name"]: domain["bytes_acked"] for domain in status["domains"]}
        for guest, one in zip(guests, found):
            assert len(one.sessions) == 1
            offset = 0
            for sample in one.samples:
                assert sample.offset == offset
                offset += len(sample.data)
            assert offset >= acked[guest.name]
            assert sum(one.credited) >= 8 * acked[guest.name], "acknowledged is credited"
        assert "no QEMU" not in hostd.log
        assert "Traceback" not in hostd.log
