# SPDX-License-Identifier: Apache-2.0
"""A libvirt of our own: an unprivileged session daemon with its own folders, beside whatever the user has."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

import libvirt

from bed import reaper as reaper_program
from bed.packages import PYTHON, BedError
from bed.rundir import RunDirectory

_START_S = 90.0  # a busy machine takes its time


class PrivateLibvirtd:
    """libvirtd in `run`/`name`, with its own host UUID so that two of them can migrate VMs to each other.

    A context manager: starts at the beginning, ends with every VM on it.  `name` should be one or two
    letters; it becomes part of every socket's path.
    """

    def __init__(self, run: RunDirectory, name: str = "a") -> None:
        self.run = run
        self.name = name
        self.folder = run.folder(name)
        self.socket = self.folder / "r/libvirt/libvirt-sock"
        self.log = self.folder / "libvirtd.log"
        # Copied: an unprivileged user may not be able to read the checkout.
        self._reaper = shutil.copyfile(reaper_program.__file__, run.boot / "reaper.py")
        self._pid: int | None = None
        self._reapers: list[subprocess.Popen[bytes]] = []  # one per start, while VMs of that start live
        self._connection: libvirt.virConnect | None = None
        self._environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder),
            "XDG_RUNTIME_DIR": str(self.folder / "r"),
            "XDG_CONFIG_HOME": str(self.folder / "c"),
            "XDG_CACHE_HOME": str(self.folder / "k"),
            "XDG_DATA_HOME": str(self.folder / "d"),
        }
        for sub in ("r", "c", "c/libvirt", "k", "d"):
            self._own(self.folder / sub)
        self._write(
            self.folder / "c/libvirt/libvirtd.conf",
            f'host_uuid = "{uuid.uuid4()}"\nlog_outputs = "2:file:{self.log}"\n',
        )
        # "file": without it libvirtd starts a virtlogd that outlives it.
        self._write(self.folder / "c/libvirt/qemu.conf", 'stdio_handler = "file"\nsecurity_driver = "none"\n')

    @property
    def uri(self) -> str:
        """The URI by which any program of this machine reaches it."""
        return f"qemu+unix:///session?socket={self.socket}"

    @property
    def pid(self) -> int | None:
        """The daemon's, None while it does not run."""
        return self._pid if self._pid is not None and Path(f"/proc/{self._pid}").exists() else None

    def start(self) -> None:
        """Starts the daemon and waits until it answers; BedError with its log's end when it does not."""
        if self.pid is not None:
            return
        reaper = subprocess.Popen(
            # --timeout 0: it would end itself after two idle minutes.
            [*self.run.user.prefix(), PYTHON, "-I", "-S", self._reaper, "libvirtd", "--timeout", "0"],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for us; we end it in order
        )
        self._reapers.append(reaper)
        assert reaper.stdout is not None
        self._pid = int(reaper.stdout.readline() or 0) or None
        reaper.stdout.close()
        deadline = time.monotonic() + _START_S
        while True:
            if self.socket.exists():
                with contextlib.suppress(libvirt.libvirtError):
                    self.connection()
                    return
            ended = self.pid is None
            if ended or time.monotonic() > deadline:
                self.kill()
                state = "ended" if ended else f"did not answer within {_START_S:.0f} s"
                raise BedError(f"the private libvirtd {state}:\n{self._log_end()}")
            time.sleep(0.02)

    def connection(self) -> libvirt.virConnect:
        """A read-write connection, kept; opened anew after a restart.  Raises libvirtError."""
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                if self._connection.isAlive() and self._connection.getLibVersion():
                    return self._connection
            self._disconnect()
        self._connection = libvirt.open(self.uri)
        return self._connection

    def kill(self) -> None:
        """Ends the daemon as a crash does; the VMs live on."""
        self._disconnect()
        while (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        # A killed daemon leaves its socket; a client must find it absent, not refusing.
        self.socket.unlink(missing_ok=True)

    def restart(self) -> None:
        """Kills and starts the daemon; it finds its VMs again."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """Ends the daemon and every VM on it; again is harmless."""
        self.kill()
        reapers, self._reapers = self._reapers, []
        for reaper in reapers:
            assert reaper.stdin is not None
            reaper.stdin.close()
        for reaper in reapers:
            reaper.wait()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()

    def _own(self, path: Path) -> None:
        path.mkdir(mode=0o700)
        if os.geteuid() != self.run.user.uid:
            os.chown(path, self.run.user.uid, self.run.user.gid)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o644)

    def _log_end(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return "(no log)"

    def __enter__(self) -> PrivateLibvirtd:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
