# SPDX-License-Identifier: Apache-2.0
"""Fetches what the guests are made of, once, into a cache: a kernel, busybox, the variants of rngd.

The packages are downloaded and unpacked, never installed: rng-tools would start an rngd that competes for
the host's /dev/hwrng, busybox-static would replace the user's busybox.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bed import initramfs
from bed.kernel import unpacked

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CACHE = ROOT / ".cache" / "bed"
RNGD_VARIANTS = ("rng-tools5", "rng-tools-debian")
PYTHON = Path("/usr/bin/python3")
_KERNEL_METAPACKAGES = ("linux-image-amd64", "linux-image-generic")  # Debian, Ubuntu


class BedError(Exception):
    """The bed cannot be made or used; the text says what to do."""


class Artefacts(NamedTuple):
    """What a guest boots: files in the cache."""

    kernel: Path
    initramfs: Path
    kernel_release: str
    rngd: tuple[str, ...]  # the variants that the image holds, at /opt/VARIANT/usr/sbin/rngd


class Linux(NamedTuple):
    """The distribution's kernel, unpacked from its packages: the image, and /lib/modules/RELEASE folders."""

    release: str
    image: Path
    module_trees: list[Path]


def say(text: str) -> None:
    """A progress line."""
    print(f"bed: {text}", file=sys.stderr, flush=True)


def prepare(cache_dir: Path = DEFAULT_CACHE) -> Artefacts:
    """Downloads, unpacks and builds what is missing in `cache_dir`; at once when nothing is.

    Safe to call from several processes.  A newer kernel in the archive is not looked for: remove the cache
    to get one.  Raises BedError when a package cannot be had.
    """
    key = _key()
    found = _ready(cache_dir, key)
    if found is None:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with locked(cache_dir / "lock"):
            found = _ready(cache_dir, key) or _build(cache_dir, key)
    return Artefacts(
        kernel=cache_dir / found["kernel"],
        initramfs=cache_dir / found["initramfs"],
        kernel_release=found["release"],
        rngd=tuple(found["rngd"].split()),
    )


def package(name: str, cache_dir: Path = DEFAULT_CACHE) -> Path:
    """The unpacked tree of a Debian package, fetched unless it is there. Raises BedError."""
    tree = cache_dir / "debs" / name
    if tree.is_dir():
        return tree
    cache_dir.mkdir(parents=True, exist_ok=True)
    with locked(cache_dir / "lock"):  # another process may be fetching it
        return _unpacked(cache_dir / "debs", name)


