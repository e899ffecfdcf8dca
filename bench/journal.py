# SPDX-License-Identifier: Apache-2.0
"""The daemon's log, as lines with their times. Pure."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import NamedTuple

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) (\w+) ([\w.]+): (.*)")


class Entry(NamedTuple):
    """`time` is Unix time, to the millisecond."""

    time: float
    level: str
    logger: str
    text: str


def entries(log: str) -> Iterator[Entry]:
    """All lines that are whole."""
    for line in log.splitlines(keepends=True):
        found = _LINE.fullmatch(line.rstrip("\n"))
        if found is not None and line.endswith("\n"):
            when, milliseconds, level, logger, text = found.groups()
            second = datetime.datetime.strptime(when, "%Y-%m-%d %H:%M:%S").timestamp()
            yield Entry(second + int(milliseconds) / 1000, level, logger, text)
