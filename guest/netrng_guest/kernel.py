# SPDX-License-Identifier: Apache-2.0
"""The guest kernel's random pool: random(4), ioctls of linux/random.h.

RNDADDENTROPY mixes bytes in and credits them; RNDRESEEDCRNG (since Linux 4.14) makes the next read draw on
them at once, where it would otherwise wait up to a minute.  Both need CAP_SYS_ADMIN; without it the bytes are
written to the pool all the same and credited with nothing.
"""

import errno
import fcntl
import os
import struct
from typing import Optional

from .wire import wipe

RNDADDENTROPY = 0x40085203  # struct rand_pool_info: int entropy_count (bits), int buf_size (bytes), buf
RNDRESEEDCRNG = 0x5207
DEVICE = "/dev/urandom"
DENIED = (errno.EPERM, errno.EACCES)
MAX_CREDIT = 512  # bytes in one call


class KernelPool:
    """Where this VM's kernel takes random bytes.  ``denied`` holds why they were not credited, if so."""

    def __init__(self, device: str = DEVICE) -> None:
        self._device = device
        self._fd: Optional[int] = None
        self.denied = ""
        self.credited = 0  # bytes

    def credit(self, data: bytearray) -> None:
        """Gives all of ``data`` to the kernel, eight bits per byte; the caller overwrites ``data``.

        Raises OSError when the device cannot be opened or takes nothing.
        """
        fd = self._open()
        for start in range(0, len(data), MAX_CREDIT):
            piece = data[start : start + MAX_CREDIT]
            pool_info = bytearray(struct.pack("=ii", len(piece) * 8, len(piece)))
            pool_info += piece
            try:
                fcntl.ioctl(fd, RNDADDENTROPY, pool_info, True)
                self.credited += len(piece)
                self.denied = ""
            except OSError as error:
                self.denied = "RNDADDENTROPY: {}".format(error.strerror)
                if error.errno not in DENIED and error.errno != errno.ENOTTY:
                    raise
                os.write(fd, piece)
            finally:
                wipe(pool_info)
                wipe(piece)

    def reseed(self) -> bool:
        """Makes the kernel's generator use what it was given, now; False where it cannot be told to."""
        try:
            fcntl.ioctl(self._open(), RNDRESEEDCRNG)
        except OSError:
            return False  # before Linux 4.14, or not permitted: credit() has said so
        return True

    def close(self) -> None:
        """Closes the device; it is opened again when needed."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        if self._fd is None:
            self._fd = os.open(self._device, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        return self._fd
