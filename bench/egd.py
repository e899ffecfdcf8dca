# SPDX-License-Identifier: Apache-2.0
"""`make bench-egd`: how fast EGD is spoken, beside plain servers.

Exit 1 if, with 16 clients that have 8 requests on their way each, the codec is slower than the server that
anybody would write, which asks the kernel for each request's bytes.

All servers are up all the time, with their clients, and idle but one: in each round each serves for a fifth
of a second, in turns, so that what else the machine does meets all alike.  The rates' quotients are taken
round by round.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.edge.rig import ENVIRONMENT, wait_for

from bench.egd_clients import Clients
from bench.egd_servers import READY
from bench.fleet import BenchError
from bench.hostd import Hostd, folder
from bench.line import Line, command

BARE, SCRATCH, CODEC, SERVER, DAEMON = "bare", "scratch", "codec", "server", "daemon"
SETTINGS = {"16x8": (16, 8), "16x1": (16, 1), "4x8": (4, 8), "1x8": (1, 8), "4x1": (4, 1), "1x1": (1, 1)}
PROMISED = "16x8"  # what the codec is judged by
ROUNDS, FEWER_ROUNDS = 61, 15
TURN_S = 0.2
WARM_S = 3.0  # until the daemon knows its source's rate, its samples are small
MB = 1_000_000
_DAEMON = """sample_size = 65536
[reservoir]
size = "4MiB"
[libvirt]
uris = []
[[source]]
name = "fast"
kind = "prng"
path = "/dev/urandom"
[[serve]]
name = "bench"
path = "{path}"
"""


class Turn(NamedTuple):
    """What one server did for its clients: bytes per second, and its CPU time for a megabyte in seconds."""

    rate: float
    cpu_s: float


Round = Mapping[str, Turn]


def lines(names: list[str]) -> Iterator[Line]:
    """Those of the settings so named."""
    with folder() as place, servers(place) as pids:
        for name in names:
            clients, requests = SETTINGS[name]
            count = ROUNDS if name == PROMISED else FEWER_ROUNDS
            rounds = measured(place, pids, clients, requests, count)
            who = f"{clients} client{'s' if clients > 1 else ''}"
            yield from judge(f"{who}, {requests} on their way", rounds, name == PROMISED)


def measured(
    place: Path, pids: Mapping[str, int], clients: int, requests: int, count: int
) -> list[dict[str, Turn]]:
    """So many rounds, of the servers in `pids`."""
    with contextlib.ExitStack() as stack:
        askers = {
            server: stack.enter_context(Clients(_socket(place, server), clients, requests)) for server in pids
        }
        for asker in askers.values():
            asker.take(TURN_S)
        return [{server: turn(askers[server], pids[server]) for server in pids} for _ in range(count)]


def judge(what: str, rounds: Sequence[Round], promised: bool) -> Iterator[Line]:
    """A line for each server; the codec is promised to be as fast as the scratch server."""
    for server in rounds[0]:
        rate = statistics.median(one[server].rate for one in rounds)
        cpu_s = statistics.median(one[server].cpu_s for one in rounds)
        ratio = statistics.median(one[server].rate / one[SCRATCH].rate for one in rounds)
        judged = promised and server == CODEC
        yield Line(
            f"{what}: {server}, {rate / MB:.1f} MB/s, {cpu_s * 1000:.1f} CPU ms per MB",
            f"{ratio:.2f} of {SCRATCH}",
            "at least 1.00" if judged else "for information",
            ratio >= 1 or not judged,
        )


def turn(clients: Clients, pid: int) -> Turn:
    """They take what they get for a while."""
    begun_s, begun = _cpu_s(pid), time.monotonic()
    rate = clients.take(TURN_S)
    n_bytes = rate * (time.monotonic() - begun)
    return Turn(rate, (_cpu_s(pid) - begun_s) / max(1, n_bytes) * MB)


@contextlib.contextmanager
def servers(place: Path) -> Iterator[dict[str, int]]:
    """All of them, by name; their process ids."""
    with contextlib.ExitStack() as stack:
        pids = {}
        for name in (BARE, SCRATCH, CODEC, SERVER):
            pids[name] = stack.enter_context(running(name, _socket(place, name)))
        hostd = stack.enter_context(Hostd(place, _DAEMON.format(path=_socket(place, DAEMON)))).start()
        assert hostd.process is not None
        pids[DAEMON] = hostd.process.pid
        wait_for(lambda: "listening on" in hostd.log, "the daemon listens")
        with Clients(_socket(place, DAEMON), 1, 8) as clients:
            clients.take(WARM_S)
        yield pids


@contextlib.contextmanager
def running(name: str, path: str) -> Iterator[int]:
    """One of bench.egd_servers; its process id."""
    words = [sys.executable, "-m", "bench.egd_servers", name, path]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != READY:
                raise BenchError(f"{name} does not start")
            yield process.pid
        finally:
            process.kill()


def _socket(place: Path, server: str) -> str:
    return str(place / f"{server}.egd")


def _cpu_s(pid: int) -> float:
    """Of all threads, in seconds; not in the hundredths of other counters."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def main() -> int:
    return command("bench.egd", "How fast EGD is spoken.", SETTINGS, lines)


if __name__ == "__main__":
    sys.exit(main())
