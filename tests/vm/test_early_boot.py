# SPDX-License-Identifier: Apache-2.0
"""A guest whose kernel has no seed yet, and one whose host has no daemon yet."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import libvirt
from bed.inside import BedTimeout
from bed.libvirtd import PrivateLibvirtd
from bed.vm import VM
from tests.edge.rig import fed_fifo
from tests.streams import stream
from tests.vm.rig import AGENT, PYZ, BootVM, make_hostd, wait_for_acked

# Nothing but us may seed the kernel: no RDRAND, no seed from QEMU, no virtio-rng.  Python itself, for its
# hash seed, would read /dev/urandom, and Linux from 5.18 on then seeds itself from jitter, in a second.
CPU = (
    "<cpu mode='maximum'><feature policy='disable' name='rdrand'/>"
    "<feature policy='disable' name='rdseed'/></cpu>"
)
KERNEL_ARGS = "random.trust_cpu=off random.trust_bootloader=off printk.devkmsg=on"
PYTHON = f"env PYTHONHASHSEED=0 python3 -s -S {AGENT}"
STRACE = "strace -ff -qq -y -e trace=getrandom,read,ioctl -e signal=none -o /run/early"
SEEDED = "random: crng init done"
STRETCH_S = 5  # of the guest's time


def boot_unseeded(boot_vm: BootVM, name: str, run: str, **options: object) -> VM:
    """The agent, by ``run``, is the guest's first program; it logs to the kernel's own log."""
    main = f"exec {run} 2>/dev/kmsg"
    guest = boot_vm(
        name, wait=False, files={AGENT: PYZ}, main=main, cpu=CPU, kernel_args=KERNEL_ARGS, memory_mib=192,
        **options,
    )  # fmt: skip
    assert isinstance(guest, VM)
    return guest


def log_of(guest: VM) -> str:
    """What the kernel's log has of the random pool and, in the same order of time, of the agent."""
    return guest.run("dmesg | grep -e random: -e netrng-guest:").out


def wait_for_line(guest: VM, line: str) -> None:
    try:
        guest.wait_for(lambda: line in log_of(guest), 90, line)
    except BedTimeout as error:
        raise BedTimeout(f"{error}\n{log_of(guest)[-1500:]}") from None


def in_order(log: str, *lines: str) -> None:
    places = [log.find(line) for line in lines]
    assert -1 not in places, log[-2000:]
    assert places == sorted(places), log[-2000:]


def unseeded(guest: VM) -> bool:
    """Told without asking for a random byte, which would make the kernel seed itself."""
    bits = int(guest.check("cat /proc/sys/kernel/random/entropy_avail"))
    return SEEDED not in log_of(guest) and bits < 256


def assert_never_waited_for_random_bytes(guest: VM) -> None:
    """The agent itself (its trace is the first) asked for none in a way that blocks or seeds by jitter."""
    trace = guest.check("cat $(ls -v /run/early.* | head -n 1)", 60)
    assert "RNDADDENTROPY, {entropy_count=512" in trace
    asked = [line for line in trace.splitlines() if line.startswith("getrandom")]
    assert all("GRND_NONBLOCK" in line for line in asked), asked
    assert not re.findall(r"^read\(\d+</dev/u?random>.*", trace, re.MULTILINE)


def assert_quiet(guest: VM, pid: str) -> dict[str, int]:
    """Over a stretch of the guest's time the process makes few system calls and takes next to no CPU."""
    look = f"cut -d' ' -f1 /proc/uptime; cut -d' ' -f14,15 /proc/{pid}/stat"
    told = guest.check(
        f"""
        {look}
        strace -c -f -p {pid} 2>/run/counted & tracer=$!
        until grep -q 'TracerPid:.*[1-9]' /proc/{pid}/status; do sleep 0.1; done
        sleep {STRETCH_S}
        {{ kill -TERM $tracer; wait $tracer; }} 2>/dev/null
        {look}
        cat /run/counted
        """,
        60,
    )
    begun, before, ended, after, *counted = told.splitlines()
    seconds = float(ended) - float(begun)
    columns = next(line.split() for line in counted if line.endswith(" total"))
    calls = int(columns[3])
    ticks = sum(map(int, after.split())) - sum(map(int, before.split()))
    assert 0 < calls <= 10 * seconds, told
    assert ticks <= 10 * seconds, "of 100 a second"
    return {"seconds": round(seconds), "calls": calls, "ticks": ticks}


def test_the_seed_ends_the_kernels_wait_and_without_a_daemon_nothing_spins(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, other_libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    data = stream(1_000_000)
    with (
        fed_fifo(tmp_path / "fifo", data, rate=40_000),
        make_hostd(tmp_path, libvirtd, tmp_path / "fifo") as hostd,
    ):
        hostd.start()
        early = boot_unseeded(boot_vm, "early", f"{STRACE} {PYTHON}")
        # The same, but nobody is on its host.
        control = boot_unseeded(boot_vm, "control", PYTHON, host=other_libvirtd)
        early.wait_up()
        wait_for_line(early, "credited and reseeded")
        in_order(
            log_of(early),
            "netrng-guest: 0.",
            " opened\n",
            SEEDED,
            "64 bytes for the kernel, credited and reseeded",
        )
        assert_never_waited_for_random_bytes(early)
        assert int(early.check("cat /proc/sys/kernel/random/entropy_avail")) == 256
        wait_for_acked(hostd, early, 64)

        control.wait_up()
        wait_for_line(control, "opened /dev/vport")
        assert unseeded(control)
        agent = control.check("pidof python3").strip()
        quiet = assert_quiet(control, agent)
        checked = control.run(f"{PYTHON} check")
        assert checked.rc == 0, checked.out
        assert "in use, presumably by netrng-guest" in checked.out
        assert "the kernel's pool is not seeded yet" in checked.out
        assert unseeded(control), "neither our agent nor our check seeds a kernel without a daemon"
    with (
        fed_fifo(tmp_path / "late", data, rate=40_000),
        make_hostd(tmp_path, other_libvirtd, tmp_path / "late") as late,
    ):
        late.start()
        wait_for_acked(late, control, 64)
        in_order(log_of(control), " opened\n", SEEDED, "64 bytes for the kernel, credited and reseeded")
        assert control.check("pidof python3").strip() == agent
        assert late.stop() == 0
    print(json.dumps({"without a daemon": quiet}))
    check_names_what_is_missing(control, agent)


def check_names_what_is_missing(guest: VM, agent: str) -> None:
    guest.check(f"kill {agent}; while [ -e /proc/{agent} ]; do sleep 0.1; done")
    no_host = "no host is connected to it: is netrng-hostd running?"
    check = f"python3 -I -S {AGENT} check"
    guest.wait_for(lambda: no_host in guest.check(check), 30, "the daemon's end to be seen")
    channel = ElementTree.fromstring(guest.domain.XMLDesc()).find("devices/channel")
    assert channel is not None
    xml = ElementTree.tostring(channel, encoding="unicode")
    guest.domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    guest.wait_for(lambda: guest.run("cat /sys/class/virtio-ports/*/name").rc != 0, 30, "the port's end")
    without = guest.run(check)
    assert without.rc == 1, without.out
    assert "no channel org.netrng.0" in without.out
    assert "netrng-hostd attach" in without.out
