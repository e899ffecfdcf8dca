# SPDX-License-Identifier: Apache-2.0
"""The bed itself: what the other tests in this folder take for granted."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
from bed import kvm, rundir
from bed.domain_xml import CHANNEL_XML
from bed.inside import BOOT_S, BedTimeout
from bed.jobs import request
from bed.libvirtd import PrivateLibvirtd
from bed.packages import Artefacts, BedError
from bed.rundir import RunDirectory
from bed.vm import VM
from tests.edge.rig import wait_for

BootVM = Callable[..., VM]

PORTS = "cat /sys/class/virtio-ports/*/name"
# RNDADDENTROPY of 8 bytes with no credit: proves the right to do it and changes no count.
ADD_ENTROPY = """
import fcntl, struct
with open("/dev/random", "wb") as pool:
    fcntl.ioctl(pool, 0x40085203, struct.pack("ii8s", 0, 8, b"8 bytes."))
"""


def wait_for_fork(guest: VM) -> None:
    """Until the kernel has seen a new generation ID: a thread of its own looks, once the machine goes on."""
    guest.wait_for(lambda: "virtual machine fork" in guest.check("dmesg"), 30, "a new generation ID")


def test_two_guests_side_by_side_each_with_the_channel(boot_vm: BootVM) -> None:
    one = boot_vm("one", wait=False, rngd="rng-tools5", files={"/add.py": ADD_ENTROPY.encode()})
    two = boot_vm("two", wait=False, rngd="rng-tools-debian", main="echo main; exit 3", kernel_args="a.b=1")
    one.wait_up()
    two.wait_up()
    for guest in (one, two):
        assert guest.check(f"{PORTS}; hostname").split() == ["org.netrng.0", guest.name]
        socket = guest.channel_socket()
        assert socket is not None
        assert socket.is_socket()
        assert len(str(socket)) < 108
        for variant, line in (("rng-tools5", "rngd 5"), ("rng-tools-debian", "rngd 2.")):
            assert guest.check(f"/opt/{variant}/usr/sbin/rngd --version").startswith(line)
    assert one.check("rngd --version").startswith("rngd 5")
    assert two.check("rngd --version").startswith("rngd 2.")
    one.wait_for(lambda: "done" in one.check("python3 -I -S /add.py && echo done"), 10, "entropy to be added")
    trace = one.check("strace -f -e trace=ioctl python3 -I -S /add.py")
    assert trace.count("RNDADDENTROPY") == 1
    two.wait_for(lambda: two.run("cat /run/main.rc").out == "3\n", 30, "the main program's exit code")
    assert two.fetch("/run/main.out") == b"main\n"
    assert "a.b=1" in two.check("cat /proc/cmdline")


def test_commands_answer_with_code_and_output_in_any_order(boot_vm: BootVM) -> None:
    guest = boot_vm("jobs")
    slow = guest.spawn("echo first; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo ö; echo err >&2; exit 7")
    endless = guest.spawn("echo up; sleep 1000 & wait")
    assert guest.run("exit 5") == (5, "")
    guest.wait_for(lambda: slow.output() == "first\n", 10, "the first line")
    assert guest.run("touch /tmp/go").rc == 0
    assert slow.result() == (7, "first\nö\nerr\n")
    with pytest.raises(BedTimeout, match="bed: up after"):
        endless.result(0.1)
    guest.wait_for(lambda: endless.output() == "up\n", 10, "a process to kill")
    endless.kill("KILL")
    assert endless.result().rc == 128 + 9
    assert guest.python("with open('/tmp/content', 'wb') as out: out.write(bytes(range(256)) * 40)") == ""
    assert guest.fetch("/tmp/content") == bytes(range(256)) * 40
    with pytest.raises(BedError, match="exit code 1"):
        guest.check("false")
    assert guest.run("true " + "x" * 6000) == (0, "")
    sent = [guest.jobs.submit("true") for _ in range(30)]
    answered = [guest.jobs.answer(job, "true", 120, repeat=False) for job in sent]
    assert answered == [(0, b"")] * 30, "no request is lost because another job ends"
    line = request("name", "true")
    assert guest.jobs._stream is not None
    guest.jobs._stream.sendall(line.replace(b" name ", b" me ") + line)
    guest.wait_for(lambda: guest.run("ls /run/jobs/name.sh").rc == 0, 10, "the whole line's job")
    assert guest.run("ls /run/jobs/me.sh").rc != 0, "it would run a second time under its name"


def test_save_restore_pause_and_reset(boot_vm: BootVM, libvirtd: PrivateLibvirtd) -> None:
    guest = boot_vm("saved", genid=True)
    guest.check("echo kept >/tmp/kept")
    boot = guest.boot_id()
    image = libvirtd.folder / "saved.image"
    guest.save(image)
    for _ in range(2):
        guest.restore(image)
        assert guest.check("cat /tmp/kept") == "kept\n"
        assert guest.boot_id() == boot
        guest.destroy()
    guest.restore(image)
    image.unlink()
    guest.suspend()
    waiting = guest.spawn("echo resumed")
    with pytest.raises(BedTimeout):
        waiting.result(0.7)
    guest.resume()
    assert waiting.result().out == "resumed\n"
    guest.reset()
    assert guest.boot_id() != boot
    assert guest.run("cat /tmp/kept").rc != 0


def test_one_saved_state_lives_twice(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, other_libvirtd: PrivateLibvirtd
) -> None:
    guest = boot_vm("clone", genid=True)
    boot = guest.boot_id()
    image = libvirtd.folder / "clone.image"
    guest.save(image)
    guest.restore(image)
    with contextlib.closing(guest.restore_twin(image, other_libvirtd)) as twin:
        guest.check("touch /tmp/mine")
        assert twin.run("test -e /tmp/mine").rc == 1
        assert guest.boot_id() == twin.boot_id() == boot
        assert guest.channel_socket() != twin.channel_socket()
        for one in (guest, twin):
            wait_for_fork(one)
    image.unlink()


def test_whether_an_accelerator_boots_a_guest(bed: Artefacts, run_directory: RunDirectory) -> None:
    assert kvm.boots(run_directory, bed, "tcg", BOOT_S)
    assert not kvm.boots(run_directory, bed, "none-such")


@pytest.mark.shared_state
def test_guests_survive_their_libvirtd(boot_vm: BootVM, libvirtd: PrivateLibvirtd) -> None:
    guest = boot_vm("survivor")
    job = guest.spawn("sleep 0.5; echo done")
    libvirtd.kill()
    assert libvirtd.pid is None
    assert job.result().out == "done\n"
    with pytest.raises(libvirt.libvirtError):
        libvirt.openReadOnly(libvirtd.uri)
    libvirtd.start()
    assert guest.domain.isActive()
    libvirtd.restart()
    assert guest.domain.name() == "survivor"


def test_live_migration_between_two_libvirtds(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, other_libvirtd: PrivateLibvirtd
) -> None:
    guest = boot_vm("mover", metadata="<test:quota xmlns:test='urn:test:1' weight='3'/>")
    before = guest.channel_socket()
    boot = guest.boot_id()
    job = guest.spawn("while [ ! -e /tmp/moved ]; do sleep 0.1; done; echo over there")
    guest.migrate(other_libvirtd)
    assert guest.host is other_libvirtd
    guest.check("touch /tmp/moved")
    assert job.result().out == "over there\n"
    assert guest.boot_id() == boot
    after = guest.channel_socket()
    assert after is not None
    assert after != before
    assert after.is_socket()
    assert "urn:test:1" in guest.domain.XMLDesc()
    assert [domain.name() for domain in libvirtd.connection().listAllDomains()] == []


@pytest.mark.parametrize(("controller", "attached"), [(True, True), (False, False)])
def test_a_guest_without_channel_takes_one_live_only_with_a_controller(
    boot_vm: BootVM, controller: bool, attached: bool
) -> None:
    guest = boot_vm("bare", channel=False, controller=controller)
    assert guest.channel_socket() is None
    assert guest.run(PORTS).rc != 0
    if attached:
        guest.domain.attachDeviceFlags(CHANNEL_XML, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        guest.wait_for(lambda: guest.run(PORTS).out == "org.netrng.0\n", 10, "the port")
        assert guest.channel_socket() is not None
    else:
        with pytest.raises(libvirt.libvirtError, match="virtio-serial"):
            guest.domain.attachDeviceFlags(CHANNEL_XML, libvirt.VIR_DOMAIN_AFFECT_LIVE)


KILLED_RUN = """
import os, signal, sys
from bed.libvirtd import PrivateLibvirtd
from bed.packages import prepare
from bed.rundir import RunDirectory
from bed.vm import VM
run = RunDirectory()
host = PrivateLibvirtd(run, "z")
host.start()
VM(host, prepare(), "orphan").start(wait=False)
print(run.path, flush=True)
for reaper in host._reapers:
    os.kill(reaper.pid, int(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("reaper_signal", [0, signal.SIGKILL])
def test_a_killed_run_leaves_nothing(bed: Artefacts, run_directory: RunDirectory, reaper_signal: int) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, str(int(reaper_signal))],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=180,
    )
    folder = Path(killed.stdout.strip())
    user = rundir.unprivileged()
    assert folder.name.startswith("netrng-bed-"), killed.stderr
    if reaper_signal:
        # Its reaper was sent the signal, and dies when its turn comes.
        wait_for(lambda: len(rundir.processes(folder, user.uid)) <= 2, "the reaper's end")
        assert len(rundir.processes(folder, user.uid)) == 2, "libvirtd and QEMU, which nobody is left to end"
    else:
        wait_for(lambda: not rundir.processes(folder, user.uid), "the end of all that it started", 60)
    rundir.sweep()
    assert rundir.processes(folder, user.uid) == []
    assert not folder.exists()
    assert run_directory.path.exists()
