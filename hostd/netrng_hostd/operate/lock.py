# SPDX-License-Identifier: Apache-2.0
"""One daemon per control socket: a lock that the kernel lets go of when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType


class LockHeld(Exception):
    """Another daemon holds the lock. ``pid`` is its process id, None if it could not be read."""

    def __init__(self, path: str, pid: int | None) -> None:
        who = f"pid {pid}" if pid is not None else f"find out which with: fuser {path}"
        super().__init__(
            f"another netrng-hostd is running ({who}); stop it first, "
            "or give this one its own control socket (control = … in hostd.toml)"
        )
        self.path = path
        self.pid = pid


def lock_path(control: str) -> str:
    """The lock file beside a control socket: /run/netrng/hostd.sock → /run/netrng/hostd.lock."""
    return str(Path(control).with_suffix(".lock"))


class Lock:
    """``with Lock(control):`` holds it. Raises LockHeld; OSError where the lock file cannot be made.

    The file stays behind: to remove it would let two daemons lock two files of the same name.
    """

    def __init__(self, control: str) -> None:
        self.path = lock_path(control)
        self._fd = -1

    def __enter__(self) -> Lock:
        directory = Path(self.path).parent
        if not directory.is_dir():
            # A user's own directory is nobody else's; root's is entered by the group of the socket in it.
            directory.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _read_pid(fd)
            os.close(fd)
            raise LockHeld(self.path, pid) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def _read_pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None
