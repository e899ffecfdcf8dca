# SPDX-License-Identifier: Apache-2.0
"""Two sources and real VMs: one goes bad, or both. `make bench-sources` measures more of it, and times."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from bed.libvirtd import PrivateLibvirtd
from bed.packages import Artefacts
from bed.vm import VM
from bench import blackout, feeds, outage
from bench.watched import WatchedVM, boot, watched

STALL_S = 3.0  # a busy machine lets a good source be silent for longer than the least that may be set


@pytest.fixture(scope="module")
def vms(bed: Artefacts, libvirtd: PrivateLibvirtd) -> Iterator[list[WatchedVM]]:
    """Two, for all tests here: they outlive daemons."""
    with contextlib.ExitStack() as guests:

        def boot_vm(name: str, *, wait: bool, **options: object) -> VM:
            guest = VM(libvirtd, bed, name, memory_mib=192, **options)  # type: ignore[arg-type]
            guests.callback(guest.close)
            return guest.start(wait=wait)

        booted = boot(libvirtd, ("watched-1", "watched-2"), boot_vm)
        with watched(booted):
            yield booted


@pytest.mark.parametrize("name", ["zeros", "bias", "unplugged", "hung"])
def test_when_one_goes_bad_nothing_of_it_reaches_a_vm_and_the_other_serves(
    name: str, libvirtd: PrivateLibvirtd, vms: list[WatchedVM]
) -> None:
    fault = outage.FAULTS[name]
    seen = outage.measure(fault, libvirtd, vms, print, stall_s=STALL_S)
    print(seen)
    assert seen.last > 0
    assert seen.taken > 0
    assert (seen.after, seen.unknown, seen.doubled) == (0, 0, 0)
    assert seen.status in fault.states
    assert 1 <= seen.told <= outage.MANY
    code, line = seen.check
    assert code == 1
    assert "first" in line


def test_when_all_are_bad_nothing_is_given_out_until_one_is_good_again(
    libvirtd: PrivateLibvirtd, vms: list[WatchedVM]
) -> None:
    seen = blackout.measure((feeds.ZEROS, feeds.SILENT), libvirtd, vms, print, bad_s=3.0, stall_s=STALL_S)
    print(seen)
    assert seen.given == 0
    assert seen.states == ("failed", "stalled")
