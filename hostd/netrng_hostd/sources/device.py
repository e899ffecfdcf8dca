# SPDX-License-Identifier: Apache-2.0
"""A character device that a hardware RNG's driver offers, /dev/hwrng by default."""

from __future__ import annotations

import os
import time

from netrng_hostd.sources.failure import SourceFailure
from netrng_hostd.sources.identity import kernel_name, refuse_reason, refuse_status

EMPTY_S = 0.05


class DeviceSource:
    """Blocking reads: /dev/hwrng has no poll, and read(n) returns when all n bytes are there.

    drivers/char/hw_random/core.c, rng_dev_read().  Hence the reader's small reads and its own thread.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def open(self) -> None:
        # Before opening, because a FIFO without a writer would never open.
        self._refuse(refuse_reason(self._path, "device"))
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            raise SourceFailure.of(error, "open", self._path) from None
        try:
            # And what was opened, whatever the path is by now.
            self._refuse(refuse_status(os.fstat(self._fd), self._path, "device"))
        except OSError as error:
            self.close()
            raise SourceFailure.of(error, "examine", self._path) from None
        except SourceFailure:
            self.close()
            raise

    def _refuse(self, reason: str | None) -> None:
        if reason is not None:
            raise SourceFailure("error", reason)

    def read_into(self, view: memoryview) -> int:
        try:
            count = os.readv(self._fd, [view])
        except BlockingIOError:
            time.sleep(EMPTY_S)  # a driver that has no bytes and does not wait for them
            return 0
        except OSError as error:
            raise SourceFailure.of(error, "read", self._path) from None
        if count == 0:
            raise SourceFailure("error", f"cannot read {self._path}: end of input")
        return count

    def kernel_name(self) -> str | None:
        return kernel_name(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
