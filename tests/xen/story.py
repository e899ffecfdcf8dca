# SPDX-License-Identifier: Apache-2.0
"""What the tests of this folder share: netrng-hostd in dom0, a source that can be looked up, and domUs."""

from __future__ import annotations

import contextlib
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

PATIENCE_S = 600.0
# Bytes per second, and few: a system call in an emulated PV domain takes a tenth of a millisecond.
SOURCE = 1000
LIMIT, BURST = 250, 256  # of the second domU; by its weight alone it would get more
QUOTAS = f"""
[[quota]]
name = "first"
match = ["first"]
weight = 300

[[quota]]
name = "second"
match = ["second"]
weight = 300
limit = "{LIMIT}B/s"
burst = "{BURST}B"
"""


def bytes_sent(status: dict[str, Any]) -> dict[str, int]:
    """By the domains' names, as the daemon tells them."""
    return {domain["name"]: domain["bytes_sent"] for domain in status["domains"]}


class Passed(NamedTuple):
    """What domains were sent between two answers of the daemon; in bytes, by name.

    Not what they acknowledged: an rngd takes 2,500 bytes at once, which is seconds' worth here.
    """

    sent: dict[str, int]
    seconds: float

    def rate(self, domu: DomU) -> float:
        """Bytes per second."""
        return self.sent[domu.name] / self.seconds


class Story:
    """A context manager that starts the daemon, see `wait_until_ready`; the domUs and their agents are up."""

    def __init__(self, folder: Path) -> None:
        self.data = stream(4000 * SOURCE)  # for longer than the bed lets the tests run
        self.dom0 = Dom0()
        self.first, self.second, self.third = domus(self.dom0)
        self.diaries: list[dict[str, Diary]] = []  # of each boot, by name
        self.flood: Job | None = None
        self.before: dict[str, Any] = {}  # the daemon's status when quotas were first looked at
        self.in_peace = 0.0  # bytes per second of the first domU, beside a third that asks
        self._ends = contextlib.ExitStack()
        self._fifo = folder / "fifo"
        source = f'[[source]]\nname = "test"\nkind = "prng"\npath = "{self._fifo}"\n'
        self.hostd = Hostd(folder, f'[libvirt]\nuris = ["{URI}"]\n{source}{SMALL}{QUOTAS}')
        # Python's development mode would cost an emulated computer some seconds at every start.
        self.hostd.python = (sys.executable,)

    def __enter__(self) -> Story:
        try:
            self._ends.enter_context(fed_fifo(self._fifo, self.data, rate=SOURCE, turn_s=0.2))
            self._ends.enter_context(self.hostd)
            for domu in (self.first, self.second, self.third):
                self._ends.callback(domu.jobs.close)
            self.hostd.start(ready=False)
        except BaseException:
            self._ends.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """The first true value of ``condition``, which is looked at seldom: it costs the daemon its time."""
        end = time.monotonic() + PATIENCE_S
        while not (value := condition()):
            assert time.monotonic() < end, f"not seen: {what}\n{self.hostd.log[-2000:]}"
            time.sleep(0.3)
        return value

    def wait_until_ready(self, starts: int = 1) -> None:
        """Until the daemon has been started so often."""
        self.until(lambda: self.hostd.log.count("daemon: ready") == starts, "netrng-hostd ready")

    def wait(self, domu: DomU, what: str, seen: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status of the domU in which ``what`` is ``seen``."""

        def domain() -> dict[str, Any] | None:
            status = self.hostd.domain(domu.name)
            return status if status["state"] and seen(status) else None

        found: dict[str, Any] = self.until(domain, f"{what} of {domu.name}")
        return found

    def wait_until_open(self, domu: DomU, after: float = 0) -> dict[str, Any]:
        """A session of it that began later than the Unix time ``after``."""
        return self.wait(domu, "a session", lambda one: one["state"] == "open" and one["since"] > after)

    def wait_for_bytes(self, domu: DomU, n_bytes: int) -> Passed:
        """Until it was sent so many more; what everybody was sent meanwhile."""
        before = self.hostd.status()
        target = bytes_sent(before)[domu.name] + n_bytes
        self.wait(domu, f"{n_bytes} bytes sent", lambda one: one["bytes_sent"] >= target)
        return self.passed_since(before)

    def passed_since(self, before: dict[str, Any]) -> Passed:
        """What everybody was sent since the daemon's status ``before``."""
        after = self.hostd.status()
        then, now = bytes_sent(before), bytes_sent(after)
        sent = {name: now[name] - then[name] for name in then if name in now}
        return Passed(sent, after["time"] - before["time"])

    def assert_limited(self, passed: Passed) -> None:
        """That the second domU got no more than it may; a second for what its answers may be apart."""
        most = BURST + LIMIT * (passed.seconds + 1) + self.before["sample_size"]
        assert passed.sent["second"] <= most

    def keep(self) -> None:
        """What happened in the first two up to now, before their memory goes."""
        both = (self.first, self.second)
        with ThreadPoolExecutor(len(both)) as pool:
            self.diaries.append(dict(zip((domu.name for domu in both), pool.map(diary, both))))
