# SPDX-License-Identifier: Apache-2.0
"""The tables of hostd.toml, one function for each. All raise ConfigError."""

from __future__ import annotations

import dataclasses
import os.path
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from netrng_hostd.config.model import (
    AdmissionConfig,
    ChannelConfig,
    LibvirtConfig,
    ReservoirConfig,
    ServeConfig,
)
from netrng_hostd.config.table import ConfigError, Table, spell
from netrng_hostd.core.cutoffs import STARTUP
from netrng_hostd.core.domain import MIN_SAMPLE
from netrng_hostd.core.quota import DEFAULT_QUOTA, METADATA, UNSET, QuotaRule, check_rules
from netrng_hostd.core.spelling import (
    QuotaError,
    format_size,
    parse_cap,
    parse_limit,
    parse_rate,
    parse_size,
    parse_weight,
)

RESERVOIR_RANGE = (4096, 64 << 20)  # all of it is locked in memory
MAX_PATTERNS = 64  # [[channel]] with wildcards: each takes a thread
SUN_PATH_MAX = 107  # bytes in sockaddr_un, unix(7)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MATCH = re.compile(r"(?!uuid:).*|uuid:[-0-9A-Fa-f*?!\[\]]+", re.DOTALL)
QUOTA_NAMES_TAKEN = (METADATA, DEFAULT_QUOTA.name)  # the status tells by them where a quota comes from
NAME_ALLOWED = 'a name of letters, digits, "_", "." and "-", at most 64'
URI_ALLOWED = 'a libvirt URI like "qemu:///system"'
LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "::1")


