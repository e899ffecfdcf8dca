# SPDX-License-Identifier: Apache-2.0
"""What the tests of this folder share: netrng-hostd in dom0, a source that can be looked up, and domUs."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from bed.inside import Job
from bed.xen.domu import URI, Dom0, DomU
from tests.edge.rig import Hostd, fed_fifo
from tests.streams import stream
from tests.vm.diary import Diary, diary
from tests.vm.rig import SMALL
from tests.xen.domus import domus

PATIENCE_S = 180.0
RESULTS = Path("/run/results")
# Bytes per second, and few: a system call in an emulated PV domain takes a tenth of a millisecond.
SOURCE = 1000
LIMIT, BURST = 150, 256  # of the second domU; by its weight alone it would get twice as much
QUOTAS = f"""
[[quota]]
name = "first"
match = ["first"]
reservation = "300B/s"
weight = 300

[[quota]]
name = "second"
match = ["second"]
weight = 300
limit = "{LIMIT}B/s"
burst = "{BURST}B"
"""

class Rate(NamedTuple):
    """What one domain acknowledged, and all were sent, between two answers of the daemon."""

    acked: int
    sent: dict[str, int]
    seconds: float

    @property
    def per_second(self) -> float:
        return self.acked / self.seconds


class Story:
    """A context manager that starts the daemon; the domUs are up, and their agents wait for it."""

    def __init__(self, folder: Path) -> None:
        self.data = stream(3_000_000)
        self.dom0 = Dom0()
        self.first, self.second, self.third = domus(self.dom0)
        self.diaries: list[dict[str, Diary]] = []  # of each boot, by name
        self.flood: Job | None = None
        self.in_peace = 0.0  # bytes per second of the first domU
        self._folder = folder
        self._ends = contextlib.ExitStack()
        source = f'[[source]]\nname = "test"\nkind = "prng"\npath = "{folder}/fifo"\n'
        self.hostd = Hostd(folder, f'[libvirt]\nuris = ["{URI}"]\n{source}{SMALL}{QUOTAS}')
        # Python's development mode would cost an emulated computer some seconds at every start.
        self.hostd.python = (sys.executable,)

    def __enter__(self) -> Story:
        try:
            self._ends.enter_context(fed_fifo(self._folder / "fifo", self.data, rate=SOURCE, turn_s=0.2))
            self._ends.enter_context(self.hostd)
            for domu in (self.first, self.second, self.third):
                self._ends.callback(domu.jobs.close)
            self.start_hostd()
        except BaseException:
            self.bring_out()
            self._ends.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.bring_out()
        self._ends.close()

    def start_hostd(self) -> None:
        """Until it is ready; it is not asked as often as elsewhere, which would cost it half of its time."""
        before = self.hostd.log.count("daemon: ready")
        self.hostd.start(ready=False)
        end = time.monotonic() + PATIENCE_S
        while self.hostd.log.count("daemon: ready") == before:
            assert time.monotonic() < end, f"not ready: {self.hostd.log}"
            time.sleep(0.3)

    def wait(self, domu: DomU, what: str, seen: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status of the domU in which ``what`` is ``seen``."""
        end = time.monotonic() + PATIENCE_S
        while True:
            domain = self.hostd.domain(domu.name)
            if domain["state"] and seen(domain):
                return domain
            if time.monotonic() > end:
                log = f"{self.hostd.log[-2000:]}\n{domu.tail()}"
                raise AssertionError(f"not seen: {what} of {domu.name}, but {domain}\n{log}")
            time.sleep(0.3)

    def wait_until_open(self, domu: DomU, after: float = 0) -> dict[str, Any]:
        """A session of it that began later than the Unix time ``after``."""
        return self.wait(domu, "a session", lambda one: one["state"] == "open" and one["since"] > after)

    def rate(self, domu: DomU, n_bytes: int) -> Rate:
        """Waits until it acknowledged so many more."""
        before = self.hostd.status()
        known = {domain["name"]: domain for domain in before["domains"]}
        target = known[domu.name]["bytes_acked"] + n_bytes
        self.wait(domu, f"{n_bytes} bytes acknowledged", lambda one: one["bytes_acked"] >= target)
        after = self.hostd.status()
        now = {domain["name"]: domain for domain in after["domains"]}
        sent = {name: now[name]["bytes_sent"] - known[name]["bytes_sent"] for name in known}
        acked = now[domu.name]["bytes_acked"] - known[domu.name]["bytes_acked"]
        return Rate(acked, sent, after["time"] - before["time"])

    def keep(self) -> None:
        """What happened in the first two up to now, before their memory goes."""
        both = (self.first, self.second)
        with ThreadPoolExecutor(len(both)) as pool:
            self.diaries.append(dict(zip((domu.name for domu in both), pool.map(diary, both))))

    def bring_out(self) -> None:
        """The logs, for whoever wants to know what happened."""
        consoles = Path("/var/log/xen/console").glob("guest-*.log")
        for log in (self.hostd.log_path, *consoles):
            if log.exists():
                shutil.copy(log, RESULTS)
