# SPDX-License-Identifier: Apache-2.0
"""What the running daemon knows of its sources, and nothing else can know: its own tests, over hours."""

from __future__ import annotations

from collections.abc import Iterator

from netrng_hostd.core.policy import FAILOVER, XOR
from netrng_hostd.core.spelling import printable
from netrng_hostd.operate.check.finding import Finding, note, problem
from netrng_hostd.operate.check.noise import DISTRUST
from netrng_hostd.operate.status import DaemonStatus, SourceStatus, too_few

_WELL = ("starting", "healthy")
_ABSENT = {
    "fifo": "start the program that writes there",
    "egd": "start the EGD server (or stunnel) that is to listen there",
}
_OF_STATE = {
    "denied": "let the daemon read it: run it as root; under systemd, DeviceAllow",
    "stalled": "see whether its driver is stuck (dmesg) or another program reads all of it",
    "failed": f"{DISTRUST}; netrng-hostd check --source NAME tests it now",
}


def check_running(status: DaemonStatus) -> Iterator[Finding]:
    """What is wrong with the sources of the daemon whose ``status`` this is."""
    for source in status.sources:
        if source.state not in _WELL:
            yield problem(_trouble(source))
    if status.policy == XOR:
        yield from _check_mix(status)
    elif status.policy == FAILOVER:
        yield from _check_order(status)


def _trouble(source: SourceStatus) -> str:
    detail = f" ({printable(source.detail)})" if source.detail else ""
    state = printable(source.state)
    return f"source {source.name}: {state} in the running daemon{detail}; {_what_to_do(source)}"


def _what_to_do(source: SourceStatus) -> str:
    if source.state == "absent":
        return _ABSENT.get(source.kind, "plug the RNG in, load its driver, or set path in [[source]]")
    if source.state == "failed" and source.kind == "fifo":
        return "distrust it: the program that writes there, and its device"
    return _OF_STATE.get(source.state, "see dmesg, and the daemon's log").replace("NAME", source.name)


def _check_mix(status: DaemonStatus) -> Iterator[Finding]:
    """One that is in its start-up test may be healthy in a moment."""
    if sum(source.credit and source.state in _WELL for source in status.sources) < status.min_sources:
        what_to_do = "mend the others, or set min_sources in [sources]"
        yield problem(f"xor: nothing is given out: {too_few(status)}; {what_to_do}")


def _check_order(status: DaemonStatus) -> Iterator[Finding]:
    serving = next((source for source in status.sources if source.serving), None)
    first = status.sources[0] if status.sources else None
    if serving is not None and first is not None and serving is not first:
        yield note(
            f"failover: VMs are served from {serving.name}{' (PRNG)' * (serving.kind == 'prng')}, "
            f"because {first.name} "
            f"{'has not yet proved itself again' if first.state in _WELL else f'is {printable(first.state)}'}"
        )
