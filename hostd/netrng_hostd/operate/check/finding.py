# SPDX-License-Identifier: Apache-2.0
"""What a check found, and a way to look at things that may never answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Finding(NamedTuple):
    """One line: what, where, and what to do. ``wrong``: a problem; else a note."""

    wrong: bool
    text: str


def problem(text: str) -> Finding:
    return Finding(True, text)


def note(text: str) -> Finding:
    return Finding(False, text)


class TooLate(Exception):
    """Something did not return in time."""


def within(seconds: float, function: Callable[[], T]) -> T:
    """What ``function`` returns or raises; raises TooLate when that takes longer.

    It runs in a daemon thread, which is left behind then: neither a read nor a call of libvirt can be
    interrupted, and neither keeps the process.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="netrng-check", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TooLate
    if errors:
        raise errors[0]
    return results[0]
