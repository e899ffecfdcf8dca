# SPDX-License-Identifier: Apache-2.0
"""What the daemon asks of the kernel: memory that is not dumped, traced or swapped, and many open files."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from pathlib import Path

PR_SET_DUMPABLE = 4  # linux/prctl.h
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4  # asm-generic/mman.h
CAP_IPC_LOCK = 14  # linux/capability.h


def forbid_dumps() -> None:
    """No core dump and no ptrace by others than root; unlike RLIMIT_CORE this also stops a piped handler.

    prctl(2), PR_SET_DUMPABLE.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def allow_files() -> None:
    """As many open files as the hard limit allows: each channel is one, and the usual soft limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # a hard limit above fs.nr_open: the soft one has to do
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def lock_memory() -> str | None:
    """Keeps all memory out of swap; None on success, else a line that says why not and what to do.

    Only where there is no limit to run into: with MCL_FUTURE a later allocation beyond RLIMIT_MEMLOCK fails.
    MCL_ONFAULT locks what is used, not the whole of each thread's stack (mlockall(2)).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = resource.RLIM_INFINITY
    if hard == unlimited and soft != unlimited:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (unlimited, hard))
        soft = unlimited
    if soft != unlimited and not _has_capability(CAP_IPC_LOCK):
        return "memory is not locked: RLIMIT_MEMLOCK is limited; set LimitMEMLOCK=infinity in the unit"
    if ctypes.CDLL(None, use_errno=True).mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0:
        return f"memory is not locked: {os.strerror(ctypes.get_errno())}"
    return None


def _has_capability(number: int) -> bool:
    with Path("/proc/self/status").open(encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False
