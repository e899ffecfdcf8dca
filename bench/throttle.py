# SPDX-License-Identifier: Apache-2.0
"""A slow source: a FIFO that a process of its own fills evenly, for `kind = "prng"`.

`python -m bench.throttle PATH RATE` writes until its standard input ends, then says on standard output how
many bytes it wrote, how many it threw away and which turns were late, while the machine did other things.
What is due is counted from the beginning, so a late turn is made up for by the next and the rate is
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
from dataclasses import dataclass, field
from pathlib import Path

from tests.edge.rig import ENVIRONMENT, F_SETPIPE_SZ

from netrng_hostd.core.bucket import NS_PER_S

TURN_NS = 5_000_000
RECOVERED_NS = 200_000_000  # after a late turn: what it held up has arrived
PAGE = 4096


@dataclass
class Throttled:
    """What came of it, in bytes; and when turns were late, by how many nanoseconds.  Known afterwards."""

    written: int = 0
    thrown_away: int = 0
    late: list[tuple[int, int]] = field(default_factory=list)

    def on_time(self, begun_ns: int, ended_ns: int) -> list[tuple[int, int]]:
        """The parts of that time in which it was not late, nor had just been."""
        parts = []
        for now_ns, late_ns in [*self.late, (ended_ns, 0)]:
            until_ns = min(now_ns - late_ns, ended_ns)
            if begun_ns < until_ns:
                parts.append((begun_ns, until_ns))
            begun_ns = max(begun_ns, now_ns + RECOVERED_NS)
        return parts


@contextlib.contextmanager
def throttled(path: Path, rate: int) -> Iterator[Throttled]:
    """A FIFO at ``path`` that gives ``rate`` bytes per second."""
    os.mkfifo(path)
    told = Throttled()
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
            vars(told).update(json.loads(output))


def fill(fd: int, rate: int, stop: int) -> Throttled:
    """Writes to ``fd`` until ``stop`` is readable."""
    done = Throttled()
    began_ns, turns = time.monotonic_ns(), 0
    while True:
        turns += 1
        wait_ns = began_ns + turns * TURN_NS - time.monotonic_ns()
        if select.select([stop], [], [], max(0, wait_ns) / NS_PER_S)[0]:
            return done
        now_ns = time.monotonic_ns()
        late_ns = now_ns - began_ns - turns * TURN_NS
        if late_ns > TURN_NS:
            done.late.append((now_ns, late_ns))
            turns += late_ns // TURN_NS
        due = (now_ns - began_ns) * rate // NS_PER_S - done.written - done.thrown_away
        while due > 0:
            # A write of up to a page (PIPE_BUF) is whole or refused: pipe(7).
            piece = min(due, PAGE)
            try:
                done.written += os.write(fd, os.urandom(piece))
            except BlockingIOError:
                done.thrown_away += piece
            due -= piece


def main() -> int:
    path, rate = sys.argv[1], int(sys.argv[2])
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # its own reader, so that no write ever sees EPIPE
    fcntl.fcntl(fd, F_SETPIPE_SZ, PAGE)
    print(json.dumps(vars(fill(fd, rate, stop=0))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
