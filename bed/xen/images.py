# SPDX-License-Identifier: Apache-2.0
"""What the emulated computer boots, made once into a cache: Xen, dom0's first file system, dom0's disk."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from bed import initramfs
from bed.cpio import Archive
from bed.packages import ROOT, Artefacts, BedError, Linux, dependencies, linux, package, say
from bed.xen.payload import CACHE, make_file_system

HERE = Path(__file__).parent
BOOT = "/var/lib/bed"  # in dom0: what domUs boot from
# {} is Xen's version.  The last line is what the tests, and what they start, need.
_DOM0_PACKAGES = (
    *("xen-utils-{}", "xen-utils-common", "xenstore-utils", "qemu-system-xen"),
    *("libvirt-daemon", "libvirt-daemon-driver-xen", "libvirt-clients"),
    *("mount", "kmod", "iproute2", "procps", "util-linux", "busybox-static"),
    *("python3", "python3-libvirt", "python3-numpy", "python3-psutil", "strace"),
)
_DOM0_MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "crc32c_generic", "ext4"),
    *("xen_evtchn", "xen_privcmd", "xenfs", "xen_gntdev", "xen_gntalloc"),
)
_NOT_NEEDED = ("man", "doc", "locale", "info", "lintian")
_DISK_SIZE = "3G"  # sparse


class Images(NamedTuple):
    """Files in the cache.  ``python``: the version of dom0's interpreter, as "3.11".

    ``kernel`` is packed: QEMU hands it to Xen byte by byte, which takes longer than to unpack it.
    """

    xen: Path
    kernel: Path
    initrd: Path
    disk: Path
    python: str


def prepare(artefacts: Artefacts, cache: Path = CACHE) -> Images:
    """Makes what is missing; soon done when nothing is.  Raises BedError.

    ``artefacts`` is what domUs boot, which dom0's disk holds as well.  Not safe to call from two processes.
    """
    version = _xen_version()
    xen = cache / f"xen-{version}"
    if not xen.exists():
        compressed = package(f"xen-hypervisor-{version}-amd64") / f"boot/xen-{version}-amd64.gz"
        scratch = cache / "xen.new"
        scratch.write_bytes(gzip.decompress(compressed.read_bytes()))
        scratch.replace(xen)
    disk = cache / f"dom0-{_key(version, artefacts)}.ext4"
    if not disk.exists():
        # With the computers that were saved with it.
        for old in (*cache.glob("dom0-*"), *cache.glob("up-*")):
            old.unlink()
        _build_disk(disk, version, artefacts)
    initrd = cache / "dom0.initrd"
    kernel = linux(artefacts.kernel_release)
    _build_initrd(initrd, kernel)
    return Images(xen, kernel.image, initrd, disk, disk.with_suffix(".python").read_text())


def _xen_version() -> str:
    found = re.search(r"Depends: xen-utils-(\S+)", dependencies("xen-system-amd64"))
    if found is None:
        raise BedError("apt knows no xen-system-amd64; run apt-get update (or: scripts/setup xen)")
    return found.group(1)


def _key(version: str, artefacts: Artefacts) -> str:
    """Names what the disk is made of; a newer package in the archive is not looked for."""
    made_of = [*_mmdebstrap_options(version), _DISK_SIZE, _os_release()["VERSION_CODENAME"]]
    made_of += [artefacts.initramfs.name, Path(__file__).read_text()]
    return hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]


def _build_disk(disk: Path, version: str, artefacts: Artefacts) -> None:
    """dom0's root file system: packages alone; what changes from run to run is brought along by each run."""
    release = _os_release()["VERSION_CODENAME"]
    say(f"building dom0's disk: {release} with Xen {version} and libvirt; about a minute")
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    # In case that mmdebstrap was killed: what it had mounted is not ours to remove.
    remove = [*sudo, "rm", "-rf", "--one-file-system"]
    if left := list(map(str, disk.parent.glob("root-*"))):
        _run([*remove, *left])
    scratch = disk.with_suffix(".new")
    with tempfile.TemporaryDirectory(dir=disk.parent, prefix="root-") as folder:
        root = Path(folder) / "root"
        try:
            _run([*sudo, "mmdebstrap", *_mmdebstrap_options(version), release, str(root), *_archives()])
            _run([*sudo, "mkdir", "-p", *(str(root / path) for path in ("opt/netrng", BOOT.lstrip("/")))])
            for name, path in (("kernel", artefacts.kernel), ("initramfs", artefacts.initramfs)):
                _run([*sudo, "cp", str(path), f"{root}{BOOT}/{name}"])
            # It starts only where there is a user libvirt-qemu, and would end libvirtd.
            drivers = root / "usr/lib/x86_64-linux-gnu/libvirt/connection-driver"
            _run([*sudo, "rm", "-f", str(drivers / "libvirt_driver_qemu.so")])
            (python,) = {path.name for path in root.glob("usr/bin/python3.*[0-9]")}
            make_file_system(scratch, root, _DISK_SIZE, sudo)
        finally:
            _run([*remove, str(root)])
    disk.with_suffix(".python").write_text(python[len("python") :])
    scratch.replace(disk)


def _mmdebstrap_options(version: str) -> list[str]:
    return [
        "--quiet",
        "--variant=apt",
        "--mode=root",
        f"--include={','.join(_DOM0_PACKAGES).format(version)}",
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _NOT_NEEDED),
    ]


def _archives() -> list[str]:
    """Where this machine gets its own packages of the distribution from.  Raises BedError."""
    distribution = _os_release()["ID"]
    names = ("sources.list", f"sources.list.d/{distribution}.sources", f"sources.list.d/{distribution}.list")
    found = [path for path in (Path("/etc/apt", name) for name in names) if path.is_file()]
    filled = [str(path) for path in found if path.stat().st_size]
    if not filled:
        raise BedError(f"no package archive in /etc/apt/{', '.join(names)}")
    return filled


def _os_release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


def _build_initrd(initrd: Path, kernel: Linux) -> None:
    scratch = initrd.with_suffix(".new")
    with scratch.open("wb") as out:
        archive = Archive(out)
        for folder in ("bin", "proc", "sys", "dev", "root"):
            archive.folder(folder)
        archive.node("dev/console", 5, 1)
        busybox = package("busybox-static")
        archive.file("bin/busybox", next(busybox.glob("**/bin/busybox")).read_bytes(), 0o755)
        # What dom0 runs: the jobs of all guests, and a start of its own.
        for path in (*(ROOT / "bed/guest").iterdir(), HERE / "dom0/sysinit"):
            if path.name != "sysinit" or path.parent.name == "dom0":
                archive.file(f"bed/{path.name}", path.read_bytes(), 0o755)
        archive.file("init", (HERE / "dom0/init").read_bytes(), 0o755)
        initramfs.add_modules(archive, kernel.module_trees, _DOM0_MODULES)
        archive.close()
    scratch.replace(initrd)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise BedError(f"{' '.join(command[:2])} failed: {(done.stderr or done.stdout).strip()[-1000:]}")
