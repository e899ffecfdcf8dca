# SPDX-License-Identifier: Apache-2.0
"""A status on a terminal. Everything is a Text: no word of a guest is ever taken for markup."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from netrng_hostd.core.spelling import printable
from netrng_hostd.operate.domain_table import (
    BAD,
    DOUBTFUL,
    FAINT,
    GOOD,
    LOUD,
    STRONG,
    STYLES,
    domain_table,
    state_text,
)
from netrng_hostd.operate.source_table import below, sources_part
from netrng_hostd.operate.status import DaemonStatus, DomainStatus
from netrng_hostd.operate.units import bar, duration, rate, size


def render(status: DaemonStatus, width: int, max_domains: int | None = None) -> RenderableType:
    """The whole status, ``width`` columns wide; of more than ``max_domains`` domains the busiest."""
    shown = list(status.domains)
    if max_domains is not None and len(shown) > max_domains:
        busiest = sorted(shown, key=lambda domain: domain.rate, reverse=True)[:max_domains]
        shown = [domain for domain in shown if domain in busiest]
    parts: list[RenderableType] = [
        _headline(status),
        Text(),
        *sources_part(status),
        *_hypervisors(status),
        _reservoir(status),
        *_promises(status),
        Text(),
    ]
    if shown:
        parts.append(domain_table(status, shown, width))
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
    line = Text(f"netrng-hostd {printable(status.version)}", STRONG)
    line.append("  ·  ".join(["", *facts]), FAINT)
    if not status.ledger_ok:
        line.append("\nTHE LEDGER DOES NOT ADD UP: stop the daemon and report it", LOUD)
    return line


def _hypervisors(status: DaemonStatus) -> Iterator[RenderableType]:
    for uri in status.uris:
        line = Text("libvirt    ", FAINT)
        line.append(f"{printable(uri.uri)} ").append_text(state_text(uri.state))
        if uri.state != "connected":
            line.append(f" {_since(status, uri.since)}", FAINT)
        yield line
        if uri.detail and uri.state != "connected":
            yield below(uri.detail, BAD)


def _reservoir(status: DaemonStatus) -> Text:
    reservoir = status.reservoir
    full = reservoir.stored / reservoir.size if reservoir.size else 0.0
    line = Text("reservoir  ", FAINT)
    line.append(bar(full, 16), GOOD).append(f" {size(reservoir.stored)} of {size(reservoir.size)}")
    line.append(f", for seeds {size(reservoir.seed_stored)} of {size(reservoir.seed_reserve)}", FAINT)
    return line


def _promises(status: DaemonStatus) -> Iterator[RenderableType]:
    """Only where something was asked for."""
    admission = status.admission
    if any(domain.reservation for domain in status.domains) and admission.capacity is not None:
        line = Text("promised   ", FAINT)
        line.append(f"{rate(admission.promised)} of {rate(admission.promisable)}")
        line.append(f", with {admission.headroom:.0%} of the capacity as headroom", FAINT)
        yield line
        if admission.shrunk:
            part = admission.promisable / admission.promised
            yield below(f"THE SOURCE GIVES LESS: every reservation holds to {part:.0%}", DOUBTFUL)


def _troubles(status: DaemonStatus, shown: Sequence[DomainStatus]) -> Iterator[RenderableType]:
    for domain in shown:
        style = STYLES.get(domain.state, BAD)
        said = [(domain.detail, style), (domain.quota_detail, DOUBTFUL)]
        if domain.admission == "refused" and domain.state != "refused":
            left = rate(max(0, status.admission.promisable - status.admission.promised))
            asked = rate(domain.reservation)
            said.append((f"its reservation of {asked} does not fit: {left} can still be promised", DOUBTFUL))
        if domain.agent and domain.agent.get("detail") and domain.agent.get("sink_state") != "ok":
            said.append((f"its agent says: {printable(domain.agent['detail'])}", style))
        for text, style in said:
            if text:
                line = Text("\n").append(printable(domain.name), STRONG)
                yield line.append(f": {printable(text)}", style)


def _advice(status: DaemonStatus) -> Iterator[RenderableType]:
    without = [printable(name) for name in status.without_channel]
    if without:
        names = ", ".join(without[:5]) + (f" and {len(without) - 5} more" if len(without) > 5 else "")
        yield Text(f"\nWithout a channel: {names}. Give one: netrng-hostd attach {without[0]}", DOUBTFUL)
    elif not status.domains:
        yield Text("No domain has a channel. Give one: netrng-hostd attach DOMAIN", DOUBTFUL)


def _since(status: DaemonStatus, since: float) -> str:
    return duration(status.time - since)