def _ready(cache_dir: Path, key: str) -> dict[str, str] | None:
    """The index of the cache if everything in it is what `key` names."""
    try:
        found: dict[str, str] = json.loads((cache_dir / "index.json").read_text())
        complete = found["key"] == key and all(
            (cache_dir / found[name]).exists() for name in ("kernel", "initramfs")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if complete else None


def _key() -> str:
    """Names everything on this machine that the image is made of: it is rebuilt when one of them changed."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("guest/*")):
        digest.update(path.read_bytes())
    for module in ("cpio", "initramfs", "kernel", "packages"):
        digest.update(Path(__file__).with_name(f"{module}.py").read_bytes())
    for program in (PYTHON, *initramfs.HOST_PROGRAMS):
        if program.exists():
            stat = program.stat()
            digest.update(f"{program.resolve()} {stat.st_size} {int(stat.st_mtime)}".encode())
    return digest.hexdigest()[:16]


def _build(cache_dir: Path, key: str) -> dict[str, str]:
    linux = _linux([_unpacked(cache_dir / "debs", name) for name in _kernel_packages()])
    release = linux.release
    trees = {name: _unpacked(cache_dir / "debs", name) for name in ("busybox-static", *RNGD_VARIANTS)}
    say(f"building the guest's image for Linux {release}")
    image = cache_dir / f"initramfs-{release}-{key}.cpio"
    scratch = image.with_suffix(".new")
    busybox = next(
        path
        for path in (trees["busybox-static"] / "bin/busybox", trees["busybox-static"] / "usr/bin/busybox")
        if path.exists()
    )
    initramfs.build(
        scratch,
        busybox=busybox,
        module_trees=linux.module_trees,
        python=PYTHON,
        trees={name: trees[name] for name in RNGD_VARIANTS},
    )
    scratch.replace(image)
    kernel = cache_dir / f"kernel-{release}"
    scratch = cache_dir / "kernel.new"
    scratch.write_bytes(unpacked(linux.image.read_bytes()))
    scratch.replace(kernel)
    for old in (*cache_dir.glob("initramfs-*"), *cache_dir.glob("kernel-*")):
        if old not in (image, kernel):
            old.unlink()
    found = {
        "key": key,
        "kernel": kernel.name,
        "initramfs": image.name,
        "release": release,
        "rngd": " ".join(RNGD_VARIANTS),
    }
    scratch = cache_dir / "index.new"
    scratch.write_text(json.dumps(found, indent=1))
    scratch.replace(cache_dir / "index.json")
    return found


def linux(release: str, cache_dir: Path = DEFAULT_CACHE) -> Linux:
    """The kernel that the guests' is made of; `prepare` fetched it.  Raises BedError."""
    return _linux(list((cache_dir / "debs").glob(f"linux-*-{release}")))


def _linux(trees: list[Path]) -> Linux:
    """That of these unpacked packages."""
    images = [path for tree in trees for path in tree.glob("boot/vmlinuz-*")]
    if len(images) != 1:
        names = " and ".join(tree.name for tree in trees) or "no packages"
        raise BedError(f"{names} in the cache hold {len(images)} kernels, not one: make clean, and again")
    release = images[0].name[len("vmlinuz-") :]
    folders = [tree / root / release for tree in trees for root in ("lib/modules", "usr/lib/modules")]
    return Linux(release, images[0], [folder for folder in folders if folder.is_dir()])


def _kernel_packages() -> list[str]:
    """The packages that hold the distribution's kernel and, on Ubuntu, its modules."""
    for meta in _KERNEL_METAPACKAGES:
        for name in re.findall(r"Depends: (linux-image-[0-9]\S+)", dependencies(meta)):
            modules = name.replace("linux-image-", "linux-modules-", 1)
            has_modules = subprocess.run(
                ["apt-cache", "show", "--no-all-versions", modules], capture_output=True
            )
            # linux-modules-extra is not needed: virtio_console is in the first one.
            return [name, modules] if has_modules.returncode == 0 and "generic" in name else [name]
    raise BedError(
        f"apt knows none of {', '.join(_KERNEL_METAPACKAGES)}; run apt-get update (or: scripts/setup vm)"
    )


def dependencies(name: str) -> str:
    """What apt says of a package that it knows, in English."""
    command = ["apt-cache", "depends", "--important", name]
    english = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, capture_output=True, text=True, env=english).stdout


def _unpacked(debs: Path, name: str) -> Path:
    """The unpacked tree of a package, fetched unless it is there."""
    tree = debs / name
    if tree.is_dir():
        return tree
    debs.mkdir(parents=True, exist_ok=True)
    say(f"fetching {name} (unpacked into the cache, not installed)")
    with tempfile.TemporaryDirectory(dir=debs, prefix="new-") as scratch:
        fetched = subprocess.run(
            # The sandbox user cannot write here; nothing but this folder is written either way.
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", name],
            cwd=scratch,
            capture_output=True,
            text=True,
        )
        packages = list(Path(scratch).glob("*.deb"))
        if fetched.returncode or len(packages) != 1:
            reason = fetched.stderr.strip() or "no file"
            raise BedError(f"apt-get download {name} failed: {reason}; run apt-get update and try again")
        subprocess.run(["dpkg-deb", "-x", str(packages[0]), f"{scratch}/tree"], check=True)
        Path(f"{scratch}/tree").rename(tree)
    return tree


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """While no other process has it: waits."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


if __name__ == "__main__":
    try:
        print(*map(package, sys.argv[1:]) if sys.argv[1:] else [prepare()])
    except BedError as error:
        sys.exit(f"bed: {error}")
