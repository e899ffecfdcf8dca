# SPDX-License-Identifier: Apache-2.0
"""A pseudo-random stream, for trials without a hardware RNG.  Every status calls it `prng`."""

from __future__ import annotations

import os
import select
import stat
import time

from netrng_hostd.sources.failure import SourceFailure
from netrng_hostd.sources.identity import kernel_name

POLL_S = 0.2


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
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(POLL_S * 1000):
            return 0
        try:
            count = os.readv(self._fd, [view])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise SourceFailure.of(error, "read", self._path) from None
        if count == 0:
            time.sleep(POLL_S)  # poll() says "readable" at an end of input, at once and for ever
        return count

    def kernel_name(self) -> str | None:
        return kernel_name(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
