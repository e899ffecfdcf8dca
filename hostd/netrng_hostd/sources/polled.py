# SPDX-License-Identifier: Apache-2.0
"""Reading from what poll() knows: a FIFO, a file, the kernel's PRNG."""

from __future__ import annotations

import os
import select

from netrng_hostd.sources.failure import SourceFailure

POLL_S = 0.2  # a read waits no longer, so that its thread can be stopped


def read_polled(fd: int, view: memoryview, path: str) -> int | None:
    """Fills at most len(view) bytes from the non-blocking ``fd``, and says how many.

    0 at the end of input; None when nothing has come within POLL_S.  Raises SourceFailure; ``path`` is the
    name in it.
    """
    count = _read(fd, view, path)
    if count is not None:
        return count
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return _read(fd, view, path) if poll.poll(POLL_S * 1000) else None


def _read(fd: int, view: memoryview, path: str) -> int | None:
    try:
        return os.readv(fd, [view])
    except BlockingIOError:
        return None
    except OSError as error:
        raise SourceFailure.of(error, "read", path) from None
