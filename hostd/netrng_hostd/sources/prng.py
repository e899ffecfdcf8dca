# SPDX-License-Identifier: Apache-2.0
"""A pseudo-random stream, for trials without a hardware RNG.  Every status calls it `prng`."""

from __future__ import annotations

import os
import stat
import time

from netrng_hostd.sources.failure import SourceFailure
from netrng_hostd.sources.identity import kernel_name
from netrng_hostd.sources.polled import POLL_S, read_polled


class PrngSource:
    """/dev/urandom, or a FIFO or file that another program fills.

    At its end it is waited for: a FIFO's writer may return, and a file may grow.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._was_file = False

    def open(self) -> None:
        if self._was_file:
            raise SourceFailure("error", f"{self._path} is a file: read anew, its bytes would repeat")
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            raise SourceFailure.of(error, "open", self._path) from None
        self._was_file = stat.S_ISREG(os.fstat(self._fd).st_mode)

    def read_into(self, view: memoryview) -> int:
        count = read_polled(self._fd, view, self._path)
        if count == 0:
            time.sleep(POLL_S)  # a read at an end of input returns at once and for ever
        return count or 0

    def kernel_name(self) -> str | None:
        return kernel_name(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
