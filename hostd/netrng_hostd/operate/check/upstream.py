# SPDX-License-Identifier: Apache-2.0
"""Whether another program is there that a source's bytes come from."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from netrng_hostd.config import SourceConfig
from netrng_hostd.operate.check.finding import Finding, TooLate, note, problem, within
from netrng_hostd.operate.check.noise import Trial, alarm_trouble
from netrng_hostd.sources import SourceFailure
from netrng_hostd.sources.egd import EgdSource

ASK_BYTES = 255  # at once: as much as EGD gives


def check_fifo(source: SourceConfig) -> Iterator[Finding]:
    """Looks at it and never opens it: that would take bytes, and end a program that writes meanwhile."""
    path = source.path
    try:
        Path(path).stat()
    except OSError as error:
        yield problem(
            f"source {source.name}: there is no {path} ({error.strerror}); make it (mkfifo -m 600 {path}) "
            "and let the program write into it"
        )
        return
    if not os.access(path, os.R_OK):
        why = "permission denied; run as root, or let this user read it"
        yield problem(f"source {source.name}: {path}: {why}")
        return
    yield note(
        f"source {source.name}: {path} was not read, because its bytes come once; "
        "netrng-hostd status says whether a program writes into it"
    )


def check_egd(source: SourceConfig, read_s: float) -> Iterator[Finding]:
    """Asks for what a start-up test takes, or what comes in time, which is thrown away."""
    trial = Trial(source.min_entropy)
    try:
        within(read_s, lambda: _ask(EgdSource(source.path, source.address), trial, read_s))
    except TooLate:
        trial.over = True
    except SourceFailure as failure:
        yield problem(f"source {source.name}: {failure.detail}; {mend_egd(source, failure)}")
        return
    trouble = alarm_trouble(trial, source)
    if trouble is not None:
        yield problem(f"source {source.name}: {trouble}")
    elif not trial.n_bytes:
        yield problem(
            f"source {source.name}: {source.place} gave not one byte within {read_s:g} s; "
            "see whether the EGD server there has any left, and its log"
        )


def _ask(egd: EgdSource, trial: Trial, read_s: float) -> None:
    """Feeds ``trial`` with what comes in time. Raises SourceFailure."""
    end = time.monotonic() + read_s
    with memoryview(bytearray(ASK_BYTES)) as buffer:
        try:
            egd.open()
            while time.monotonic() < end and not (trial.over or trial.started_up or trial.alarm):
                count = egd.read_into(buffer)
                trial.feed(buffer[:count])
                buffer[:] = bytes(ASK_BYTES)
        finally:
            egd.close()
            trial.wipe()
            buffer[:] = bytes(ASK_BYTES)


def mend_egd(source: SourceConfig, failure: SourceFailure) -> str:
    """What to do about it, where the source is an EGD server."""
    if failure.state == "absent":
        key = "path" if source.path else "address"
        return f"start the EGD server (or stunnel) that is to listen there, or set {key} in [[source]]"
    if failure.state == "denied":
        return "run as root, or let this user connect"
    return "see the log of the EGD server, and with stunnel the logs of both ends"
