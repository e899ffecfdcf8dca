# SPDX-License-Identifier: Apache-2.0
"""The folder of one run, the user that its daemons run as, and the end of both.

Everything that a run starts or writes lies under one short folder in /tmp (a UNIX socket's path has at most
107 bytes, and libvirt needs most of them).  The folder is locked while its run lives; a run that was killed
leaves an unlocked one, which the next run finds and clears together with the processes that it names.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

_PREFIX = "netrng-bed-"
_LOCK = "lock"


class Identity(NamedTuple):
    """The user that libvirtd and the VMs run as."""

    uid: int
    gid: int

    def prefix(self) -> list[str]:
        """The command that drops to this user; nothing when we are it."""
        if os.geteuid() == self.uid:
            return []
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--"]


def unprivileged() -> Identity:
    """Oneself, or `nobody` as root: libvirtd run by root is always the system's one."""
    if os.geteuid() != 0:
        return Identity(os.geteuid(), os.getegid())
    entry = pwd.getpwnam("nobody")
    return Identity(entry.pw_uid, entry.pw_gid)


class RunDirectory:
    """A fresh folder, removed at the end with every process that still runs from it (a context manager)."""

    def __init__(self) -> None:
        sweep()
        self.user = unprivileged()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
        # Locked before it has its name: another run's sweep never finds it free.
        self._lock = os.open(self.path / "new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.path / "new").rename(self.path / _LOCK)
        self.path.chmod(0o711)
        self.boot = self.folder("boot")  # kernels and images: what QEMU, unprivileged, must be able to read

    def folder(self, name: str) -> Path:
        """A folder in this one that belongs to the unprivileged user and that only it can enter."""
        path = self.path / name
        path.mkdir(mode=0o700)
        if os.geteuid() != self.user.uid:
            os.chown(path, self.user.uid, self.user.gid)
        return path

    def close(self) -> None:
        """Ends what still runs from here and removes the folder; again is harmless."""
        if self._lock < 0:
            return
        _clear(self.path)
        os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def processes(folder: Path, uid: int) -> list[int]:
    """The pids of `uid`'s processes whose command line or environment names something in `folder`."""
    needle = f"{folder}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # It may end while we look; another user's environment is not ours to read.
        with contextlib.suppress(OSError):
            if entry.stat().st_uid != uid:
                continue
            if needle in (entry / "cmdline").read_bytes() or needle in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def end_processes(folder: Path, uid: int, deadline_s: float = 60.0) -> None:
    """Kills libvirtd and the QEMUs that run from `folder`, and waits until they are gone."""
    deadline = time.monotonic() + deadline_s
    while True:
        left = [pid for pid in processes(folder, uid) if _is_daemon(pid)]
        if not left or time.monotonic() > deadline:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _is_daemon(pid: int) -> bool:
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        # comm holds the first 15 bytes; a thread's name may replace QEMU's.
        return name.startswith(("libvirtd", "qemu-system", "virtlogd", "rpc-worker")) and _state(pid) != "Z"
    return False


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _clear(path: Path) -> None:
    end_processes(path, unprivileged().uid)
    shutil.rmtree(path, ignore_errors=True)


def sweep() -> None:
    """Clears the folders of earlier runs that ended without doing so (killed, or the power went)."""
    for path in Path("/tmp").glob(f"{_PREFIX}*"):
        try:
            if path.is_symlink() or path.stat().st_uid != os.geteuid():
                continue
            handle = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its run lives
        else:
            _clear(path)
        finally:
            os.close(handle)
