# SPDX-License-Identifier: Apache-2.0
"""A VM that is reverted in place: its QEMU and its channel go on, its memory is another time's."""

from __future__ import annotations

import struct
from pathlib import Path

import libvirt_qemu
from bed.libvirtd import PrivateLibvirtd
from tests.edge.rig import Hostd, fed_fifo, wait_for
from tests.streams import assert_disjoint, stream
from tests.vm.diary import at, diary
from tests.vm.rig import BootVM, boot_with_agent, make_hostd, wait_for_acked

CLUSTER = 65536
HMP = 1  # VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
SOME = 4000  # bytes


def empty_qcow2(size: int = 1 << 20) -> bytes:
    """A disk without content, in the format that holds snapshots (QEMU's docs/interop/qcow2.txt, version 2).

    Clusters: header, refcount table, the one refcount block, level 1 table.
    """
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, size, 0, 1, 3 * CLUSTER, CLUSTER, 1, 0, 0
    )
    clusters = (header, struct.pack(">Q", 2 * CLUSTER), struct.pack(">4H", 1, 1, 1, 1), b"")
    return b"".join(one.ljust(CLUSTER, b"\0") for one in clusters)


def wait_for_opened(hostd: Hostd, times: int) -> None:
    wait_for(lambda: hostd.log.count("reverted: open") >= times, "a new session", 60)


def test_a_snapshot_that_is_reverted_to_gets_a_new_session(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    data = stream(4_000_000)
    disk = libvirtd.folder / "reverted.qcow2"
    disk.write_bytes(empty_qcow2())
    disk.chmod(0o666)
    xml = (
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>"
        "<target dev='hda' bus='ide'/></disk>"
    )
    with (
        fed_fifo(tmp_path / "fifo", data, rate=40_000),
        make_hostd(tmp_path, libvirtd, tmp_path / "fifo") as hostd,
    ):
        hostd.start()
        guest = boot_with_agent(
            boot_vm, "reverted", arguments="--sink kernel --rate 8kB/s", memory_mib=192, devices=xml
        )
        wait_for_acked(hostd, guest, SOME)
        snapshot = guest.domain.snapshotCreateXML("<domainsnapshot><name>then</name></domainsnapshot>")

        def back_by_libvirt() -> None:
            guest.domain.revertToSnapshot(snapshot)

        def back_by_qemu() -> None:  # as libvirt did before 9.0: the same QEMU, the same connection
            libvirt_qemu.qemuMonitorCommand(guest.domain, "loadvm then", HMP)

        lives = []
        for go_back in (back_by_libvirt, back_by_qemu):
            # What it is given before the revert is forgotten in the guest, but was spent.
            wait_for_acked(hostd, guest, at(hostd, libvirtd.uri)["bytes_acked"] + SOME)
            lives.append(diary(guest))
            opened = hostd.log.count("reverted: open")
            go_back()
            wait_for_opened(hostd, opened + 1)
            wait_for_acked(hostd, guest, at(hostd, libvirtd.uri)["bytes_acked"] + SOME)
        lives.append(diary(guest))
        assert hostd.status()["ledger_ok"]
        assert hostd.stop() == 0
        first = lives[0].sessions[0]
        for seen in lives:
            # The session that the snapshot holds was over once it had been taken: nothing is added to it.
            held, *new = seen.sessions
            assert held.name == first.name
            assert first.data.startswith(held.data)
            assert 1 <= len(new) <= 2, "libvirt may tell twice that the VM goes on"
            for session in seen.sessions:
                session.assert_seed_first()
        assert len({seen.last.name for seen in lives} | {first.name}) == 4
        new = [session for seen in lives for session in seen.sessions[1:]]
        pieces = [bytes(one.data) for one in (first, *new)]
        assert assert_disjoint(data, pieces) > 0.98 * sum(map(len, pieces))
