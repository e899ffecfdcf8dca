# SPDX-License-Identifier: Apache-2.0
"""Names that differ, made without ever waiting.

A nonce tells one session from another; it is no secret.  os.urandom, secrets and uuid4 wait for a seeded
kernel, which is what this agent is there to bring about.
"""

import hashlib
import os
import struct
import time

from .wire import NONCE_SIZE

BOOT_ID = "/proc/sys/kernel/random/boot_id"
_count = 0


def new_nonce() -> bytes:
    """Eight bytes unlike any others: from the kernel if it is seeded, else a digest of this moment."""
    try:
        return os.getrandom(NONCE_SIZE, os.GRND_NONBLOCK)
    except (AttributeError, OSError):  # no such call (libc or kernel before 2014), or not seeded yet
        return _nonce_of_this_moment()


def _nonce_of_this_moment() -> bytes:
    global _count
    _count += 1
    try:
        with open(BOOT_ID, "rb") as file:
            boot_id = file.read(64)
    except OSError:
        boot_id = b""
    moment = struct.pack(">dQQQ", time.time(), int(time.monotonic() * 1e9), os.getpid(), _count)
    # SHA-256, because a Python in FIPS mode raises on most others.
    return hashlib.sha256(boot_id + moment).digest()[:NONCE_SIZE]
