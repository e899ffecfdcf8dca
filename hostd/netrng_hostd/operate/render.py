# SPDX-License-Identifier: Apache-2.0
"""A status on a terminal. Everything is a Text: no word of a guest is ever taken for markup."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from netrng_hostd.core.quota import format_rate
from netrng_hostd.operate.status import DaemonStatus, DomainStatus, SourceStatus
from netrng_hostd.operate.units import bar, duration, printable, rate, size

WIDE = 140  # columns from which on each value has a column of its own
GOOD, DOUBTFUL, BAD, FAINT, LOUD = "green", "yellow", "red", "dim", "bold red"
_STYLES = {
    "healthy": GOOD, "open": GOOD, "connected": GOOD,
    "starting": DOUBTFUL, "connecting": DOUBTFUL, "waiting": DOUBTFUL, "vanished": FAINT,
}  # fmt: skip
_STRONG_TERMS = "bold"


class Cell(NamedTuple):
    """One value: in a wide terminal a column, in a narrow one a line of its group's cell."""

    header: str
    text: Text


def render(status: DaemonStatus, width: int, max_domains: int | None = None) -> RenderableType:
    """The whole status, ``width`` columns wide; of more than ``max_domains`` domains the busiest."""
    shown = list(status.domains)
    if max_domains is not None and len(shown) > max_domains:
        busiest = sorted(shown, key=lambda domain: domain.rate, reverse=True)[:max_domains]
        shown = [domain for domain in shown if domain in busiest]
    parts: list[RenderableType] = [
        _headline(status),
        Text(),
        _sources(status.sources),
        *_labels(status.sources),
        *_hypervisors(status),
        _reservoir(status),
        Text(),
    ]
    if shown:
        parts.append(_domains(status, shown, width))
        if len(shown) < len(status.domains):
            parts.append(Text(f"… and {len(status.domains) - len(shown)} more that take less", FAINT))
    parts.extend(_troubles(status, shown))
    parts.extend(_advice(status))
    return Group(*parts)


def _headline(status: DaemonStatus) -> Text:
    facts = [
        f"up {duration(status.time - status.started)}",
        f"{size(status.rss_bytes)}, {status.cpu_percent:.1f} % CPU",
        f"pid {status.pid}",
    ]
    line = Text(f"netrng-hostd {printable(status.version)}", _STRONG_TERMS)
    line.append("  ·  ".join(["", *facts]), FAINT)
    if not status.ledger_ok:
        line.append(
            "\nTHE LEDGER DOES NOT ADD UP: bytes are unaccounted for; stop the daemon, report it", LOUD
        )
    return line


def _sources(sources: Sequence[SourceStatus]) -> Table:
    table = _table()
    for header in ("SOURCE", "KIND", "STATE"):
        table.add_column(header, no_wrap=True)
    for header in ("RATE", "READ", "DISCARDED", "CAPACITY"):
        table.add_column(header, no_wrap=True, justify="right")
    for source in sources:
        table.add_row(
            _name(source.name),
            Text("PRNG", LOUD) if source.kind == "prng" else Text(source.kind),
            _state(source.state),
            rate(source.rate),
            size(source.bytes_read),
            size(source.bytes_discarded),
            "not known yet" if source.capacity is None else rate(source.capacity),
        )
    return table


def _labels(sources: Sequence[SourceStatus]) -> Iterator[RenderableType]:
    """What a person must know of a source besides its numbers."""
    for source in sources:
        device = f"{source.path} is " if source.path else ""
        if source.kind == "prng":
            yield _below(f"{device}A PSEUDO-RANDOM STREAM, NOT A HARDWARE RNG: for trials only", LOUD)
        elif source.virtual:
            yield _below(
                f"{device}VIRTUAL ({source.rng_current}): only as good as the word of this machine's host",
                f"bold {DOUBTFUL}",
            )
        elif source.rng_current:
            yield _below(f"{device}{source.rng_current}", FAINT)
        if source.detail:
            yield _below(source.detail, _STYLES.get(source.state, BAD))


def _hypervisors(status: DaemonStatus) -> Iterator[RenderableType]:
    for uri in status.uris:
        line = Text("libvirt    ", FAINT)
        line.append(f"{printable(uri.uri)} ").append_text(_state(uri.state))
        if uri.state != "connected":
            line.append(f" {_since(status, uri.since)}", FAINT)
        yield line
        if uri.detail and uri.state != "connected":
            yield _below(uri.detail, BAD)


