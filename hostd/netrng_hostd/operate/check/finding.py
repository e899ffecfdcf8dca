# SPDX-License-Identifier: Apache-2.0
"""What a check found, and a way to look at things that may never answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from netrng_guest.stdio import tell

T = TypeVar("T")


class Finding(NamedTuple):
    """One line: what, where, and what to do. ``wrong``: a problem; else a note.

    ``more``: lines of a file, to be pasted there.
    """

    wrong: bool
    text: str
    more: tuple[str, ...] = ()


def problem(text: str) -> Finding:
    return Finding(True, text)


def note(text: str, *more: str) -> Finding:
    return Finding(False, text, more)


def show(finding: Finding) -> None:
    """Prints it."""
    tell(f"{'WRONG' if finding.wrong else 'note '}  {finding.text}")
    for line in finding.more:
        tell(f"       {line}")


class TooLate(Exception):
    """Something did not return in time."""


class Job(Generic[T]):
    """``function`` in a daemon thread: one that does not return is left behind.

    Neither a read nor a call of libvirt can be interrupted, and neither keeps the process.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._results: list[T] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="netrng-check", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether it has returned by then, or raised."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> T:
        """What it returned or raised; raises TooLate while it has done neither."""
        if self._thread.is_alive():
            raise TooLate
        if self._errors:
            raise self._errors[0]
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._function())
        except BaseException as error:
            self._errors.append(error)


def within(seconds: float, function: Callable[[], T]) -> T:
    """What ``function`` returns or raises; raises TooLate when that takes longer, and leaves it behind."""
    job = Job(function)
    job.wait(seconds)
    return job.result()
