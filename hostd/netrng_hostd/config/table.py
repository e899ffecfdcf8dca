# SPDX-License-Identifier: Apache-2.0
"""A TOML table read strictly: an unknown key is a mistake, and so is a value of another type."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from netrng_hostd.core.spelling import QuotaError

T = TypeVar("T")
U = TypeVar("U")

FOUND_MAX = 60  # characters of a wrong value that are repeated in the error


class ConfigError(Exception):
    """The configuration cannot be used. The text is one line: file, key, what was found, what is allowed."""


def spell(value: object) -> str:
    """A TOML value as a person wrote it, on one line and not too long."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "an array of tables"
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= FOUND_MAX else text[: FOUND_MAX - 1] + "…"


class Table:
    """One table of ``file``; ``name`` is its dotted place, "" for the whole file.

    Each method takes a key and its default and returns the checked value; all raise ConfigError.
    """

    def __init__(self, file: str, name: str, values: dict[str, Any]) -> None:
        self._file = file
        self._name = name
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def error(self, key: str, text: str) -> ConfigError:
        """The error about ``key`` of this table ("" for the table itself)."""
        place = ".".join(part for part in (self._name, key) if part)
        return ConfigError(f"{self._file}: {place}: {text}" if place else f"{self._file}: {text}")

    def wrong(self, key: str, value: object, allowed: str) -> ConfigError:
        return self.error(key, f"found {spell(value)}, allowed: {allowed}")

    def only(self, *keys: str) -> None:
        """Raises ConfigError for the first key that is none of these."""
        for key in self._values:
            if key not in keys:
                close = difflib.get_close_matches(key, keys, n=1)
                hint = f', did you mean "{close[0]}"?' if close else ""
                raise self.error(spell(key)[1:-1], f"unknown key{hint}; allowed: {', '.join(keys)}")

    def text(self, key: str, default: str | None, allowed: str = "a string, not empty") -> str:
        """A string; a key without a default must be there."""
        value = self._values.get(key, default)
        if value is None:
            raise self.error(key, f"not found, but needed; allowed: {allowed}")
        if not isinstance(value, str) or not value:
            raise self.wrong(key, value, allowed)
        return value

    def choice(self, key: str, default: str, choices: Sequence[str]) -> str:
        value = self._values.get(key, default)
        allowed = " or ".join(f'"{choice}"' for choice in choices)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(key, value, allowed)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        value = self._values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(key, value, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self._values.get(key, default)
        # Not-a-number fails the comparison too.
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def parsed(self, key: str, default: T, parse: Callable[[object], U]) -> T | U:
        """A rate, limit, size or weight; ``parse`` is one of core.quota's."""
        if key not in self._values:
            return default
        try:
            return parse(self._values[key])
        except QuotaError as error:
            raise self.error(key, f"found {error}") from None

    def texts(self, key: str, default: Sequence[str], allowed: str) -> tuple[str, ...]:
        """An array of strings, none empty, none twice."""
        value = self._values.get(key, list(default))
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self.wrong(key, value, allowed)
        for item in value:
            if value.count(item) > 1:
                raise self.error(key, f"found {spell(item)} twice, allowed: {allowed}, each once")
        return tuple(value)

    def table(self, key: str) -> Table:
        """``[key]``; empty when it is not there."""
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, value, f"a table, [{key}]")
        return Table(self._file, key, value)

    def tables(self, key: str) -> list[Table] | None:
        """``[[key]]`` in the file's order; None when there is not one."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong(key, value, f"tables, each under its own [[{key}]]")
        return [Table(self._file, f"{key}[{place}]", item) for place, item in enumerate(value)]
