# SPDX-License-Identifier: Apache-2.0
"""A socket in QEMU's place, on which its virtio-rng asks by EGD."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from tests.edge.rig import wait_for

ASK = b"\x02\x40"  # as Linux's driver has QEMU ask: for 64 bytes


class Qemu(threading.Thread):
    """Listens as QEMU does, keeps all that comes, and asks when it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(name=f"qemu {path.name}", daemon=True)
        self.taken = bytearray()
        self.connections = 0
        self.conn: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self.start()

    def run(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            with conn:
                self.conn = conn
                self.connections += 1
                with contextlib.suppress(OSError):
                    while piece := conn.recv(65536):
                        self.taken += piece

    def ask(self, data: bytes = ASK) -> None:
        """Until all is sent, or the connection ends."""
        assert self.conn is not None
        with contextlib.suppress(OSError):
            self.conn.sendall(data)

    def wait_for(self, n_bytes: int) -> None:
        """Until it has taken so many in all."""
        wait_for(lambda: len(self.taken) >= n_bytes, f"{n_bytes} bytes")

    def hang_up(self) -> None:
        assert self.conn is not None
        with contextlib.suppress(OSError):
            self.conn.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        if self.conn is not None:
            self.hang_up()
        self.join()
        self._listener.close()
