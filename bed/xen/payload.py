# SPDX-License-Identifier: Apache-2.0
"""What one run brings into dom0, as its second disk at /opt/netrng: this checkout, and what it needs."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bed.packages import DEFAULT_CACHE, PYTHON, ROOT, BedError, say

CACHE = DEFAULT_CACHE / "xen"  # of all of this bed
CHECKOUT = "/opt/netrng/checkout"
_OF_THE_CHECKOUT = ("bed", "bench", "conf", "contrib", "dist", "guest", "hostd", "tests", "pyproject.toml")
# The rest of what hostd needs are dom0's own packages.
_FROM_PYPI = ("pytest>=8.0", "tomli", "rich")
_SIZE = "256M"  # sparse
MKE2FS = "/usr/sbin/mke2fs"  # a folder that is in no user's PATH on Debian


def write(disk: Path, python: str) -> None:
    """Writes the disk's image; ``python`` is the version of dom0's interpreter.  Raises BedError."""
    packages = _python_packages(python)
    with tempfile.TemporaryDirectory(dir=disk.parent) as scratch:
        root = Path(scratch)
        for name in _OF_THE_CHECKOUT:
            _copy(ROOT / name, root / "checkout" / name)
        shutil.copytree(packages, root / "python")
        _compile(root / "checkout")
        make_file_system(disk, root, _SIZE)


def make_file_system(image: Path, root: Path, size: str, sudo: list[str] | None = None) -> None:
    """Writes an ext4 image with the content of `root`; `size` as of truncate(1).  Raises BedError."""
    image.write_bytes(b"")
    made = subprocess.run(
        [*(sudo or []), MKE2FS, "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", root, image, size],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise BedError(f"mke2fs failed: {made.stderr.strip()[-1000:]}")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)


def _python_packages(python: str) -> Path:
    """A folder of Python packages for dom0, fetched unless it is there."""
    key = hashlib.sha256(" ".join(_FROM_PYPI).encode()).hexdigest()[:8]
    folder = CACHE / f"python-{python}-{key}"
    if folder.is_dir():
        return folder
    for old in CACHE.glob("python-*"):
        shutil.rmtree(old)
    say(f"fetching {', '.join(_FROM_PYPI)} for dom0's Python {python}")
    scratch = CACHE / "python-new"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    done = subprocess.run(
        [*pip, "--target", scratch, "--only-binary=:all:", "--python-version", python, *_FROM_PYPI],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BedError(f"pip install failed: {done.stderr.strip()[-1000:]}")
    _compile(scratch)
    scratch.rename(folder)
    return folder


def _compile(folder: Path) -> None:
    """An emulated computer would need seconds for it, at each start of a program; what fails, fails there."""
    subprocess.run([PYTHON, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", folder])