def read_reservoir(table: Table, sample_size: int, n_sources: int) -> ReservoirConfig:
    table.only(*keys_of(ReservoirConfig))
    default = ReservoirConfig()
    size = table.parsed("size", default.size, parse_size)
    seed_reserve = table.parsed("seed_reserve", min(default.seed_reserve, size // 4), parse_size)
    low, high = (format_size(bound) for bound in RESERVOIR_RANGE)
    if not RESERVOIR_RANGE[0] <= size <= RESERVOIR_RANGE[1]:
        raise table.error("size", f"found {format_size(size)}, allowed: {low} to {high}")
    # A source that starts releases all of its first window or nothing, and the sources share the room. With
    # less beside a rest too small for any sample, they would wait for room, the domains for them, for ever.
    least_general = STARTUP * n_sources + MIN_SAMPLE
    least = seed_reserve + max(sample_size, least_general)
    if size < least:
        rest = "sample_size" if sample_size > least_general else "each source's start-up test and a sample"
        raise table.error(
            "size",
            f"found {format_size(size)}, allowed: at least seed_reserve ({format_size(seed_reserve)}) "
            f"plus {rest} ({format_size(least - seed_reserve)}), {format_size(least)}",
        )
    return ReservoirConfig(size, seed_reserve)


def read_libvirt(table: Table) -> LibvirtConfig:
    table.only(*keys_of(LibvirtConfig))
    default = LibvirtConfig()
    uris = table.texts("uris", default.uris, 'an array of libvirt URIs like ["qemu:///system"]')
    transport = table.choice("transport", default.transport, ("socket", "stream"))
    trust_metadata = table.flag("trust_metadata", default.trust_metadata)
    for place, uri in enumerate(uris):
        try:
            parts = urlsplit(uri)
            host = parts.hostname or ""
        except ValueError:
            raise table.wrong(f"uris[{place}]", uri, URI_ALLOWED) from None
        if not parts.scheme or not uri.isprintable():
            raise table.wrong(f"uris[{place}]", uri, URI_ALLOWED)
        if transport == "socket" and host not in LOCAL_HOSTS:
            allowed = 'a URI of this host, or transport = "stream" for a remote one'
            raise table.wrong(f"uris[{place}]", uri, allowed)
    return LibvirtConfig(uris, transport, trust_metadata)


def read_quotas(file: str, tables: list[Table]) -> tuple[QuotaRule, ...]:
    rules: list[QuotaRule] = []
    try:
        for table in tables:
            table.only(*keys_of(QuotaRule))
            name = read_name(table, None)
            if name in QUOTA_NAMES_TAKEN:
                taken = " and ".join(f'"{name}"' for name in QUOTA_NAMES_TAKEN)
                raise table.wrong("name", name, f"a name other than {taken}, which the status uses itself")
            if any(name == rule.name for rule in rules):
                raise table.wrong("name", name, "a name that no other quota has")
            rules.append(
                QuotaRule(
                    name=name,
                    match=_match(table),
                    reservation=table.parsed("reservation", None, parse_rate),
                    weight=table.parsed("weight", None, parse_weight),
                    limit=table.parsed("limit", UNSET, parse_limit),
                    burst=table.parsed("burst", None, parse_size),
                    max_reservation=table.parsed("max_reservation", UNSET, parse_cap(parse_rate)),
                    max_weight=table.parsed("max_weight", UNSET, parse_cap(parse_weight)),
                    max_limit=table.parsed("max_limit", UNSET, parse_limit),
                    max_burst=table.parsed("max_burst", UNSET, parse_cap(parse_size)),
                )
            )
        check_rules(rules)
    except QuotaError as error:
        raise ConfigError(f"{file}: {error}") from None
    return tuple(rules)


def _match(table: Table) -> tuple[str, ...]:
    allowed = 'an array of patterns over names like ["db-*"], or of "uuid:" and a UUID'
    match = table.texts("match", (), allowed)
    mistyped = [pattern for pattern in match if not MATCH.fullmatch(pattern)]
    if not match or mistyped:
        raise table.wrong("match", list(match), allowed)
    return match


def read_admission(table: Table) -> AdmissionConfig:
    table.only(*keys_of(AdmissionConfig))
    default = AdmissionConfig()
    headroom = table.number("headroom", default.headroom, 0.0, 0.9)
    policy = table.choice("policy", default.policy, ("best-effort", "refuse"))
    max_domains = table.whole("max_domains", default.max_domains, 1, 65536)
    return AdmissionConfig(headroom, policy, max_domains)


def read_channels(tables: list[Table]) -> tuple[ChannelConfig, ...]:
    channels: list[ChannelConfig] = []
    for table in tables:
        table.only(*keys_of(ChannelConfig))
        name, path = read_name(table, None), read_path(table, "path", None, SUN_PATH_MAX)
        kind = table.choice("kind", ChannelConfig.kind, ("agent", "egd"))
        _refuse_double(table, name, path, channels, "channel")
        channels.append(ChannelConfig(name, path, kind))
        if sum(channel.is_pattern for channel in channels) > MAX_PATTERNS:
            raise table.wrong("path", path, f"at most {MAX_PATTERNS} paths with * or ?")
    return tuple(channels)


def read_serves(tables: list[Table], taken: Mapping[str, str]) -> tuple[ServeConfig, ...]:
    """``taken``: paths that are used, and for what.  A source among them would be fed by itself."""
    serves: list[ServeConfig] = []
    for table in tables:
        table.only(*keys_of(ServeConfig))
        name, path = read_name(table, None), read_path(table, "path", None, SUN_PATH_MAX)
        _refuse_double(table, name, path, serves, "serve")
        place = os.path.normpath(path)
        if place in taken:
            found = f"found {spell(path)}, which is that of {taken[place]}; allowed: another"
            raise table.error("path", found)
        if path.endswith("/") or "*" in path or "?" in path:  # as if it were a [[channel]]
            raise table.wrong("path", path, "the path of one socket, without wildcards")
        serves.append(ServeConfig(name, path))
    return tuple(serves)


def _refuse_double(
    table: Table, name: str, path: str, others: Sequence[ChannelConfig | ServeConfig], what: str
) -> None:
    if any(name == other.name for other in others):
        raise table.wrong("name", name, f"a name that no other {what} has")
    if any(os.path.normpath(path) == os.path.normpath(other.path) for other in others):
        raise table.wrong("path", path, f"a path that no other {what} has")


def keys_of(model: type) -> tuple[str, ...]:
    """A table's keys are the names of the fields of what it becomes."""
    return tuple(field.name for field in dataclasses.fields(model))


def read_name(table: Table, default: str | None) -> str:
    name = table.text("name", default, NAME_ALLOWED)
    if not NAME.fullmatch(name):
        raise table.wrong("name", name, NAME_ALLOWED)
    return name


def read_path(table: Table, key: str, default: str | None, max_bytes: int = 4095) -> str:
    allowed = "an absolute path"
    if max_bytes == SUN_PATH_MAX:
        allowed += f" of at most {max_bytes} bytes, as a socket's must be"
    path = table.text(key, default, allowed)
    if not path.startswith("/") or "\0" in path or len(path.encode("utf-8", "surrogateescape")) > max_bytes:
        raise table.wrong(key, path, allowed)
    return path
