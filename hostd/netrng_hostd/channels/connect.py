# SPDX-License-Identifier: Apache-2.0
"""Connects to a channel's UNIX socket, on which the domain's QEMU listens, or libvirt before that starts."""

from __future__ import annotations

import errno
import socket
import struct

import psutil

from netrng_guest import wire
from netrng_hostd.core.spelling import printable

# What may be parked here, in bytes: a guest has no more than a window on its way.  With room for one sample
# alone the channel would idle from its end until we wake to send the next.
SEND_BUFFER = wire.MAX_WINDOW
# QEMU, which Proxmox calls kvm and Debian's Xen xen-qemu-system-i386; or libvirt, which listens for a domain
# that starts before its QEMU does.
_HYPERVISORS = ("qemu", "kvm", "xen-qemu", "libvirtd", "virtqemud")


class ChannelUnavailable(Exception):
    """A channel cannot be connected now; the text says why and what to do."""


def connect_unix(path: str) -> socket.socket:
    """A connected, non-blocking socket.  Raises ChannelUnavailable.

    connect() on a UNIX socket never waits when it is non-blocking; asyncio's sock_connect() would take the
    EAGAIN of a full backlog for a connection under way (unix(7), ERRORS).
    """
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise ChannelUnavailable(_reason(error, path)) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise ChannelUnavailable(_reason(error, path)) from None
    return sock


def is_hypervisor(listener: str) -> bool:
    """Whether who listens (as `listener_of` names it) is a QEMU, or libvirt for one."""
    return listener.startswith(_HYPERVISORS)


def listener_of(sock: socket.socket) -> str:
    """Who listens at the other end, as "qemu-system-x86 (pid 7)"; "" where that cannot be told.

    SO_PEERCRED names the process that called listen(): unix(7).
    """
    try:
        # A socket pair has no name: the other end is our own, before a stream.
        return peer_of(sock) if sock.getpeername() else ""
    except OSError:
        return ""  # it has gone


def peer_of(sock: socket.socket) -> str:
    """Who is at the other end, as "stunnel4 (pid 7)"; "" where that cannot be told."""
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _, _ = struct.unpack("3i", packed)
        return f"{printable(psutil.Process(pid).name())} (pid {pid})"  # it chose its name itself
    except (OSError, ValueError, struct.error, psutil.Error):
        return ""  # another pid namespace, or it has ended


def _reason(error: OSError, path: str) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"no socket at {path}"
    if error.errno == errno.ECONNREFUSED:
        return f"nobody listens on {path}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"permission denied: {path}: run netrng-hostd as root, or as the user whose VM it is"
    if error.errno == errno.EAGAIN:
        return f"another program holds {path} and more wait for it: find out who with: ss -xp | grep {path}"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"cannot connect to {path}: {error.strerror}: raise LimitNOFILE of netrng-hostd"
    return f"cannot connect to {path}: {error.strerror or error}"
