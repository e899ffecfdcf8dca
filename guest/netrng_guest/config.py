# SPDX-License-Identifier: Apache-2.0
"""guest.conf and the flags that win over it.  An error is one line: file, key, found, allowed."""

import configparser
import os
import re
from typing import Dict, NamedTuple, Optional

from .demand import DEFAULT_WINDOW
from .wire import MAX_WINDOW, MIN_WINDOW

DEFAULT_PATH = "/etc/netrng/guest.conf"
DEFAULT_RATE = 100  # bytes per second
SECTION = "netrng"
RATE_FORMAT = 'bytes per second such as 100, "10KiB/s" or "2kB/s", or none'
SINK_FORMAT = "rngd, kernel, pipe:PATH or stdout"
# Rates are written as on the host (netrng_hostd.core.quota): case counts, a unit without "/s" is a size.
_UNITS = {
    "": 1, "B": 1, "kB": 10**3, "KiB": 1 << 10, "MB": 10**6, "MiB": 1 << 20, "GB": 10**9, "GiB": 1 << 30,
}  # fmt: skip
_AMOUNT = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,9}))? ?([A-Za-z]*)\Z")
MAX_RATE = 1 << 40  # bytes per second


class ConfigError(Exception):
    """What is wrong with the configuration, in one line."""


class Settings(NamedTuple):
    """``rate``: bytes per second, None leaves it to the sink's reader; ``channel`` None: look for it."""

    sink: str
    channel: Optional[str]
    rate: Optional[int]
    window: int


def parse_rate(text: str) -> Optional[int]:
    """Bytes per second; None for "none".  Raises ValueError."""
    if text == "none":
        return None
    amount = text.strip()
    if amount.endswith("/s"):
        amount = amount[:-2].strip()
    elif not amount.isdigit():
        raise ValueError(text)
    match = _AMOUNT.match(amount)
    if match is None or match.group(3) not in _UNITS:
        raise ValueError(text)
    decimals = match.group(2) or ""
    scale: int = 10 ** len(decimals)
    rate, fraction = divmod(int(match.group(1) + decimals) * _UNITS[match.group(3)], scale)
    if fraction or not 1 <= rate <= MAX_RATE:
        raise ValueError(text)
    return rate


def load(path: Optional[str], flags: Dict[str, str]) -> Settings:
    """The settings of ``path`` (None: the default place, where nothing need be) with ``flags`` put over them.

    Raises ConfigError.
    """
    values = dict(_read(path))
    values.update({key: ("--" + key, value) for key, value in flags.items()})
    sink = _take(values, "sink", "rngd")
    if sink not in ("rngd", "kernel", "stdout") and not re.match(r"pipe:.", sink):
        raise _wrong(values, "sink", SINK_FORMAT)
    if not _is_path(sink):
        raise _wrong(values, "sink", "a path that this locale can write")
    paced = sink in ("rngd", "kernel")  # a pipe and stdout are paced by whoever reads them
    try:
        rate = parse_rate(_take(values, "rate", str(DEFAULT_RATE) if paced else "none"))
    except ValueError:
        raise _wrong(values, "rate", RATE_FORMAT) from None
    if rate is None and sink == "rngd":
        raise _wrong(values, "rate", "with rngd a rate, because rngd takes whatever comes")
    window = _take(values, "window", str(DEFAULT_WINDOW))
    if not re.match(r"\d{1,6}\Z", window, re.ASCII) or not MIN_WINDOW <= int(window) <= MAX_WINDOW:
        raise _wrong(values, "window", "bytes, {} to {}".format(MIN_WINDOW, MAX_WINDOW))
    channel = _take(values, "channel", "")
    if "channel" in values and not _is_path(channel):
        raise _wrong(values, "channel", "a path")
    return Settings(sink, channel or None, rate, int(window))


_Values = Dict[str, "tuple[str, str]"]


def _read(path: Optional[str]) -> _Values:
    """Key → (where it was found, value)."""
    name = DEFAULT_PATH if path is None else path
    parser = configparser.ConfigParser(interpolation=None, strict=True, default_section="")
    try:
        with open(name, encoding="utf-8") as file:
            parser.read_file(file)
    except FileNotFoundError:
        if path is None:
            return {}
        raise ConfigError("{}: no such file".format(name)) from None
    except OSError as error:
        raise ConfigError("{}: {}".format(name, error.strerror)) from None
    except UnicodeDecodeError:
        raise ConfigError("{}: not UTF-8 text".format(name)) from None
    except configparser.Error as error:
        text = " ".join(str(error).split())
        raise ConfigError("{}: {}".format(name, text)) from None
    for section in parser.sections():
        if section != SECTION:
            raise ConfigError("{}: section [{}]: allowed is [{}]".format(name, section, SECTION))
    values = dict(parser.items(SECTION)) if parser.has_section(SECTION) else {}
    for key, value in values.items():
        if key not in Settings._fields:
            allowed = ", ".join(Settings._fields)
            raise ConfigError('{}: {}: found "{}", allowed keys are {}'.format(name, key, value, allowed))
    return {key: ("{}: {}".format(name, key), value.strip()) for key, value in values.items()}


def _is_path(text: str) -> bool:
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # Python 3.6 in the C locale
        return False


def _take(values: _Values, key: str, default: str) -> str:
    return values[key][1] if key in values else default


def _wrong(values: _Values, key: str, allowed: str) -> ConfigError:
    where, found = values.get(key, (key, ""))
    return ConfigError('{}: found "{}", allowed is {}'.format(where, found, allowed))
