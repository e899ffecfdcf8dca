# SPDX-License-Identifier: Apache-2.0
"""Builds the guests' image: an initramfs that is the whole root file system.

It holds busybox, the host's own Python with the standard library, the variants of rngd, strace and the few
kernel modules of a virtio guest.  Everything lives in memory: no disk, no network and no shared folder, so
that a guest can be saved, restored and migrated (QEMU refuses all three while a 9p folder is mounted) and
needs nothing of the host that an unprivileged QEMU may not read.
"""

from __future__ import annotations

import io
import lzma
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from bed.cpio import Archive

HOST_PROGRAMS = (Path("/usr/bin/strace"), Path("/usr/bin/flock"))
_MODULES = ("virtio_pci", "virtio_console", "virtio_rng", "vmgenid", "virtio_balloon")
_GUEST = Path(__file__).parent / "guest"
# What no agent needs: it would only make the image slow to build and to load.
_NO_STDLIB = re.compile(
    r"(test|idlelib|tkinter|lib2to3|ensurepip|distutils|pydoc_data|turtledemo|venv|sqlite3|curses|dbm|wsgiref|xmlrpc"
    r"|config-.*|__pycache__|sitecustomize\.py|site-packages|dist-packages)(/|$)"
)
_NO_EXTENSION = re.compile(
    r"(_test|_ctypes_test|xx|_xx|_ssl|_hashlib|_tkinter|_sqlite3|_curses|_dbm|_gdbm|readline|nis|_codecs_)"
)
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def build(
    target: Path, *, busybox: Path, module_trees: Iterable[Path], python: Path, trees: Mapping[str, Path]
) -> None:
    """Writes the image to `target`.

    `busybox` is a static one, `module_trees` the kernel's /lib/modules/RELEASE folders, `trees` names
    unpacked packages whose programs appear in the guest under /opt/NAME.
    """
    with target.open("wb") as out:
        archive = Archive(out)
        _skeleton(archive, busybox)
        add_modules(archive, module_trees, _MODULES)
        _python(archive, python)
        for name, tree in trees.items():
            for program in sorted(tree.glob("usr/*bin/*")):
                _program(archive, program, f"/opt/{name}/{program.relative_to(tree)}")
        for program in HOST_PROGRAMS:
            if program.exists():
                _program(archive, program, str(program))
        archive.close()


def extend(image: Path, target: Path, files: Mapping[str, bytes | Path], links: Mapping[str, str]) -> None:
    """Writes `image` with more executable files and links to `target`."""
    own = io.BytesIO()
    archive = Archive(own)
    for path, points_to in links.items():
        archive.link(path, points_to)
    for path, content in files.items():
        archive.file(path, content.read_bytes() if isinstance(content, Path) else content, 0o755)
    archive.close()
    shutil.copyfile(image, target)
    with target.open("ab") as out:
        out.write(b"\0" * (-out.tell() % 4))
        out.write(own.getvalue())


def _skeleton(archive: Archive, busybox: Path) -> None:
    for folder in (
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "etc",
        "root",
        "var/log",
    ):
        archive.folder(folder)
    for folder in ("bin", "sbin", "lib", "lib64"):
        archive.link(folder, f"usr/{folder}")
    archive.link("var/run", "/run")
    archive.node("dev/console", 5, 1)
    archive.file("usr/bin/busybox", busybox.read_bytes(), 0o755)
    for path in sorted(_GUEST.iterdir()):
        archive.file(f"bed/{path.name}", path.read_bytes(), 0o755)
    archive.link("init", "/usr/bin/busybox")
    archive.link("etc/inittab", "/bed/inittab")
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    archive.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        archive.link(f"usr/bin/{applet}", "busybox")


def add_modules(archive: Archive, trees: Iterable[Path], names: Iterable[str]) -> None:
    """The modules and what they depend on, as bed/modules/*.ko, in an order in which insmod can load them.

    `trees` are the kernel's /lib/modules/RELEASE folders.  Those that the kernel has built in, or does not
    have, are left out; a guest that needs one shows it.
    """
    files = {
        path.name.split(".")[0].replace("-", "_"): path
        for tree in trees
        for path in sorted(tree.glob("kernel/**/*.ko*"))
    }
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in files:
            return
        content = _module(files[name])
        found = _DEPENDS.search(content)
        for needed in (found.group(1).decode() if found else "").split(","):
            add(needed.replace("-", "_"))
        archive.file(f"bed/modules/{len(order):02d}-{name}.ko", content)
        order.append(name)

    archive.folder("bed/modules")
    for name in names:
        add(name)


def _module(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout
    return path.read_bytes()


def _program(archive: Archive, path: Path, name: str) -> None:
    archive.file(name, path.read_bytes(), 0o755)
    _libraries(archive, path)


def _libraries(archive: Archive, path: Path) -> None:
    """The shared libraries of a program, under the names by which the loader looks for them."""
    listed = subprocess.run(["ldd", path], capture_output=True, text=True)
    if "not found" in listed.stdout:
        raise FileNotFoundError(f"{path} needs a library that is not installed here:\n{listed.stdout}")
    for library in re.findall(r"(/\S+) \(0x", listed.stdout):
        name = library if library.startswith("/usr/") else f"/usr{library}"
        if name not in archive:
            archive.file(name, Path(library).read_bytes(), 0o755)


def _python(archive: Archive, python: Path) -> None:
    """The interpreter and its standard library, compiled: an emulated guest would need seconds for that."""
    stdlib = Path(
        subprocess.run(
            [python, "-I", "-S", "-c", "import os; print(os.path.dirname(os.__file__))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    _program(archive, python.resolve(), str(python.resolve()))
    archive.link("usr/bin/python3", python.resolve().name)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "stdlib"
        for path in sorted(stdlib.rglob("*.py")):
            relative = path.relative_to(stdlib)
            if not _NO_STDLIB.match(str(relative)):
                (copy / relative).parent.mkdir(parents=True, exist_ok=True)
                (copy / relative).write_bytes(path.read_bytes())
        subprocess.run(
            # Unchecked: the guest need not agree with the host about modification times.
            [
                python,
                "-I",
                "-S",
                "-m",
                "compileall",
                "-q",
                "-b",
                "--invalidation-mode",
                "unchecked-hash",
                "-s",
                str(copy),
                "-p",
                str(stdlib),
                str(copy),
            ],
            check=True,
        )
        for path in sorted(copy.rglob("*.pyc")):
            archive.file(str(stdlib / path.relative_to(copy)), path.read_bytes())
    for path in sorted(stdlib.glob("lib-dynload/*.so")):
        if not _NO_EXTENSION.match(path.name):
            _program(archive, path, str(path))
