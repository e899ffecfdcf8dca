# SPDX-License-Identifier: Apache-2.0
"""The ends of ends.py, as the benchmark sees them: started, asked what they have, ended."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.edge.rig import ENVIRONMENT

SPARE_FILES = 64


class BenchError(Exception):
    """The benchmark cannot be run so; the text says why, in one line."""


@dataclass(frozen=True)
class Group:
    """``count`` ends of one kind (see ends.py), named ``name``-0 and so on.

    ``rate``: bytes per second that a modest one asks for. ``after_s``: seconds that a vanishing one stays.
    ``recorded``: each arrival is kept. ``waits``: it asks for nothing before ``Fleet.begin``.
    """

    name: str
    count: int
    kind: str = "greedy"
    rate: int = 0
    after_s: float = 0.0
    recorded: bool = False
    waits: bool = False

    @property
    def lasts(self) -> bool:
        """Whether its sessions last."""
        return self.kind in ("greedy", "modest")

    @property
    def names(self) -> list[str]:
        return [f"{self.name}-{number}" for number in range(self.count)]


class Mark(NamedTuple):
    """What each end had taken at an instant, in bytes; by the monotonic clock."""

    ns: int
    taken: dict[str, int]

    def of(self, names: Sequence[str]) -> list[int]:
        return [self.taken[name] for name in names]


class Fleet:
    """The process of all ends of ``groups``, which listen in ``folder``; to be used with `with`.

    Raises BenchError when this process may not have so many files open.
    """

    def __init__(self, folder: Path, groups: Sequence[Group]) -> None:
        self.folder = folder
        self.groups = tuple(groups)
        self.names = [name for group in groups for name in group.names]
        allow_files(2 * len(self.names) + SPARE_FILES)  # a listener and a connection for each
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.ends"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then ends this
        )  # fmt: skip
        described = [{**vars(group), "names": group.names} for group in groups]
        try:
            self._say({"folder": str(folder), "groups": described})
        except BaseException:
            self.close()
            raise

    def begin(self, names: Sequence[str]) -> None:
        """Ends of groups that wait begin to ask."""
        self._say({"command": "begin", "names": names})

    def mark(self) -> Mark:
        answer = self._say({"command": "mark"})
        return Mark(answer["ns"], answer["taken"])

    def series(self, name: str) -> tuple[list[int], list[int]]:
        """Arrivals of an end that is recorded: instants (ns), sizes (bytes)."""
        times_ns, sizes = self._say({"command": "series", "name": name})
        return times_ns, sizes

    def wait(self, key: str, say: Callable[[str], None], deadline_s: float = 120.0) -> None:
        """Until all that last are "open" or "seeded".  Raises BenchError after the deadline."""
        names = [
            name
            for group in self.groups
            if group.lasts and not (group.waits and key == "seeded")
            for name in group.names
        ]
        began, told = time.monotonic(), time.monotonic()
        while (found := self._say({"command": "progress", "names": names})[key]) < len(names):
            now = time.monotonic()
            if now - began > deadline_s:
                raise BenchError(f"{found} of {len(names)} ends are {key} after {deadline_s:.0f} s")
            if now - told > 5:
                told = now
                say(f"{found} of {len(names)} ends are {key}")
            time.sleep(0.1)

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _say(self, command: dict[str, Any]) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise BenchError("the process of the protocol ends has ended") from None

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def allow_files(needed: int) -> None:
    """Raises this process's limit of open files, for its children, as far as it may.  Raises BenchError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))
    except (ValueError, OSError):
        raise BenchError(f"{needed} open files are needed and {hard} allowed: raise `ulimit -n`") from None
