# SPDX-License-Identifier: Apache-2.0
"""One line for each event, and not one for each byte."""

from __future__ import annotations

import io
import sys

import pytest

from netrng_guest.log import ERROR, Log

SECOND = 10**9


def test_one_line_with_a_priority_only_for_the_journal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    Log().line("two\nlines", 0)
    monkeypatch.setenv("JOURNAL_STREAM", "8:1234")
    Log().line("bad", 0, ERROR)
    assert capsys.readouterr().err == "netrng-guest: two lines\n<3>netrng-guest: bad\n"


def test_a_flood_is_counted_and_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    for n in range(1000):
        log.line(f"event {n}", 1000 * SECOND)
    assert len(capsys.readouterr().err.splitlines()) == 30
    log.line("later", 1002 * SECOND)
    log.line("too soon", 1003 * SECOND)
    assert capsys.readouterr().err == "netrng-guest: later (970 lines left out before)\n"
    for n in range(100):
        log.line(f"event {n}", 5000 * SECOND)
    assert len(capsys.readouterr().err.splitlines()) == 30


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("closed")])
def test_without_anybody_to_tell(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    monkeypatch.setattr(sys, "stderr", Broken())
    Log().line("x", 0)
