# SPDX-License-Identifier: Apache-2.0
"""What runs bed/guest/jobs, seen from its host: scripts in it, its files, waiting for what happens there."""

from __future__ import annotations

import base64
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bed.jobs import Jobs, Result
from bed.packages import BedError

BOOT_S = 90.0
PATIENCE = 3  # deadlines are for a machine at rest; a busy one takes its time, and nobody loses by waiting
_T = TypeVar("_T")


class BedTimeout(BedError):
    """What was waited for did not come; the text ends with the guest's console."""


class Job:
    """A script that runs in a guest."""

    def __init__(self, inside: Inside, script: str) -> None:
        self._inside = inside
        self._script = script
        self._name = inside.jobs.submit(script)
        self._result: Result | None = None

    def result(self, deadline_s: float = 30.0) -> Result:
        """Waits for its end.  BedTimeout after `deadline_s` of a machine at rest; the job goes on then."""
        result = self.poll(PATIENCE * deadline_s)
        if result is None:
            what = self._script.strip()[:500]
            text = f"{self._inside.name}: no answer within {deadline_s:.0f} s from: {what}"
            raise BedTimeout(f"{text}\n{self._inside.tail()}")
        return result

    def poll(self, wait_s: float) -> Result | None:
        """What it did, if that is known within `wait_s`."""
        if self._result is None:
            answer = self._inside.jobs.answer(self._name, self._script, wait_s)
            if answer is not None:
                self._result = Result(answer[0], answer[1].decode(errors="backslashreplace"))
        return self._result

    def output(self) -> str:
        """What it has written so far."""
        return self._inside.run(f"cat /run/jobs/{self._name}.out").out

    def kill(self, signal: str = "TERM") -> None:
        """Sends a signal to everything that it started (its process group)."""
        self._inside.run(f"kill -{signal} -$(cat /run/jobs/{self._name}.pid)")


class Inside(ABC):
    """A machine of the bed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.jobs = Jobs(self.line)

    @abstractmethod
    def line(self) -> Path | None:
        """Where its job line's socket is now, None while there is none."""

    @property
    @abstractmethod
    def console(self) -> Path:
        """The file that its console writes to."""

    def wait_up(self, deadline_s: float = BOOT_S) -> None:
        """Waits until it runs commands."""
        self.run("true", deadline_s)

    def run(self, script: str, deadline_s: float = 30.0) -> Result:
        """Runs a shell script in the guest as root: its exit code and output.

        BedTimeout, with the console's end, when there is no answer within `deadline_s`.  A script that
        resets the guest has no answer and would be run again after the boot: use `reset`, or `spawn` it.
        """
        return self.spawn(script).result(deadline_s)

    def check(self, script: str, deadline_s: float = 30.0) -> str:
        """As `run`, but only the output; BedError when the exit code is not 0."""
        result = self.run(script, deadline_s)
        if result.rc != 0:
            raise BedError(f"{self.name}: exit code {result.rc} from: {script}\n{result.out}")
        return result.out

    def spawn(self, script: str) -> Job:
        """Starts a shell script in the guest and returns at once."""
        return Job(self, script)

    def spawn_python(self, program: str) -> Job:
        """As `spawn`, a Python program."""
        return self.spawn(_of_python(program))

    def fetch(self, path: str, deadline_s: float = 60.0) -> bytes:
        """The content of a file in the guest (about 400 kB/s)."""
        return base64.b64decode(self.check(f"base64 {shlex.quote(path)}", deadline_s))

    def python(self, program: str, deadline_s: float = 60.0) -> str:
        """As `check`, of a Python program (its standard library alone)."""
        return self.check(_of_python(program), deadline_s)

    def wait_for(self, predicate: Callable[[], _T], deadline_s: float, what: str) -> _T:
        """Polls until `predicate()` is true and returns that; BedTimeout names `what`, shows the console."""
        deadline = time.monotonic() + PATIENCE * deadline_s
        while True:
            unanswered: BedTimeout | None = None
            try:
                if value := predicate():
                    return value
            except BedTimeout as error:  # a guest that has no time for one question may have it for the next
                unanswered = error
            if time.monotonic() > deadline:
                text = f"{self.name}: waited {deadline_s:.0f} s in vain for {what}\n{self.tail()}"
                raise BedTimeout(text) from unanswered
            time.sleep(0.1)

    def tail(self, lines: int = 25) -> str:
        """The end of its console."""
        try:
            text = self.console.read_text(errors="replace")
        except OSError as error:
            text = f"(no console: {error})"
        return "\n".join(f"  {self.name}| {line}" for line in text.splitlines()[-lines:])


def _of_python(program: str) -> str:
    return f"exec python3 -I -S - <<'END OF IT'\n{program}\nEND OF IT"
