# SPDX-License-Identifier: Apache-2.0
"""A character device that a hardware RNG's driver offers, /dev/hwrng by default."""

from __future__ import annotations

import os
import time

from netrng_hostd.sources.failure import SourceFailure
from netrng_hostd.sources.identity import (
    fd_is_hwrng,
    kernel_name,
    no_name,
    refuse_reason,
    refuse_status,
    wrong_name,
)

EMPTY_S = 0.05

# What the kernel has read of one RNG and not given out yet, it gives out after a change to another:
# drivers/char/hw_random/core.c, rng_buffer, of max(32, SMP_CACHE_BYTES) bytes; 256 at most (s390).
LEFT_OVER = 256


class DeviceSource:
    """Blocking reads: /dev/hwrng has no poll, and read(n) returns when all n bytes are there.

    drivers/char/hw_random/core.c, rng_dev_read().  Hence the reader's small reads and its own thread.

    With a required ``rng_current`` the kernel must have the RNG of that name behind /dev/hwrng when it is
    opened and after each read, before the bytes are used.  A change to another one and back again during a
    single read is not seen.
    """

    def __init__(self, path: str, rng_current: str = "") -> None:
        self._path = path
        self._required = rng_current
        self._left_over = 0  # bytes at the beginning that may be another RNG's
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
            if self._required:
                self._refuse(None if fd_is_hwrng(self._fd) else no_name(self._path))
                self._require_name()
                self._left_over = LEFT_OVER
        except OSError as error:
            self.close()
            raise SourceFailure.of(error, "examine", self._path) from None
        except SourceFailure:
            self.close()
            raise

    def _refuse(self, reason: str | None) -> None:
        if reason is not None:
            raise SourceFailure("error", reason)

    def _require_name(self) -> None:
        wrong = wrong_name(self._path, self._required, self.kernel_name())
        if wrong is not None:
            raise SourceFailure("absent", wrong)

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
        return self._of_required(view, count) if self._required else count

    def _of_required(self, view: memoryview, count: int) -> int:
        """How many of the ``count`` bytes just read may be used: all or none, and none is left then."""
        try:
            self._require_name()
        except SourceFailure:
            view[:] = bytes(len(view))
            raise
        if self._left_over > 0:
            self._left_over -= count
            view[:] = bytes(len(view))
            return 0
        return count

    def kernel_name(self) -> str | None:
        return kernel_name(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
