# SPDX-License-Identifier: Apache-2.0
"""libvirtd killed under load and started again: what goes on, what opens again, who is found afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed.libvirtd import PrivateLibvirtd
from tests.edge.rig import fed_fifo
from tests.streams import assert_disjoint, stream
from tests.vm.rig import (
    DRAIN,
    SMALL,
    BootVM,
    boot_with_agent,
    evidence_of,
    make_hostd,
    uri_state,
    wait_for_acked,
    wait_for_state,
)

RATE = 6_000
DATA = stream(8_000_000)  # more than is asked for, however long it takes


@contextlib.contextmanager
def no_libvirtd(libvirtd: PrivateLibvirtd) -> Iterator[None]:
    """Killed, as by a crash, while the block runs."""
    libvirtd.kill()
    try:
        yield
    finally:
        libvirtd.start()


@pytest.mark.shared_state
def test_a_directly_connected_vm_notices_nothing(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    with (
        fed_fifo(tmp_path / "fifo", DATA, rate=RATE),
        make_hostd(tmp_path, libvirtd, tmp_path / "fifo", extra=SMALL) as hostd,
    ):
        hostd.start()
        old = boot_with_agent(boot_vm, "old", arguments=DRAIN, memory_mib=192)
        wait_for_acked(hostd, old, 2000)
        before = hostd.domain("old")
        with no_libvirtd(libvirtd):
            old.wait_for(lambda: uri_state(hostd) == "down", 30, "the URI to be down")
            # More than the window that may have been on its way.
            wait_for_acked(hostd, old, hostd.domain("old")["bytes_acked"] + 2 * 4096)
            assert uri_state(hostd) == "down"
            old.wait_for(lambda: "is libvirtd" in hostd.status()["uris"][0]["detail"], 60, "what to do")
        old.wait_for(lambda: uri_state(hostd) == "connected", 60, "the URI to be back")
        new = boot_with_agent(boot_vm, "new", arguments=DRAIN, memory_mib=192)
        wait_for_acked(hostd, new, 2000)
        wait_for_acked(hostd, old, hostd.domain("old")["bytes_acked"] + 4096)
        after = hostd.domain("old")
        assert (after["state"], after["seeds"], after["bytes_lost"]) == ("open", 1, 0)
        assert after["since"] == pytest.approx(before["since"], abs=0.5)
        assert hostd.status()["ledger_ok"]
        assert hostd.stop() == 0
        found = evidence_of([old, new])
        assert [len(one.sessions) for one in found] == [1, 1]
        pieces = [piece for one in found for piece in one.pieces]
        assert assert_disjoint(DATA, pieces) >= 0.95 * sum(map(len, pieces))
        assert "Traceback" not in hostd.log


@pytest.mark.shared_state
def test_streams_are_opened_again(boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path) -> None:
    with (
        fed_fifo(tmp_path / "fifo", DATA, rate=RATE),
        make_hostd(tmp_path, libvirtd, tmp_path / "fifo", transport="stream", extra=SMALL) as hostd,
    ):
        hostd.start()
        old = boot_with_agent(boot_vm, "old", arguments=DRAIN, memory_mib=192)
        wait_for_acked(hostd, old, 2000)
        with no_libvirtd(libvirtd):
            old.wait_for(lambda: uri_state(hostd) == "down", 30, "the URI to be down")
            before = wait_for_state(hostd, old, "unreachable")
            assert before["in_flight"] == 0
            assert hostd.status()["ledger_ok"]
        wait_for_state(hostd, old, "open")
        old.wait_for(lambda: uri_state(hostd) == "connected", 60, "the URI to be back")
        wait_for_acked(hostd, old, before["bytes_acked"] + 4096)
        new = boot_with_agent(boot_vm, "new", arguments=DRAIN, memory_mib=192)
        wait_for_acked(hostd, new, 2000)
        status = hostd.status()
        assert status["ledger_ok"]
        assert {domain["name"]: domain["seeds"] for domain in status["domains"]} == {"old": 2, "new": 1}
        assert hostd.stop() == 0
        found = evidence_of([old, new])
        assert [len(one.sessions) for one in found] == [2, 1]
        assert [one.reseeds for one in found] == [2, 1]
        pieces = [piece for one in found for piece in one.pieces]
        assert assert_disjoint(DATA, pieces) >= 0.95 * sum(map(len, pieces))
        assert "Traceback" not in hostd.log
