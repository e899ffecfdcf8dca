# SPDX-License-Identifier: Apache-2.0
"""A VM that is migrated live: served by the destination's daemon in a new session, nothing replayed.

What its quota and its buckets come to then: test_quotas.py.
"""

from __future__ import annotations

from pathlib import Path

from bed.libvirtd import PrivateLibvirtd
from tests.edge.rig import Hostd, fed_fifo, wait_for
from tests.streams import assert_disjoint, stream
from tests.vm.diary import (
    BLOCK_CREDITS,
    WINDOW,
    assert_dropped,
    at,
    diary,
    hostd_for,
    park_a_window,
    wait_for_lost,
)
from tests.vm.rig import BootVM, boot_with_agent, make_hostd, wait_for_acked, wait_for_credits

from netrng_hostd.hypervisor.domain_xml import METADATA_NAMESPACE

BLOCK = 2500
QUOTA = ("metadata", 300, 50_000)
METADATA = f"<netrng:quota xmlns:netrng='{METADATA_NAMESPACE}' weight='300' limit='50kB/s'/>"


def quota(hostd: Hostd, host: PrivateLibvirtd) -> tuple[object, ...]:
    """Where the one domain's quota on ``host`` comes from, and what it says."""
    domain = at(hostd, host.uri)
    return domain["quota"], domain["weight"], domain["limit"]


def test_from_one_daemon_to_another_and_back_under_a_third(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, other_libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    here, there, both = (stream(2_000_000, key) for key in (b"here", b"there", b"both"))
    with (
        fed_fifo(tmp_path / "here", here, rate=40_000),
        fed_fifo(tmp_path / "there", there, rate=40_000),
        make_hostd(tmp_path, libvirtd, tmp_path / "here") as source,
        make_hostd(tmp_path, other_libvirtd, tmp_path / "there") as destination,
    ):
        source.start(ready=False)
        destination.start()
        guest = boot_with_agent(
            boot_vm, "mover", arguments="--rate 8kB/s", patient=True, memory_mib=192, metadata=METADATA
        )
        wait_for_credits(guest, BLOCK_CREDITS)
        assert quota(source, libvirtd) == QUOTA
        acked = park_a_window(source, guest)
        old = diary(guest)
        guest.migrate(other_libvirtd)
        wait_for(lambda: not at(source, libvirtd.uri), "the migrated domain's end at the source", 60)
        assert wait_for_lost(source, "mover") == [WINDOW]
        assert source.status()["ledger_ok"]
        seen = assert_dropped(destination, guest, old, bytes(old.last.data[acked:]))
        assert at(destination, other_libvirtd.uri)["state"] == "open"
        assert quota(destination, other_libvirtd) == QUOTA, "another daemon's, on another connection"
        assert destination.status()["ledger_ok"]
        log = guest.check("cat /run/main.out")
        assert "session ended: the host started a new session" in log
        assert source.stop() == destination.stop() == 0
    first, *new = seen.sessions
    for given, data in (([first], here), (new, there)):
        pieces = [bytes(session.data) for session in given]
        assert assert_disjoint(data, pieces) > 0.98 * sum(map(len, pieces))
        for session in given:
            session.assert_seeded()
            assert f"session {session.name.hex()} opened" in log

    with (
        fed_fifo(tmp_path / "both", both, rate=40_000),
        hostd_for(tmp_path, [libvirtd, other_libvirtd], tmp_path / "both") as hostd,
    ):
        hostd.start()
        acked = wait_for_acked(hostd, guest, 64 + 2 * BLOCK)
        guest.migrate(libvirtd)
        wait_for(lambda: not at(hostd, other_libvirtd.uri), "the end at the source", 60)
        wait_for(lambda: at(hostd, libvirtd.uri), "the domain where it went", 60)
        assert at(hostd, libvirtd.uri)["bytes_acked"] >= acked, "one domain, one account, wherever it runs"
        wait_for_acked(hostd, guest, at(hostd, libvirtd.uri)["bytes_acked"] + 64 + 2 * BLOCK)
        (domain,) = hostd.status()["domains"]
        assert (domain["uri"], domain["state"]) == (libvirtd.uri, "open")
        assert domain["seeds"] in (2, 3), "one before and one after, or two: see assert_dropped"
        assert quota(hostd, libvirtd) == QUOTA
        assert domain["bytes_lost"] <= WINDOW * (domain["seeds"] - 1)
        assert hostd.status()["ledger_ok"]
        assert hostd.stop() == 0
    after = diary(guest).sessions
    assert after[0] == first
    last = len(seen.sessions)
    assert [one.name for one in after[:last]] == [one.name for one in seen.sessions]
    assert len(after) - last in (2, 3)
    assert len({bytes(session.data[:64]) for session in after}) == len(after)
    assert_disjoint(both, [bytes(session.data) for session in after[last:]])
    for session in after[last:]:
        session.assert_seeded()
