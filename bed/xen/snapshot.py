# SPDX-License-Identifier: Apache-2.0
"""A computer on which dom0 and the tests' domUs are up, saved: each run goes on from there.

dom0's second disk, the payload, is not mounted at that moment: each run brings its own.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import NamedTuple

from bed.packages import ROOT, say
from bed.xen import payload
from bed.xen.computer import Computer
from bed.xen.images import HERE, Images
from bed.xen.payload import CACHE

MOUNT = "blockdev --flushbufs /dev/vdb && mount -o ro,noatime /dev/vdb /opt/netrng"
_DOMUS_S = 300.0


class Snapshot(NamedTuple):
    """Files in the cache."""

    disk: Path
    memory: Path


def prepare(images: Images, payload_disk: Path, cache: Path = CACHE) -> Snapshot:
    """Makes it if it is missing.  Raises BedError.  Not safe to call from two processes."""
    name = f"up-{_key(images)}"
    found = Snapshot(cache / f"{name}.qcow2", cache / f"{name}.memory")
    if found.memory.exists():
        return found
    for old in cache.glob("up-*"):
        old.unlink()
    say("booting Xen, dom0 and domUs, for this run and the next ones; about two minutes")
    backing = ["-b", str(images.disk), "-F", "raw"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(found.disk)], check=True)
    scratch = cache / f"{name}.new"
    with Computer(images, found.disk, payload_disk) as dom0:
        dom0.wait_up()
        dom0.check(MOUNT)
        path = ":".join(f"{payload.CHECKOUT}/{name}" for name in (".", "guest"))
        dom0.check(f"cd / && PYTHONPATH={path} python3 -m tests.xen.domus", _DOMUS_S)
        say("dom0: the domUs are up")
        dom0.check("umount /opt/netrng && sync")
        dom0.save(scratch)
    scratch.replace(found.memory)
    return found


def _processor() -> str:
    """Its model's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith("model name")), "")


def _key(images: Images) -> str:
    """Names all that it depends on: the disk, and how Xen, dom0 and domUs are started, what runs."""
    digest = hashlib.sha256(f"{images.disk.name} {images.kernel.name} {images.xen.name}".encode())
    of_domus = ("contrib/xen/domu.cfg", "dist/netrng-guest.pyz", "tests/xen/domus.py", "tests/vm/rig.py")
    afterwards = {HERE / "__main__.py", HERE / "dom0/run"}
    of_bed = {*HERE.glob("*.py"), *HERE.glob("dom0/*")} - afterwards
    for path in sorted([*of_bed, *(ROOT / name for name in of_domus)]):
        digest.update(path.read_bytes())
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, check=True).stdout
    # The clocks that were saved run at this processor's rate.
    digest.update(qemu + _processor().encode())
    return digest.hexdigest()[:16]
