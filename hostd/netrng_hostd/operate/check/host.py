# SPDX-License-Identifier: Apache-2.0
"""The daemon's own needs: a place for its control socket, a group that may ask it, memory that stays."""

from __future__ import annotations

import grp
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from netrng_hostd.channels.listen import GROUP
from netrng_hostd.config import SYSTEM_CONTROL, Config
from netrng_hostd.operate.check.finding import Finding, note, problem
from netrng_hostd.operate.control import NoDaemon, ask
from netrng_hostd.operate.status import DaemonStatus, from_json

SWAPS = Path("/proc/swaps")
CONTROL_S = 2.0


def running_daemon(config: Config) -> DaemonStatus | None:
    """What the daemon that answers at the control socket says; None if none does."""
    try:
        return from_json(ask(config.control, timeout_s=CONTROL_S))
    except (NoDaemon, ValueError):
        return None


def check_host(config: Config, daemon_pid: int | None) -> Iterator[Finding]:
    """What a daemon with this configuration would meet."""
    if daemon_pid is not None:
        yield note(f"netrng-hostd is running (pid {daemon_pid}); a second one would be refused")
    else:
        yield from _check_control(config.control)
    if os.geteuid() == 0 and config.control == SYSTEM_CONTROL:
        try:
            grp.getgrnam(GROUP)
        except KeyError:
            yield note(
                f"there is no group {GROUP}, so only root can ask for the status; "
                f"make it: groupadd --system {GROUP}"
            )
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if limit != resource.RLIM_INFINITY and _swaps():
        yield note(
            f"this machine swaps, and a daemon started from here may lock only {limit} bytes of memory; "
            "start it by its systemd unit, or first: ulimit -l unlimited"
        )


def _check_control(path: str) -> Iterator[Finding]:
    directory = Path(path).parent
    above = directory.parent
    place = directory if directory.is_dir() else above
    if not place.is_dir():
        yield problem(f"control: there is no directory {place} for {path}; make it, or set control")
    elif not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        yield problem(f"control: permission denied: {place}; run as root, or set control to a place of yours")


def _swaps() -> bool:
    try:
        return len(SWAPS.read_text(encoding="ascii", errors="replace").splitlines()) > 1
    except OSError:
        return False
