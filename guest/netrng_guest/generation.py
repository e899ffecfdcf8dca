# SPDX-License-Identifier: Apache-2.0
"""Learning from the kernel that this VM is a copy: NEW_VMGENID=1 in a uevent of the vmgenid driver.

The kernel reseeds itself then (since Linux 5.18) and says so since 6.10; before that, and on hypervisors
without a generation ID, the host's fresh PROBE is what tells.
"""

import errno
import socket
from typing import Optional

NETLINK_KOBJECT_UEVENT = 15
KERNEL_GROUP = 1
NEW_GENERATION = b"NEW_VMGENID=1"


def open_uevents() -> Optional[socket.socket]:
    """A socket that hears the kernel's uevents, None where that is not permitted."""
    try:
        uevents = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            NETLINK_KOBJECT_UEVENT,
        )
    except OSError:
        return None
    try:
        uevents.bind((0, KERNEL_GROUP))
    except OSError:
        uevents.close()
        return None
    return uevents


def heard_new_generation(uevents: socket.socket) -> bool:
    """Reads all that has come; True if this VM was copied, or if uevents were lost and it may have been."""
    heard = False
    while True:
        try:
            message, sender = uevents.recvfrom(8192)
        except BlockingIOError:
            return heard
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                return heard
            heard = True  # the kernel dropped some
            continue
        if isinstance(sender, tuple) and sender[0] != 0:
            continue  # another program's, not the kernel's
        heard = heard or NEW_GENERATION in message.split(b"\0")
