# SPDX-License-Identifier: Apache-2.0
"""Writes cpio archives in the "newc" format that Linux unpacks at boot.

The format: buffer-format.rst in the kernel's Documentation/driver-api/early-userspace.  Archives may follow
one another in one initramfs; later files replace earlier ones.
"""

from __future__ import annotations

import stat
from pathlib import PurePosixPath
from typing import BinaryIO


class Archive:
    """A cpio archive written to `out`.

    Parents are made as needed; a path given twice keeps its first content.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._names: set[str] = set()
        self._inode = 0

    def __contains__(self, path: str) -> bool:
        return path.lstrip("/") in self._names

    def folder(self, path: str, mode: int = 0o755) -> None:
        """A directory."""
        self._add(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._add(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """A symbolic link at `path` that points to `target`."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def node(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._add(path, stat.S_IFCHR | mode, b"", major, minor)

    def close(self) -> None:
        """Writes the trailer; `out` stays open."""
        self._names.discard("TRAILER!!!")
        self._entry("TRAILER!!!", 0, b"", 0, 0)

    def _add(self, path: str, mode: int, content: bytes, major: int = 0, minor: int = 0) -> None:
        name = path.strip("/")
        if name in self._names:
            return
        for parent in reversed(PurePosixPath(name).parents):
            if str(parent) != "." and str(parent) not in self._names:
                self._entry(str(parent), stat.S_IFDIR | 0o755, b"", 0, 0)
        self._entry(name, mode, content, major, minor)

    def _entry(self, name: str, mode: int, content: bytes, major: int, minor: int) -> None:
        self._names.add(name)
        self._inode += 1
        encoded = name.encode() + b"\0"
        # magic; inode, mode, uid, gid, links, mtime, size, device, device of a node, name's length, check
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._out.write(header + b"\0" * (-len(header) % 4))
        self._out.write(content + b"\0" * (-len(content) % 4))
