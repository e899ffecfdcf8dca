# SPDX-License-Identifier: Apache-2.0
"""Tells the service manager how the daemon is: sd_notify(3), which is one datagram."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> bool:
    """Sends lines like "READY=1" or "STATUS=…"; False where no service manager listens.

    Never raises and never waits: a manager that cannot keep up misses a message, not we a sample.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    flags = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        with socket.socket(socket.AF_UNIX, flags) as sock:
            sock.sendto(state.encode("utf-8", "replace"), address)
    except (OSError, ValueError):
        return False
    return True
