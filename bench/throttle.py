# SPDX-License-Identifier: Apache-2.0
"""A slow source: a FIFO that a process of its own fills evenly, for `kind = "prng"`.

`python -m bench.throttle PATH RATE` writes until its standard input ends, then says on standard output how
many bytes it wrote, how many it threw away and how late its latest turn was, while the machine did other
things.  What is due is counted from the beginning, so a late turn is made up for by the next and the rate is
exact over any time.  Like a device's, what nobody reads in time is gone: the FIFO holds a page, and what does
not fit is thrown away and not made up for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.edge.rig import ENVIRONMENT, F_SETPIPE_SZ

from netrng_hostd.core.bucket import NS_PER_S

TURN_NS = 5_000_000
PAGE = 4096


@contextlib.contextmanager
def throttled(path: Path, rate: int) -> Iterator[dict[str, int]]:
    """A FIFO at ``path`` that gives ``rate`` bytes per second; what `fill` returned, afterwards."""
    os.mkfifo(path)
    told: dict[str, int] = {}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.throttle", str(path), str(rate)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT,
        start_new_session=True,  # Ctrl-C is for the benchmark, which then ends this
    )  # fmt: skip
    try:
        yield told
    finally:
        output, _ = process.communicate()
        if process.returncode == 0:
            told.update(json.loads(output))


def fill(fd: int, rate: int, stop: int) -> dict[str, int]:
    """Writes to ``fd`` until ``stop`` is readable: bytes "written" and "thrown_away", and "late_ns"."""
    written = thrown_away = turns = late_ns = 0
    began_ns = time.monotonic_ns()
    while True:
        turns += 1
        wait_ns = began_ns + turns * TURN_NS - time.monotonic_ns()
        if select.select([stop], [], [], max(0, wait_ns) / NS_PER_S)[0]:
            return {"written": written, "thrown_away": thrown_away, "late_ns": late_ns}
        spent_ns = time.monotonic_ns() - began_ns
        late_ns = max(late_ns, spent_ns - turns * TURN_NS)
        turns = max(turns, spent_ns // TURN_NS)
        due = spent_ns * rate // NS_PER_S - written - thrown_away
        while due > 0:
            # A write of up to a page (PIPE_BUF) is whole or refused: pipe(7).
            piece = min(due, PAGE)
            try:
                written += os.write(fd, os.urandom(piece))
            except BlockingIOError:
                thrown_away += piece
            due -= piece


def main() -> int:
    path, rate = sys.argv[1], int(sys.argv[2])
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # its own reader, so that no write ever sees EPIPE
    fcntl.fcntl(fd, F_SETPIPE_SZ, PAGE)
    print(json.dumps(fill(fd, rate, stop=0)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
