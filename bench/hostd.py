# SPDX-License-Identifier: Apache-2.0
"""The real daemon of this checkout, set up for one run of the benchmark."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from tests.edge import rig

from bench.fleet import BenchError, Fleet, Group
from netrng_hostd.core.domain import SEED_SIZE

Say = Callable[[str], None]
SMALL_RESERVOIR = '[reservoir]\nsize = "16KiB"\nseed_reserve = "2KiB"\n'  # the reserve is full again soon
START_S = 30.0
STOP_S = 60.0  # thousands of channels say goodbye
STEADY_S = 4.0  # the sample size is that of a rate which is a mean of ten seconds
SETTLE_S = 30.0


class Hostd(rig.Hostd):
    """As users run it, without Python's development mode."""

    python = (sys.executable,)

    def start(self, ready: bool = True, **environment: str) -> Hostd:
        """Raises BenchError when it does not start."""
        super().start(ready=False, **environment)
        end_s = time.monotonic() + START_S
        while "daemon: ready" not in self.log:
            if self.process is None or self.process.poll() is not None or time.monotonic() > end_s:
                raise BenchError(f"netrng-hostd does not start: {self.log.strip()}")
            time.sleep(0.01)
        return self

    def status(self) -> dict[str, Any]:
        """Raises BenchError when it does not answer."""
        try:
            return super().status()
        except (OSError, ValueError):
            last = self.log.strip().rpartition("\n")[2]
            raise BenchError(f"netrng-hostd does not answer; its last words: {last}") from None

    @property
    def sample_size(self) -> int:
        """Bytes, as now in force."""
        status = self.status()
        return int(status.get("sample_size_effective") or status["sample_size"])

    def settle(self, say: Say) -> None:
        """Until the sample size stays as it is and the seed reserve is full, or half a minute is over.

        Says which of them is not so in the end.
        """
        say("waits until the sample size is steady and the seed reserve full")
        end_s = time.monotonic() + SETTLE_S
        size, since_s = 0, time.monotonic()
        while True:
            if (now := self.sample_size) != size:
                size, since_s = now, time.monotonic()
            stored = self.status()["reservoir"]
            full = stored["seed_stored"] + SEED_SIZE > stored["seed_reserve"]
            steady = time.monotonic() - since_s > STEADY_S
            if full and steady:
                return
            if time.monotonic() > end_s:
                break
            time.sleep(0.5)
        if not full:
            say(
                f"after {SETTLE_S:.0f} s the seed reserve holds {stored['seed_stored']} of "
                f"{stored['seed_reserve']} bytes; measures all the same"
            )
        if not steady:
            say(
                f"after {SETTLE_S:.0f} s the sample size, {size} bytes, is not steady; measures all the same"
            )

    def cpu_s(self) -> float:
        """Seconds of CPU time so far."""
        assert self.process is not None
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def __enter__(self) -> Hostd:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new one, removed afterwards; its path is short, for sockets."""
    with tempfile.TemporaryDirectory(prefix="netrng-bench-") as path:
        yield Path(path)


def config(place: Path, names: Sequence[str], source: str, kind: str = "prng", extra: str = "") -> str:
    """hostd.toml for the static sockets `names` in `place`; `extra` goes before all tables."""
    channels = "".join(f'[[channel]]\nname = "{name}"\npath = "{place / name}.sock"\n' for name in names)
    described = f'[[source]]\nname = "bench"\nkind = "{kind}"\npath = "{source}"\n'
    return extra + "[libvirt]\nuris = []\n" + described + channels


@contextlib.contextmanager
def serving(
    place: Path,
    groups: Sequence[Group],
    source: str,
    say: Say,
    kind: str = "prng",
    extra: str = SMALL_RESERVOIR,
) -> Iterator[tuple[Hostd, Fleet]]:
    """hostd and the ends of `groups`, all that last are open."""
    with (
        Fleet(place, groups) as fleet,
        Hostd(place, config(place, fleet.names, source, kind, extra)) as hostd,
    ):
        hostd.start()
        fleet.wait("open", say)
        yield hostd, fleet
