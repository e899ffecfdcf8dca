# SPDX-License-Identifier: Apache-2.0
"""The sources on a terminal: a table, how they serve together, and what a person must know of each."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from netrng_hostd.core.conditioning import OUTPUT, noise_per_block
from netrng_hostd.core.policy import FAILOVER, XOR
from netrng_hostd.core.spelling import printable
from netrng_hostd.core.vetting import FULL
from netrng_hostd.operate.domain_table import (
    BAD,
    DOUBTFUL,
    FAINT,
    GOOD,
    LOUD,
    STYLES,
    name_text,
    state_text,
    table,
)
from netrng_hostd.operate.status import DaemonStatus, SourceStatus, too_few
from netrng_hostd.operate.units import duration, rate, size

SERVING, RESTING = "▶ ", "  "  # before the name, where there are several


def sources_part(status: DaemonStatus) -> list[RenderableType]:
    """All of it, from top to bottom."""
    several = len(status.sources) > 1
    parts: list[RenderableType] = [_table(status, several)]
    for source in status.sources:
        parts += (below(text, style) for text, style in _labels(source, several))
    if several:
        parts.append(_policy(status))
    return parts


def below(text: str, style: str) -> Padding:
    """A line that belongs to what stands above it."""
    return Padding(Text(printable(text), style), (0, 0, 0, 2))


def _table(status: DaemonStatus, several: bool) -> Table:
    headers = ("SOURCE", "KIND", "STATE", "RATE", "READ", "DISCARDED", "CAPACITY")
    made = table(f"{RESTING}SOURCE" if several else "SOURCE", *headers[1:])
    for source in status.sources:
        made.add_row(
            _name(source, several),
            Text("PRNG", LOUD) if source.kind == "prng" else Text(source.kind),
            state_text(source.state),
            rate(source.rate),
            size(source.bytes_read),
            size(source.bytes_discarded - source.bytes_conditioned),
            _capacity(source),
        )
    return made


def _name(source: SourceStatus, several: bool) -> Text:
    name = name_text(source.name)
    if not several:
        return name
    mark = Text(SERVING if source.serving else RESTING, GOOD, no_wrap=True, overflow="ellipsis")
    return mark.append_text(name)


def _capacity(source: SourceStatus) -> Text:
    if source.capacity is None:
        return Text("not known yet")
    text = Text(rate(source.capacity))
    if source.capacity_age_s is not None:
        text.append(f" {duration(source.capacity_age_s)} ago", FAINT)
    return text


def _labels(source: SourceStatus, several: bool) -> Iterator[tuple[str, str]]:
    """Lines and their styles, with the source's name where there are several."""
    whose = f"{source.name}: " if several else ""
    device = f"{source.path} is " if source.path else ""
    if source.kind == "prng":
        yield f"{whose}{device}A PSEUDO-RANDOM STREAM, NOT A HARDWARE RNG: for trials only", LOUD
    elif source.virtual:
        word = "only as good as the word of this machine's host"
        yield f"{whose}{device}VIRTUAL ({source.rng_current}): {word}", f"bold {DOUBTFUL}"
    elif source.upstream:
        claimed = f"said to be {source.origin}" if source.origin else "of unknown origin"
        yield f"{whose}UPSTREAM, {claimed} (unverified)", DOUBTFUL
    elif source.rng_current:
        yield f"{whose}{device}{source.rng_current}", FAINT
    if not source.credit:
        yield f"{whose}mixed in, and counts for nothing (credit = false)", DOUBTFUL
    if source.min_entropy < FULL:
        yield f"{whose}{_conditioning(source)}", FAINT
    if source.detail:
        yield f"{whose}{source.detail}", STYLES.get(source.state, BAD)


def _conditioning(source: SourceStatus) -> str:
    ratio = f"{OUTPUT} of {noise_per_block(source.min_entropy)} bytes"
    compressed = f"{size(source.bytes_conditioned)} compressed away"
    return f"min_entropy {source.min_entropy:g} leaves {ratio}; {compressed}"


def _policy(status: DaemonStatus) -> Text:
    """Who gives what VMs get, and who does not."""
    line = Text().append("policy     ", FAINT)
    serving = [source for source in status.sources if source.serving]
    if not serving:
        stored = status.reservoir.stored if status.policy != XOR else 0  # a mix of too few is held back
        rest = f" BUT THE {size(stored)} IN STORE" if stored else ""
        return line.append(f"{printable(status.policy)}: NOTHING IS GIVEN OUT{rest}: {_why(status)}", LOUD)
    style = LOUD if any(source.kind == "prng" for source in serving) else GOOD
    names = [_called(source) for source in serving]
    if status.policy == FAILOVER and serving[0].state == "starting":
        return line.append(f"failover: no source is healthy yet; {names[0]} is being tested", DOUBTFUL)
    if status.policy == FAILOVER:
        line.append(f"failover: VMs are served from {names[0]}", style)
        return line.append_text(_order(status, serving[0]))
    mixed = (" ⊕ " if status.policy == XOR else " + ").join(names)
    line.append(f"{printable(status.policy)}: {mixed}", style)
    if status.policy == XOR:
        line.append(f" (min_sources {status.min_sources})", FAINT)
    missing = [_with_state(source) for source in status.sources if not source.serving]
    return line.append(f"; without {', '.join(missing)}" if missing else "", DOUBTFUL)


def _order(status: DaemonStatus, serving: SourceStatus) -> Text:
    """In whose place it serves, and who would be next."""
    place = status.sources.index(serving)
    better = [_with_state(source) for source in status.sources[:place]]
    ready = [_called(source) for source in status.sources if source.state == "healthy" and source != serving]
    text = Text().append(f", in the place of {', '.join(better)}" if better else "", DOUBTFUL)
    if ready:
        return text.append(f"; next: {ready[0]}", FAINT)
    return text.append("; no other is healthy", DOUBTFUL)


def _why(status: DaemonStatus) -> str:
    return too_few(status) if status.policy == XOR else "no source is healthy"


def _called(source: SourceStatus) -> str:
    return printable(source.name) + (" (PRNG)" if source.kind == "prng" else "")


def _with_state(source: SourceStatus) -> str:
    return f"{printable(source.name)} ({printable(source.state)})"
