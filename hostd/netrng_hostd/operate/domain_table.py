# SPDX-License-Identifier: Apache-2.0
"""The table of domains: one line for each in a wide terminal, three in one of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from netrng_hostd.core.spelling import format_rate, printable
from netrng_hostd.operate.status import DaemonStatus, DomainStatus
from netrng_hostd.operate.units import bar, duration, rate, size

WIDE = 150  # columns from which on each value has a column of its own
GOOD, DOUBTFUL, BAD, FAINT, LOUD = "green", "yellow", "red", "dim", "bold red"
STRONG = "bold"
STYLES = {
    "healthy": GOOD, "open": GOOD, "connected": GOOD, "listening": GOOD,
    "starting": DOUBTFUL, "connecting": DOUBTFUL, "waiting": DOUBTFUL,
}  # fmt: skip
UNKNOWN = "–"
AGENT_TEXT_MAX = 10  # characters of what an agent says of itself; all of it is in the JSON


class Value(NamedTuple):
    """One value; ``alone`` says it with a word of what it is, for where no header does."""

    header: str
    text: Text
    alone: str = ""


def table(*headers: str) -> Table:
    """A table of netrng's look, with these columns."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=FAINT)
    for header in headers:
        made.add_column(header, no_wrap=True)
    return made


def state_text(state: str) -> Text:
    return Text(printable(state), STYLES.get(state, BAD))


def name_text(name: str) -> Text:
    return Text(printable(name), STRONG, no_wrap=True, overflow="ellipsis")


def domain_table(status: DaemonStatus, shown: Sequence[DomainStatus], width: int) -> Table:
    """The domains ``shown``, of which there is at least one."""
    total = sum(domain.rate for domain in status.domains)
    rows = [_stacks(status, domain, total) for domain in shown]
    if width >= WIDE:
        made = table(*(value.header for stack in rows[0] for value in stack))
        for row in rows:
            made.add_row(*(value.text for stack in row for value in stack))
    else:
        made = table(*(stack[0].header for stack in rows[0]))
        for row in rows:
            made.add_row(*(_stacked(stack) for stack in row))
    made.columns[0].no_wrap = False  # the name alone gives way, and is cut, not wrapped
    return made


def _stacked(stack: Sequence[Value]) -> Text:
    lines = (Text(value.alone, value.text.style) if value.alone else value.text for value in stack)
    return Text("\n", no_wrap=True, overflow="ellipsis").join(lines)


def _stacks(status: DaemonStatus, domain: DomainStatus, total: int) -> list[list[Value]]:
    """A domain's values; those of one stack stand below one another in a narrow terminal."""
    share = domain.rate / total if total else 0.0
    state = state_text(domain.state).append(f" {duration(status.time - domain.since)}", FAINT)
    reserved = format_rate(domain.reservation_effective)
    if domain.reservation_effective != domain.reservation:
        reserved += f" of {format_rate(domain.reservation)}"
    limit = format_rate(domain.limit)
    acked, lost = (UNKNOWN if n is None else size(n) for n in (domain.bytes_acked, domain.bytes_lost))
    feeds = _agent(domain, "sink_state")
    return [
        [Value("DOMAIN", name_text(domain.name)), Value("STATE", state)],
        [
            Value("NOW", Text(rate(domain.rate))),
            Value("SHARE", Text(bar(share, 5), GOOD).append(f" {share:.0%}", FAINT)),
        ],
        [
            Value("RESERVED", Text(reserved, "" if domain.reservation else FAINT)),
            Value("WEIGHT", Text(str(domain.weight), FAINT), f"weight {domain.weight}"),
            Value("LIMIT", Text(limit, FAINT), "no limit" if domain.limit is None else f"limit {limit}"),
        ],
        [
            Value("SENT", Text(size(domain.bytes_sent))),
            Value("ACKED", Text(acked, FAINT), f"{acked} acked"),
            Value("LOST", Text(lost, DOUBTFUL if domain.bytes_lost else FAINT), f"{lost} lost"),
        ],
        [
            Value("SINK", Text(_taker(domain))),
            Value("FEEDS", Text(feeds, GOOD if feeds == "ok" else DOUBTFUL)),
            Value("AGENT", Text(_agent(domain, "version"), FAINT)),
        ],
    ]


def _taker(domain: DomainStatus) -> str:
    """Who takes what is sent, as far as it is known."""
    if domain.clients is not None:
        return f"{domain.clients} client{'' if domain.clients == 1 else 's'}"
    return "virtio-rng" if domain.kind in ("virtio-rng", "egd") else _agent(domain, "sink") or UNKNOWN


def _agent(domain: DomainStatus, key: str) -> str:
    said = printable((domain.agent or {}).get(key) or "")
    return said if len(said) <= AGENT_TEXT_MAX else said[: AGENT_TEXT_MAX - 1] + "…"
