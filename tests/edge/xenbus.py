# SPDX-License-Identifier: Apache-2.0
"""A double of /dev/xen/xenbus: a terminal in raw mode, with a xenstored of a few lines behind it."""

from __future__ import annotations

import os
import pty
import select
import struct
import threading
import tty
from collections.abc import Mapping

HEADER = struct.Struct("=4I")
DIRECTORY, READ, ERROR = 1, 2, 16


class Xenbus:
    """Answers from ``tree`` (node: value) on ``device``, ``chop`` bytes at a time, as a context manager.

    A tree's nodes are listed in its order.  ``answer`` may be overridden; ``asked`` holds (type, path).
    """

    def __init__(self, tree: Mapping[str, str], chop: int = 1 << 20) -> None:
        self.tree = dict(tree)
        self.chop = chop
        self.asked: list[tuple[int, str]] = []
        self._host, self._guest = pty.openpty()
        tty.setraw(self._guest)
        self.device = os.ttyname(self._guest)
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="xenstored", daemon=True)

    def __enter__(self) -> Xenbus:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stop_write)
        self._thread.join()
        for fd in (self._stop_read, self._host, self._guest):
            os.close(fd)

    def answer(self, kind: int, request: int, path: str) -> bytes:
        """The whole message that answers a request."""
        children = [node[len(path) + 1 :].split("/")[0] for node in self.tree if node.startswith(path + "/")]
        payload = b""
        if kind == DIRECTORY and (children or path in self.tree):
            payload = "".join(name + "\0" for name in dict.fromkeys(children)).encode("latin-1")
        elif kind == READ and path in self.tree:
            payload = self.tree[path].encode("latin-1")
        elif not (kind == READ and children):
            kind, payload = ERROR, b"ENOENT\0"
        return HEADER.pack(kind, request, 0, len(payload)) + payload

    def _serve(self) -> None:
        requests = bytearray()
        while True:
            readable, _, _ = select.select([self._host, self._stop_read], [], [])
            if self._stop_read in readable:
                return
            requests += os.read(self._host, 4096)
            while len(requests) >= HEADER.size:
                kind, request, _, size = HEADER.unpack(requests[: HEADER.size])
                if len(requests) < HEADER.size + size:
                    break
                path = requests[HEADER.size : HEADER.size + size].rstrip(b"\0").decode("latin-1")
                del requests[: HEADER.size + size]
                self.asked.append((kind, path))
                answer = self.answer(kind, request, path)
                for start in range(0, len(answer), self.chop):
                    os.write(self._host, answer[start : start + self.chop])
