# SPDX-License-Identifier: Apache-2.0
"""`netrng-hostd check --source NAME`: the health tests on demand, NIST SP 800-90B (January 2018), 4.3.

The source is opened as the daemon opens it, and what it gives goes through the same tests: at least the 1,024
bytes of the start-up test, and on up to Limits. All of it is wiped; no VM gets any.
"""

from __future__ import annotations

import contextlib
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from netrng_guest.stdio import complain, tell
from netrng_hostd.config import ConfigError, SourceConfig, load
from netrng_hostd.core.health import STARTUP
from netrng_hostd.core.spelling import printable
from netrng_hostd.core.vetting import FULL, Vetting
from netrng_hostd.operate.check.device import check_refused
from netrng_hostd.operate.check.finding import Finding, Job, TooLate, note, problem, show
from netrng_hostd.operate.check.host import running_daemon
from netrng_hostd.operate.check.noise import DISTRUST, TESTS, Limits, Reading, alarm_text
from netrng_hostd.operate.check.upstream import mend_egd
from netrng_hostd.operate.status import DaemonStatus
from netrng_hostd.operate.units import duration, rate, size
from netrng_hostd.sources import SourceFailure, make_source
from netrng_hostd.sources.identity import is_hwrng

LOOK_S = 0.1
QUIET_S = 1.0  # a test that takes no longer needs no word in between
LIMITS = Limits()
CLOSE_S = 1.0  # for the thread to close the source, unless it hangs


def run(path: str | None, name: str, limits: Limits = LIMITS) -> int:
    """Tests the source ``name`` of the configuration at ``path``, and prints what was found.

    Returns 0 if it passed, 1 if not or if it cannot be read, 2 if the configuration cannot be read or has no
    such source.
    """
    try:
        config = load(path)
    except ConfigError as error:
        show(problem(str(error)))
        return 2
    source = next((source for source in config.sources if source.name == name), None)
    if source is None:
        names = ", ".join(source.name for source in config.sources)
        complain("netrng-hostd", f"there is no source '{printable(name)}'; allowed: {names}")
        return 2
    wrong = False
    for finding in _beforehand(source, running_daemon(config)):
        show(finding)
        wrong = wrong or finding.wrong
    return 1 if wrong else _test(source, limits)


def _beforehand(source: SourceConfig, daemon: DaemonStatus | None) -> Iterator[Finding]:
    is_fifo = source.kind == "fifo" or _is_fifo(source.path)
    if daemon is not None and any(told.path == source.place for told in daemon.sources):
        if is_fifo:
            yield problem(
                f"source {source.name}: the running daemon (pid {daemon.pid}) reads {source.place} and "
                "would not get what is read here; netrng-hostd status shows what its own tests say"
            )
            return
        if source.kind != "prng":
            yield note(
                f"source {source.name}: the running daemon (pid {daemon.pid}) reads {source.place} as well: "
                "for the moment of this test each gets a part"
            )
    refused = list(check_refused(source))
    yield from refused
    if refused:
        return
    if source.kind == "prng":
        yield note(f"source {source.name}: {source.path} is a pseudo-random stream, for trials only")
    if is_fifo:
        yield note(
            f"source {source.name}: the program that writes into {source.path} may end with this test "
            "(SIGPIPE); start it again then"
        )


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False


def _test(source: SourceConfig, limits: Limits) -> int:
    reading = Reading(make_source(source), source.min_entropy, limits.most)
    trial, trouble = reading.trial, ""
    job = Job(reading.run)
    try:
        while not (ended := job.wait(LOOK_S)) and not reading.is_over(limits):
            _show_progress(source, reading, limits)
        # A reader that has ended waits for no byte, however long the process stood still since.
        elapsed_s, silent_s = reading.elapsed_s, 0.0 if ended else reading.silent_s
    finally:
        trial.over = True
        _show_on_terminal("")
    try:
        job.wait(CLOSE_S)
        job.result()
    except TooLate:
        pass  # a read that does not return is left behind; what came before it counts
    except SourceFailure as failure:
        trouble = f"{failure.detail}; {_mend(source, failure)}"
    if trial.alarm is not None:
        trouble = f"{alarm_text(trial.alarm)}; {DISTRUST}"
    elif not trouble and not trial.started_up:
        part = f"{trial.n_bytes} of the {STARTUP} bytes of the start-up test"
        much = part if trial.n_bytes else "not one byte"
        trouble = _silent(source, f"{much} within {duration(elapsed_s)}")
    elif not trouble and silent_s >= source.stall_timeout:
        trouble = _silent(source, f"no byte for {duration(silent_s)}")
    came = f"{trial.n_bytes} bytes came, at {rate(reading.rate)}, and were thrown away and wiped"
    if trouble:
        show(problem(f"source {source.name}: {trouble}" + (f" ({came})" if trial.n_bytes else "")))
        return 1
    left = _conditioned(source, reading.rate)
    tell(f"ok     source {source.name}: {', '.join(TESTS)} passed; {came}{left}")
    return 0


def _silent(source: SourceConfig, what: str) -> str:
    hint = {
        "fifo": "the program that writes there",
        "egd": "the EGD server there, and its log",
    }.get(source.kind, "its driver (dmesg), and whether another program reads all of it: netrng-hostd check")
    return f"{source.place} gave {what}; look at {hint}"


def _conditioned(source: SourceConfig, n_bytes_per_s: int) -> str:
    if source.min_entropy >= FULL:
        return ""
    left = rate(Vetting(source.min_entropy).output_of(n_bytes_per_s))
    return f"; at min_entropy = {source.min_entropy:g}, conditioning leaves {left} of these"


def _mend(source: SourceConfig, failure: SourceFailure) -> str:
    if source.kind == "egd":
        return mend_egd(source, failure)
    if failure.state == "denied":
        return "run as root, or let this user read it"
    if source.kind == "fifo":
        start = "start the program that writes into it"
        return start if _is_fifo(source.path) else f"make it (mkfifo -m 600 {source.path}) and {start}"
    if source.rng_current and failure.state == "error" and not is_hwrng(source.path):
        return "take rng_current out of [[source]]"
    if failure.state == "absent":
        return "plug the RNG in, load its driver, or set path in [[source]]"
    return "see dmesg"


def _show_progress(source: SourceConfig, reading: Reading, limits: Limits) -> None:
    if reading.elapsed_s >= QUIET_S:
        much = f"{size(reading.trial.n_bytes)} of {size(limits.most)}"
        _show_on_terminal(f"testing {source.name}: {much}, {duration(reading.elapsed_s)}")


def _show_on_terminal(text: str) -> None:
    """In the place of what stood in this line."""
    if sys.stderr.isatty():
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
