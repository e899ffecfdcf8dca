# SPDX-License-Identifier: Apache-2.0
"""UNIX sockets on which hostd itself listens: for `status`, and for [[serve]]."""

from __future__ import annotations

import errno
import grp
import os
import socket
from pathlib import Path

GROUP = "netrng"


def listen_unix(path: str, backlog: int) -> socket.socket:
    """A listening, non-blocking socket that nobody but its owner and the group may connect to, at any time.

    What a daemon that was killed has left behind at ``path`` is replaced; what another program listens on is
    not.  Raises OSError.
    """
    directory = Path(path).parent
    if not directory.is_dir():
        directory.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700)
    if Path(path).is_socket():
        if _is_in_use(path):
            raise OSError(errno.EADDRINUSE, "another program listens there", path)
        unlink(path)
    elif os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "it is there and is no socket", path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        mask = os.umask(0o117)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
        _give_to_group(path)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def unlink(path: str) -> None:
    """Whether it is there or not."""
    Path(path).unlink(missing_ok=True)


def _is_in_use(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) != errno.ECONNREFUSED


def _give_to_group(path: str) -> None:
    try:
        group = grp.getgrnam(GROUP).gr_gid
        if Path(path).stat().st_gid != group:
            os.chown(path, -1, group)
    except (KeyError, OSError):
        return  # no such group, or an unprivileged daemon: the socket is its user's alone
