# SPDX-License-Identifier: Apache-2.0
"""Saved, restored twice, cloned, reverted: a fresh session and a fresh seed each time, nothing handed on."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from bed.libvirtd import PrivateLibvirtd
from bed.vm import VM
from tests.edge.rig import Hostd, fed_fifo, wait_for
from tests.streams import assert_disjoint, stream
from tests.vm.diary import (
    BLOCK_CREDITS,
    WINDOW,
    Diary,
    assert_dropped,
    at,
    diary,
    hostd_for,
    park_a_window,
    wait_for_lost,
)
from tests.vm.rig import BootVM, boot_with_agent, wait_for_credits

_RANDOM = "head -c 16 /dev/urandom | od -t x1"


def test_one_saved_image_restored_twice_and_as_two_clones_at_once(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, other_libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    data = stream(4_000_000)
    image = libvirtd.folder / "restored.image"
    with (
        fed_fifo(tmp_path / "fifo", data, rate=40_000),
        hostd_for(tmp_path, [libvirtd, other_libvirtd], tmp_path / "fifo") as hostd,
    ):
        hostd.start()
        guest = boot_with_agent(boot_vm, "saved", arguments="--rate 4kB/s", patient=True, memory_mib=192)
        wait_for_credits(guest, BLOCK_CREDITS)
        acked = park_a_window(hostd, guest)
        old = diary(guest)
        (first,) = old.sessions
        first.assert_seeded()
        guest.save(image)
        wait_for(lambda: not at(hostd, libvirtd.uri), "the saved domain's end in hostd", 60)
        assert wait_for_lost(hostd, "saved") == [WINDOW]
        parked = bytes(first.data[acked:])
        assert len(parked) <= WINDOW

        lives: list[Diary] = []
        figures: list[dict[str, float]] = []

        figures.append(_restore(hostd, guest, image))
        lives.append(assert_dropped(hostd, guest, old, parked))
        guest.destroy()
        wait_for(lambda: not at(hostd, libvirtd.uri), "the first clone's end in hostd", 60)
        figures.append(_restore(hostd, guest, image))
        with contextlib.closing(guest.restore_twin(image, other_libvirtd)) as twin:
            lives += [assert_dropped(hostd, vm, old, parked) for vm in (guest, twin)]
            assert len({vm.check(_RANDOM) for vm in (guest, twin)}) == 2, "two kernels, two generators"
        image.unlink()

        assert len({seen.last.name for seen in lives} | {first.name}) == 4
        assert len({bytes(seen.last.data[:64]) for seen in lives} | {bytes(first.data[:64])}) == 4
        new = [session for seen in lives for session in seen.sessions[1:]]
        assert_disjoint(data, [bytes(one.data) for one in (first, *new)])
        assert hostd.status()["ledger_ok"]
        print(json.dumps({"parked": len(parked), "restores": figures}))


def _restore(hostd: Hostd, guest: VM, image: Path) -> dict[str, float]:
    """Restores it and measures, for the record, when the seed was acknowledged: credited and reseeded."""
    begun = time.monotonic()
    guest.restore(image)
    restored = time.monotonic()
    wait_for(lambda: at(hostd, guest.host.uri).get("bytes_acked", 0) >= 64, "the seed's acknowledgement", 60)
    seeded = time.monotonic()
    return {"restore_s": round(restored - begun, 3), "then_seeded_s": round(seeded - restored, 3)}
