# SPDX-License-Identifier: Apache-2.0
"""VMs without an agent: QEMU's virtio-rng asks hostd by EGD, and the guest's own driver takes what comes."""

from __future__ import annotations

import base64
import signal
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from bed.inside import Inside, Job
from bed.libvirtd import PrivateLibvirtd
from tests.edge.rig import Hostd, fed_fifo, wait_for
from tests.streams import assert_disjoint, stream
from tests.vm.rig import (
    DRAIN,
    SMALL,
    BootVM,
    boot_with_agent,
    evidence,
    make_hostd,
    wait_for_acked,
)

KILLS = 10
READER = "exec dd if=/dev/hwrng of=/run/read bs=64 2>/dev/null"


def rng_xml(libvirtd: PrivateLibvirtd, name: str) -> str:
    path = quoteattr(str(libvirtd.folder / f"{name}.netrng"))
    return (
        "<rng model='virtio'><backend model='egd' type='unix'>"
        f"<source mode='bind' path={path}/></backend></rng>"
    )


def boot_without_agent(boot_vm: BootVM, libvirtd: PrivateLibvirtd, name: str, **options: Any) -> Any:
    return boot_vm(name, channel=False, memory_mib=192, devices=rng_xml(libvirtd, name), **options)


def read_so_far(vm: Inside) -> int:
    """How many bytes READER has got of its /dev/hwrng."""
    return int(vm.check("stat -c %s /run/read 2>/dev/null || echo 0"))


def wait_for_bytes(vm: Inside, above: int) -> int:
    vm.wait_for(lambda: read_so_far(vm) > above, 60, f"more than {above} bytes of its /dev/hwrng")
    return read_so_far(vm)


def all_read(vm: Inside, reader: Job) -> bytes:
    reader.kill()
    reader.result()
    return base64.b64decode(vm.check("base64 /run/read", 120))


def rows(hostd: Hostd, name: str) -> dict[str, dict[str, Any]]:
    """What the status says of the domain, by kind."""
    return {row["kind"]: row for row in hostd.status()["domains"] if row["name"] == name}


def test_a_vm_without_an_agent_is_served_beside_one_that_has_one(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    data = stream(4_000_000)
    with (
        fed_fifo(tmp_path / "fifo", data, rate=20_000),
        make_hostd(tmp_path, libvirtd, tmp_path / "fifo", extra=SMALL) as hostd,
    ):
        # It boots with nobody behind its device, which waits; what it asks for now, QEMU forgets.
        bare = boot_without_agent(boot_vm, libvirtd, "bare")
        assert bare.check("cat /sys/class/misc/hw_random/rng_current").strip() == "virtio_rng.0"
        reader = bare.spawn(READER)
        bare.wait_for(lambda: bare.run("pidof dd").rc == 0, 30, "its dd")
        assert read_so_far(bare) == 0

        hostd.start()
        wait_for_bytes(bare, 1000)
        agent = boot_with_agent(boot_vm, "agent", arguments=DRAIN, memory_mib=192)
        wait_for_acked(hostd, agent, 4096)
        wait_for_bytes(bare, read_so_far(bare) + 1000)

        row = rows(hostd, "bare")["virtio-rng"]
        assert row["state"] == "open"
        assert row["channel"] == str(libvirtd.folder / "bare.netrng")
        assert row["bytes_sent"] > 2000
        assert (row["bytes_acked"], row["bytes_lost"], row["in_flight"], row["agent"]) == (None,) * 4
        assert row["rate"] > 0
        assert row["origins"] == {"test": row["bytes_sent"]}
        status = hostd.status()
        assert status["without_channel"] == []
        assert status["ledger_ok"]
        assert hostd.stop() == 0
        pieces = [*evidence(agent).pieces, all_read(bare, reader)]
        assert assert_disjoint(data, pieces) >= 0.9 * sum(map(len, pieces))
        assert "no QEMU" not in hostd.log
        assert "Traceback" not in hostd.log


def test_hostd_killed_ten_times_under_a_reader(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    """Each daemon frees the request that died with the one before it, or came while there was none."""
    data = stream(16_000_000)
    with (
        fed_fifo(tmp_path / "fifo", data, rate=15_000),
        make_hostd(tmp_path, libvirtd, tmp_path / "fifo", extra=SMALL) as hostd,
    ):
        bare = boot_without_agent(boot_vm, libvirtd, "bare")
        reader = bare.spawn(READER)
        for _ in range(KILLS):
            hostd.start()
            wait_for_bytes(bare, read_so_far(bare) + 1000)
            assert hostd.status()["ledger_ok"]
            hostd.stop(signal.SIGKILL)
        read = all_read(bare, reader)
        assert assert_disjoint(data, [read]) >= 0.9 * len(read) >= 0.9 * KILLS * 1000
        assert "Traceback" not in hostd.log


def test_an_agent_and_a_virtio_rng_of_one_vm_share_its_quota(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    limit, burst = 2000, 512
    quota = f'[[quota]]\nname = "tight"\nmatch = ["both"]\nlimit = {limit}\nburst = {burst}\n'
    with make_hostd(tmp_path, libvirtd, "/dev/urandom", extra=quota) as hostd:
        hostd.start()
        both = boot_with_agent(
            boot_vm, "both", arguments=DRAIN, memory_mib=192, devices=rng_xml(libvirtd, "both"), trace=False
        )
        reader = both.spawn(READER)
        before = hostd.status()
        both.wait_for(lambda: read_so_far(both) >= 4000, 60, "its virtio-rng to be served")
        wait_for_acked(hostd, both, 4000)
        wait_for(lambda: hostd.status()["time"] - before["time"] > 4, "some seconds under the limit")
        after = hostd.status()
        elapsed_s = after["time"] - before["time"]
        sent = {
            row["kind"]: row["bytes_sent"]
            - next(old["bytes_sent"] for old in before["domains"] if old["kind"] == row["kind"])
            for row in after["domains"]
        }
        assert set(sent) == {"virtio", "virtio-rng"}
        assert min(sent.values()) > 0
        assert sum(sent.values()) <= burst + limit * elapsed_s + 512
        assert len({row["uuid"] for row in after["domains"]}) == 1
        assert after["ledger_ok"]
        reader.kill()
        reader.result()
