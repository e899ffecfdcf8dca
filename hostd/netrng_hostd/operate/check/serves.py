# SPDX-License-Identifier: Apache-2.0
"""Whether each [[serve]] could make its socket, and who a quota is for.  No socket is connected to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from netrng_hostd.config import Config
from netrng_hostd.core.quota import SERVE, serve_id
from netrng_hostd.operate.check.finding import Finding, note, problem
from netrng_hostd.operate.status import DaemonStatus

SOCKETS = Path("/proc/net/unix")
_LISTENS = 0x10000  # __SO_ACCEPTCON, as net/unix/af_unix.c shows it in the fourth column


def check_serves(config: Config, daemon: DaemonStatus | None) -> Iterator[Finding]:
    """``daemon``: what the running one says, None if none runs."""
    names = {serve_id(serve.name) for serve in config.serves}
    for rule in config.quotas:
        for pattern in rule.match:
            if pattern.startswith(SERVE) and not any(fnmatchcase(name, pattern) for name in names):
                yield note(f"quota {rule.name}: {pattern!r} matches no [[serve]] of this configuration")
    rows = () if daemon is None else daemon.domains
    listening = {row.channel for row in rows if row.kind == "serve" and row.state == "listening"}
    for serve in config.serves:
        if serve.path not in listening:
            yield from _check_place(serve_id(serve.name), serve.path)


def _check_place(name: str, path: str) -> Iterator[Finding]:
    folder = Path(path).parent
    place = folder if folder.is_dir() else folder.parent  # hostd makes one folder, not two
    if not place.is_dir():
        yield problem(f"{name}: there is no folder {place} for {path}; make it, or set path")
    elif not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        yield problem(f"{name}: permission denied: {place}; run as root, or set path to a place of yours")
    elif Path(path).exists() and not Path(path).is_socket():
        yield problem(f"{name}: {path} is there and is no socket; remove it, or set path")
    elif _has_listener(path):
        yield problem(f"{name}: another program listens on {path}; find out which: ss -xlp | grep {path}")


def _has_listener(path: str) -> bool:
    try:
        lines = SOCKETS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()[1:]
    except OSError:
        return False
    columns = (line.split(maxsplit=7) for line in lines)
    return any(len(one) == 8 and one[7] == path and int(one[3], 16) & _LISTENS for one in columns)
