# SPDX-License-Identifier: Apache-2.0
"""Runs one daemon and adopts what it leaves behind; a program of its own.

libvirtd detaches its QEMUs, and whoever is process 1 then has to reap them: in a container that may be
nobody, and libvirt waits seconds for a dead QEMU to vanish.  Here they become our children and are reaped
at once.  When stdin ends, because the bed closed it or was killed, everything left is killed.

Prints the daemon's pid; ends when no child is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h


def _children() -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as stat:  # noqa: PTH123
            if int(stat.read().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(name))
    return found


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    while True:  # the main thread ends the process
        for pid in _children():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def main(command: list[str]) -> None:
    """Runs `command` until it and all that it left behind have ended."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pid = os.fork()
    if pid == 0:
        quiet = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(quiet, number)
        try:
            os.execvp(command[0], command)
        finally:
            os._exit(127)
    print(pid, flush=True)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
