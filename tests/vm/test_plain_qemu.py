# SPDX-License-Identifier: Apache-2.0
"""The lines of docs/proxmox.md, under this machine's QEMU without libvirt."""

from __future__ import annotations

import contextlib
import re
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed import initramfs
from bed.packages import ROOT, Artefacts
from tests.edge.rig import Hostd, wait_for
from tests.vm.rig import AGENT, DRAIN, PYZ

from netrng_hostd.discovery.sockets import scan

PAGE = (ROOT / "docs/proxmox.md").read_text()
ARGS = [shlex.split(line) for line in re.findall(r"^args: (.*)$", PAGE, re.MULTILINE)]
PLAIN = [shlex.split(line) for line in re.findall(r"^(qemu-system-x86_64 .*)$", PAGE, re.MULTILINE)]
CHANNELS = re.findall(r"^\[\[channel\]\]\n(?:\w.*\n)+", PAGE, re.MULTILINE)
PATHS = re.findall(r'^path = "(.*)"$', PAGE, re.MULTILINE)
FOLDERS = ("/run/qemu-server/", "/run/qemu/")

# What Proxmox puts before the args of a VM of each kind, as far as it matters to them: where pci.0 is, and
# the device of its guest agent (qemu-server: pve-q35-4.0.cfg, print_pci_addr).
QGA = "-device virtio-serial,id=qga0,bus=pci.0,addr=0x8 -chardev null,id=qga0 " + (
    "-device virtserialport,chardev=qga0,name=org.qemu.guest_agent.0"
)
MACHINES = {
    "pc": f"-M pc {QGA}",
    "q35": "-M q35 -device i82801b11-bridge,id=pcidmi,bus=pcie.0,addr=1e.0 "
    f"-device pci-bridge,id=pci.0,bus=pcidmi,addr=1.0,chassis_nr=1 {QGA}",
}  # fmt: skip
BARE = "-accel tcg -nodefaults -display none"


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="netrng-") as name:
        yield Path(name)


def moved(argument: str, folder: Path) -> str:
    for there in FOLDERS:
        argument = argument.replace(there, f"{folder}/")
    return argument


@contextlib.contextmanager
def qemu(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A QEMU whose sockets are in the folder."""
    log = folder / "qemu.log"
    with log.open("wb") as output:
        command = [moved(argument, folder) for argument in arguments]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()


def sockets_of(process: subprocess.Popen[bytes], folder: Path) -> list[Path]:
    def seen() -> list[Path]:
        assert process.poll() is None, (folder / "qemu.log").read_text()
        return [path for path in folder.iterdir() if stat.S_ISSOCK(path.stat().st_mode)]

    found: list[Path] = wait_for(seen, "QEMU's socket")
    return found


def test_the_page_has_the_lines() -> None:
    assert (len(ARGS), len(PLAIN), len(PATHS)) == (2, 1, 2)
    assert len(CHANNELS) == 2


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("number", [0, 1])
def test_qemu_takes_an_args_line_and_its_pattern_finds_the_socket(
    machine: str, number: int, folder: Path
) -> None:
    before = shlex.split(f"qemu-system-x86_64 -S {BARE} {MACHINES[machine]}")
    with qemu(folder, *before, *ARGS[number]) as process:
        (path,) = sockets_of(process, folder)
        matched = [[found.path for found in scan(moved(glob, folder)).found] for glob in PATHS]
        assert matched == [[str(path)] if place == number else [] for place in range(len(PATHS))]
        assert scan(moved(PATHS[number], folder)).found[0].stem == ("101", "102")[number]


def test_qemu_takes_the_plain_line(folder: Path) -> None:
    with qemu(folder, *PLAIN[0], *shlex.split(f"-S {BARE}")) as process:
        (path,) = sockets_of(process, folder)
        assert path.name == "101.netrng"


@pytest.mark.parametrize(
    ("number", "name", "main", "counted"),
    [
        (0, "pve-101", f"exec python3 -I -S {AGENT} run {DRAIN}", "bytes_acked"),
        (1, "pve-rng-102", "exec dd if=/dev/hwrng of=/dev/null bs=64", "bytes_sent"),
    ],
)
def test_a_vm_behind_an_args_line_is_served(
    number: int, name: str, main: str, counted: str, bed: Artefacts, folder: Path
) -> None:
    image = folder / "guest.cpio"
    initramfs.extend(bed.initramfs, image, {AGENT: PYZ, "bed/main": main.encode()}, {})
    channels = CHANNELS[number].replace(PATHS[number], moved(PATHS[number], folder))
    config = (
        '[libvirt]\nuris = []\n[[source]]\nname = "test"\nkind = "prng"\npath = "/dev/urandom"\n'
        f'{channels}[[quota]]\nname = "mine"\nmatch = ["{name}"]\nweight = 300\n'
    )
    with Hostd(folder, config).start() as hostd:
        assert hostd.status()["domains"] == []
        boot = ["-cpu", "max", "-m", "256", "-kernel", str(bed.kernel), "-initrd", str(image)]
        boot += ["-append", "console=ttyS0 panic=-1 quiet", "-serial", f"file:{folder}/console"]
        before = shlex.split(f"qemu-system-x86_64 {BARE} {MACHINES['pc']}")
        with qemu(folder, *before, *boot, *ARGS[number]):
            wait_for(lambda: any(one[counted] > 50_000 for one in hostd.status()["domains"]), "bytes", 270)
            served = hostd.domain(name)
            path = f"{folder}/{Path(PATHS[number]).name.replace('*', name[-3:])}"
            assert (served["channel"], served["quota"], served["weight"]) == (path, "mine", 300)
        Path(path).unlink(missing_ok=True)  # a QEMU that is killed leaves it
        wait_for(lambda: hostd.status()["domains"] == [], "the end of its channel")
