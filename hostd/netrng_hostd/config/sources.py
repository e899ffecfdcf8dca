# SPDX-License-Identifier: Apache-2.0
"""[[source]] and [sources]: where random bytes come from, and how several are used. All raise ConfigError."""

from __future__ import annotations

import re

from netrng_hostd.config.model import DEFAULT_PATHS, Config, SourceConfig
from netrng_hostd.config.sections import SUN_PATH_MAX, keys_of, read_name, read_path
from netrng_hostd.config.table import Table

KINDS = ("device", "fifo", "egd", "prng")
POLICIES = ("failover", "combine", "xor")
MAX_SOURCES = 16  # each has a thread
XOR_MIN_SOURCES = 2  # mixing one source with nothing is no mixing
ADDRESS = re.compile(r"(?:localhost|127(?:\.\d{1,3}){3}|\[::1\]):(\d{1,5})", re.ASCII)
ADDRESS_ALLOWED = (
    'a port of this host like "localhost:7777", "127.0.0.1:7777" or "[::1]:7777"; '
    "what is on another host comes through stunnel, see conf/stunnel"
)
ORIGIN_MAX = 100  # characters
ORIGIN_ALLOWED = f"printable text of at most {ORIGIN_MAX} characters"
RNG_NAME = re.compile(r"[!-~]{1,64}")


def read_sources(top: Table) -> tuple[SourceConfig, ...]:
    tables = top.tables("source")
    if tables is None:
        return Config.sources
    sources: list[SourceConfig] = []
    for table in tables:
        source = _source(table)
        for other in sources:
            if source.name == other.name:
                raise table.wrong("name", source.name, "a name that no other source has")
            if source.place == other.place:
                key = "path" if source.path else "address"
                raise table.wrong(key, source.place, "one that no other source reads")
        sources.append(source)
    if not 1 <= len(sources) <= MAX_SOURCES:
        raise top.error("source", f"found {len(sources) or 'none'}, allowed: 1 to {MAX_SOURCES} [[source]]")
    return tuple(sources)


def _source(table: Table) -> SourceConfig:
    table.only(*keys_of(SourceConfig))
    default = SourceConfig()
    name = read_name(table, default.name)
    kind = table.choice("kind", default.kind, KINDS)
    path, address = _place(table, kind)
    rng_current = ""
    if "rng_current" in table:
        allowed = "a name as in /sys/class/misc/hw_random/rng_available"
        rng_current = table.text("rng_current", None, allowed)
        if kind != "device":
            raise table.error("rng_current", f'found with kind "{kind}", allowed: with kind "device" alone')
        if not RNG_NAME.fullmatch(rng_current):
            raise table.wrong("rng_current", rng_current, allowed)
    origin = ""
    if "origin" in table:
        origin = table.text("origin", None, ORIGIN_ALLOWED)
        if kind != "egd":
            raise table.error("origin", f'found with kind "{kind}", allowed: with kind "egd" alone')
        if len(origin) > ORIGIN_MAX or not origin.isprintable():
            raise table.wrong("origin", origin, ORIGIN_ALLOWED)
    return SourceConfig(
        name,
        kind,
        path,
        address,
        min_entropy=table.number("min_entropy", default.min_entropy, 0.5, 8.0),
        rng_current=rng_current,
        credit=table.flag("credit", default.credit),
        stall_timeout=table.number("stall_timeout", default.stall_timeout, 0.5, 3600.0),
        origin=origin,
    )


def _place(table: Table, kind: str) -> tuple[str, str]:
    """The path and the address, one of them empty."""
    if kind != "egd":
        if "address" in table:
            raise table.error("address", f'found with kind "{kind}", allowed: with kind "egd" alone')
        return read_path(table, "path", DEFAULT_PATHS.get(kind)), ""
    if "address" not in table:
        return read_path(table, "path", None, SUN_PATH_MAX), ""
    if "path" in table:
        raise table.error("address", "found beside path, allowed: one of the two")
    address = table.text("address", None, ADDRESS_ALLOWED)
    match = ADDRESS.fullmatch(address)
    if not match or not 1 <= int(match[1]) <= 65535:
        raise table.wrong("address", address, ADDRESS_ALLOWED)
    return "", address


def read_policy(table: Table, sources: tuple[SourceConfig, ...]) -> tuple[str, int]:
    """The policy, and how many sources that count it takes at least."""
    table.only("policy", "min_sources")
    policy = table.choice("policy", Config.policy, POLICIES)
    credited = sum(source.credit for source in sources)
    if policy != "xor":
        if "min_sources" in table:
            raise table.error("min_sources", f'found with policy "{policy}", allowed: with "xor" alone')
        if credited < len(sources):
            name = next(source.name for source in sources if not source.credit)
            raise table.error(
                "policy", f'found "{policy}", and source {name} with credit = false; allowed: "xor" with such'
            )
        return policy, Config.min_sources
    min_sources = table.whole("min_sources", XOR_MIN_SOURCES, 1, MAX_SOURCES)
    if credited < min_sources:
        found = f"found {min_sources}{'' if 'min_sources' in table else ' (its default)'}"
        raise table.error(
            "min_sources", f"{found}, allowed: at most as many as there are sources with credit, {credited}"
        )
    return policy, min_sources
