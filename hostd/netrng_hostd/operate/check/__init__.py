# SPDX-License-Identifier: Apache-2.0
"""`netrng-hostd check`: what is wrong with the configuration and this host, and how to mend each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

from netrng_guest.stdio import tell
from netrng_hostd.config import Config, ConfigError, load
from netrng_hostd.core.quota import resolve
from netrng_hostd.core.spelling import format_rate, format_size
from netrng_hostd.operate.check.device import check_refused, check_source
from netrng_hostd.operate.check.domains import ListDomains, check_domains, list_domains
from netrng_hostd.operate.check.finding import Finding, note, problem, show
from netrng_hostd.operate.check.host import check_host, running_daemon
from netrng_hostd.operate.check.running import check_running
from netrng_hostd.operate.check.serves import check_serves
from netrng_hostd.sources.identity import feeds_itself, read_twice

__all__ = ["Finding", "findings", "run"]

BURST_MS = 10  # some turns of a busy daemon's loop: what a burst had better cover


def findings(
    path: str | None, *, config_only: bool = False, list_them: ListDomains = list_domains
) -> Iterator[Finding]:
    """Everything that was found, in the order of the journey; ``list_them`` asks libvirt.

    Raises ConfigError.
    """
    config = load(path)
    for source in config.sources:
        yield from check_refused(source)
        if (reason := feeds_itself(source, config) or read_twice(source, config)) is not None:
            yield problem(f"source {source.name}: {reason}")
    yield from _short_bursts(config)
    if config_only:
        return
    daemon = running_daemon(config)
    daemon_pid = None if daemon is None else daemon.pid
    own_pids = frozenset(pid for pid in (daemon_pid, os.getpid()) if pid is not None)
    for source in config.sources:
        yield from check_source(source, own_pids)
    if daemon is not None:
        yield from check_running(daemon)
    yield from check_host(config, daemon_pid)
    yield from check_serves(config, daemon)
    yield from check_domains(config, list_them)


def run(path: str | None, *, config_only: bool = False, list_them: ListDomains = list_domains) -> int:
    """Prints what was found, as it is found.

    Returns 2 if the configuration cannot be read, 1 if anything else is wrong, else 0.
    """
    wrong = notes = 0
    try:
        for finding in findings(path, config_only=config_only, list_them=list_them):
            wrong += finding.wrong
            notes += not finding.wrong
            show(finding)
    except ConfigError as error:
        show(problem(str(error)))
        return 2
    what = "the configuration" if config_only else "the configuration and this host"
    if wrong:
        tell(f"{wrong} thing{'s' if wrong > 1 else ''} to mend")
    else:
        tell(f"nothing wrong with {what}{f', {notes} to note' if notes else ''}")
    return 1 if wrong else 0


def _short_bursts(config: Config) -> Iterator[Finding]:
    """A bucket that is full between two turns has let the rest overflow."""
    for position, rule in enumerate(config.quotas):
        heirs = [later for later in config.quotas[position + 1 :] if "*" in later.match]
        quota = resolve([dataclasses.replace(rule, match=("*",)), *heirs], "", "")
        needed = (quota.limit or 0) * BURST_MS // 1000
        if quota.burst < needed:
            burst, limit = format_size(quota.burst), format_rate(quota.limit)
            yield note(
                f"{config.file}: quota {rule.name!r}: a burst of {burst} is less than a limit of {limit} "
                f"gives in {BURST_MS} ms, so less than the limit may be delivered; "
                f"set burst to {format_size(needed)} or more"
            )
