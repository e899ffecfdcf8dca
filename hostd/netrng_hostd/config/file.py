# SPDX-License-Identifier: Apache-2.0
"""From the file to a checked Config. Nothing on this host is looked at but the file itself."""

from __future__ import annotations

import os.path
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli

from netrng_hostd.config.model import DEFAULT_FILE, SYSTEM_CONTROL, Config, default_control
from netrng_hostd.config.sections import (
    SUN_PATH_MAX,
    read_admission,
    read_channels,
    read_libvirt,
    read_path,
    read_quotas,
    read_reservoir,
    read_serves,
)
from netrng_hostd.config.sources import read_policy, read_sources
from netrng_hostd.config.table import ConfigError, Table, spell

SAMPLE_SIZE_RANGE = (32, 65536)
INTEGERS = "whole numbers of 64 bits, as TOML has them"
KEYS = (
    "sample_size", "control", "reservoir", "libvirt", "source", "sources", "quota", "admission", "channel",
    "serve",
)  # fmt: skip


def load(path: str | None = None) -> Config:
    """Reads ``path``, or /etc/netrng/hostd.toml if there is one, or takes the built-in defaults.

    Raises ConfigError.
    """
    return _load(path, default_control)


def control_of(path: str | None = None) -> str:
    """Where the daemon that reads ``path`` is asked; the system's for a user who has no place for one.

    Raises ConfigError.
    """
    return _load(path, _control_to_ask).control


def _control_to_ask() -> str:
    try:
        return default_control()
    except ConfigError:
        return SYSTEM_CONTROL


def _load(path: str | None, default_control: Callable[[], str]) -> Config:
    file = path if path is not None else DEFAULT_FILE
    try:
        raw = Path(file).read_bytes()
    except FileNotFoundError:
        if path is None:
            return Config(control=default_control())
        raise ConfigError(f"{file}: not found; allowed: a file that exists, see conf/hostd.toml") from None
    except PermissionError:
        raise ConfigError(f"{file}: permission denied; run as root, or let this user read it") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    values = _toml(file, raw)
    _refuse_huge(file, values)
    return _config(file, values, default_control)


def _toml(file: str, raw: bytes) -> dict[str, Any]:
    try:
        return tomli.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}: line {line}: not UTF-8; allowed: a TOML file in UTF-8") from None
    except tomli.TOMLDecodeError as error:
        what, _, place = str(error).partition(" (at ")
        place = place.rstrip(")")
        if not place.startswith("line "):  # tomli: "end of document"
            place = f"line {len(raw.splitlines())}, at the end"
        raise ConfigError(f"{file}: {place}: not TOML: {what}") from None
    except RecursionError:
        raise ConfigError(f"{file}: not TOML that can be read: nested too deeply") from None
    except ValueError:  # newer Pythons convert no more than 4,300 digits
        raise ConfigError(f"{file}: found a number of thousands of digits, allowed: {INTEGERS}") from None


def _refuse_huge(file: str, values: dict[str, Any]) -> None:
    """TOML's integers have 64 bits. A larger one could not even be repeated in an error."""
    places: list[tuple[str, Any]] = [("", values)]
    while places:
        place, value = places.pop()
        if isinstance(value, dict):
            places += [(f"{place}.{spell(key)[1:-1]}".lstrip("."), item) for key, item in value.items()]
        elif isinstance(value, list):
            places += [(f"{place}[{number}]", item) for number, item in enumerate(value)]
        elif isinstance(value, int) and value.bit_length() > 63:
            raise ConfigError(f"{file}: {place}: found a larger number, allowed: {INTEGERS}")


def _config(file: str, values: dict[str, Any], default_control: Callable[[], str]) -> Config:
    top = Table(file, "", values)
    top.only(*KEYS)
    sample_size = top.whole("sample_size", Config.sample_size, *SAMPLE_SIZE_RANGE)
    control = read_path(top, "control", None if "control" in top else default_control(), SUN_PATH_MAX)
    sources = read_sources(top)
    policy, min_sources = read_policy(top.table("sources"), sources)
    channels = read_channels(top.tables("channel") or [])
    taken = {os.path.normpath(control): "control"}
    taken.update((os.path.normpath(channel.path), f"channel {channel.name}") for channel in channels)
    taken.update((os.path.normpath(one.path), f"source {one.name}") for one in sources if one.path)
    return Config(
        file=file,
        sample_size=sample_size,
        control=control,
        reservoir=read_reservoir(top.table("reservoir"), sample_size, len(sources)),
        libvirt=read_libvirt(top.table("libvirt")),
        sources=sources,
        policy=policy,
        min_sources=min_sources,
        quotas=read_quotas(file, top.tables("quota") or []),
        admission=read_admission(top.table("admission")),
        channels=channels,
        serves=read_serves(top.tables("serve") or [], taken),
    )