def _reservoir(status: DaemonStatus) -> Text:
    reservoir = status.reservoir
    full = reservoir.stored / reservoir.size if reservoir.size else 0.0
    line = Text("reservoir  ", FAINT)
    line.append(bar(full, 16), GOOD).append(f" {size(reservoir.stored)} of {size(reservoir.size)}")
    line.append(f", for seeds {size(reservoir.seed_stored)} of {size(reservoir.seed_reserve)}", FAINT)
    return line


def _domains(status: DaemonStatus, shown: Sequence[DomainStatus], width: int) -> Table:
    total = sum(domain.rate for domain in status.domains)
    rows = [_groups(status, domain, total) for domain in shown]
    table = _table()
    if width >= WIDE:
        for cell in (cell for group in rows[0] for cell in group):
            table.add_column(cell.header, no_wrap=True, overflow="ellipsis")
        for row in rows:
            table.add_row(*(cell.text for group in row for cell in group))
        return table
    for group in rows[0]:
        header = "\n".join(cell.header for cell in group[:1])
        table.add_column(header, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(_stacked(group) for group in row))
    return table


def _groups(status: DaemonStatus, domain: DomainStatus, total: int) -> list[list[Cell]]:
    """A domain's values, grouped by what a narrow terminal shows below one another."""
    share = domain.rate / total if total else 0.0
    state = _state(domain.state).append(f" {_since(status, domain.since)}", FAINT)
    reserved = format_rate(domain.reservation_effective)
    if domain.reservation_effective != domain.reservation:
        reserved += f" of {format_rate(domain.reservation)}"
    agent = domain.agent or {}
    sink = printable(agent.get("sink", ""))
    version = printable(agent.get("version", ""))
    sink_state = printable(agent.get("sink_state", ""))
    lost_style = DOUBTFUL if domain.bytes_lost else FAINT
    return [
        [Cell("DOMAIN", _name(domain.name)), Cell("STATE", state)],
        [
            Cell("NOW", Text(rate(domain.rate))),
            Cell("SHARE", Text(bar(share, 6), GOOD).append(f" {share:.0%}", FAINT)),
        ],
        [
            Cell("QUOTA", Text(f"min {reserved}", "" if domain.reservation else FAINT)),
            Cell("WEIGHT", Text(f"{domain.weight}× max {format_rate(domain.limit)}", FAINT)),
        ],
        [
            Cell("SENT", Text(f"{size(domain.bytes_sent)} sent")),
            Cell("ACKED", Text(f"{size(domain.bytes_acked)} acked", FAINT)),
            Cell("LOST", Text(f"{size(domain.bytes_lost)} lost", lost_style)),
        ],
        [
            Cell("SINK", Text(sink or "–")),
            Cell("SINK STATE", Text(sink_state, GOOD if sink_state == "feeding" else DOUBTFUL)),
            Cell("AGENT", Text(version, FAINT)),
        ],
    ]


def _stacked(group: Sequence[Cell]) -> Text:
    return Text("\n", no_wrap=True, overflow="ellipsis").join(cell.text for cell in group)


def _troubles(status: DaemonStatus, shown: Sequence[DomainStatus]) -> Iterator[RenderableType]:
    for domain in shown:
        said = [domain.detail] if domain.detail else []
        if domain.agent and domain.agent.get("detail"):
            said.append(f"its agent says: {printable(domain.agent['detail'])}")
        for text in said:
            line = Text("\n").append(printable(domain.name), _STRONG_TERMS)
            yield line.append(f": {printable(text)}", _STYLES.get(domain.state, BAD))


def _advice(status: DaemonStatus) -> Iterator[RenderableType]:
    without = [printable(name) for name in status.without_channel]
    if without:
        names = ", ".join(without[:5]) + (f" and {len(without) - 5} more" if len(without) > 5 else "")
        yield Text(f"\nWithout a channel: {names}. Give one: netrng-hostd attach {without[0]}", DOUBTFUL)
    elif not status.domains:
        yield Text("No domain has a channel. Give one: netrng-hostd attach DOMAIN", DOUBTFUL)


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=FAINT)


def _name(text: str) -> Text:
    return Text(printable(text), _STRONG_TERMS, no_wrap=True, overflow="ellipsis")


def _state(state: str) -> Text:
    return Text(printable(state), _STYLES.get(state, BAD))


def _since(status: DaemonStatus, since: float) -> str:
    return duration(status.time - since)


def _below(text: str, style: str) -> Padding:
    return Padding(Text(printable(text), style), (0, 0, 0, 2))
