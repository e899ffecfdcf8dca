# SPDX-License-Identifier: Apache-2.0
"""Which sockets are which channels: the part that looks at nothing on this host.

A [[channel]] whose path has wildcards stands for every socket that matches; each is a channel of its own,
named NAME-STEM, where STEM is what the wildcards matched: "pve" with /run/qemu-server/*.netrng makes
"pve-101" of 101.netrng.  Quotas match that name, so it is one socket's, as long as that is there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from netrng_hostd.config import ChannelConfig
from netrng_hostd.config.sections import SUN_PATH_MAX
from netrng_hostd.core.spelling import printable

MAX_SOCKETS = 4096  # for each [[channel]]: a folder that somebody fills does not fill the daemon
MAX_NOTICES = 8  # of one kind for each [[channel]]; the others are counted

_RUN = re.compile(r"([*?]+)")


class Found(NamedTuple):
    """A socket that a pattern matches; ``real``: its path without symbolic links."""

    path: str
    stem: str
    real: str


class Scan(NamedTuple):
    """What was seen for one pattern.

    ``unread``: folders that could not be read, and why; what was known below them may still be there.
    ``missing``: the folder before the first wildcard, if there is none.  ``more``: there are more than
    MAX_SOCKETS.
    """

    found: tuple[Found, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()
    missing: str = ""
    more: bool = False


class Notice(NamedTuple):
    """One line for a person; ``wrong``: something is to be mended."""

    wrong: bool
    text: str


def component(pattern: str) -> re.Pattern[str] | None:
    """One component of a path as an expression, with a group for each run of wildcards; None without any.

    Like a shell's, a wildcard matches no leading dot.  Whatever somebody calls a file, matching takes time in
    proportion to its name: a star never gives back what it took (the lookaheads), and need not, because what
    comes first between two stars is as good as any.
    """
    first, *rest = _RUN.split(pattern)
    if not rest:
        return None
    parts = ["" if first else r"(?!\.)", re.escape(first)]
    open_star = -1  # where the piece begins that the last star looks for
    for number, (run, literal) in enumerate(zip(rest[::2], rest[1::2])):
        least = run.count("?")
        if "*" in run:
            if open_star >= 0:
                parts[open_star] = f"(?=(?P<atom{number}>{parts[open_star]}"
                parts.append(f"))(?P=atom{number})")
            open_star = len(parts)
            parts.append(f"(?P<wild{number}>.{{{least},}}?)")
        else:
            parts.append(f"(?P<wild{number}>.{{{least}}})")
        parts.append(re.escape(literal))
    return re.compile("".join(parts) + r"\Z", re.DOTALL)


def matched(expression: re.Pattern[str], name: str) -> list[str] | None:
    """What the wildcards matched; None if it does not match."""
    match = expression.match(name)
    if match is None:
        return None
    return [match[group] for group in expression.groupindex if group.startswith("wild")]


def oddness(path: str) -> str:
    """Why a socket of that path cannot be a channel, "" if it can."""
    if not path.isprintable():  # which what is no UTF-8 is not, either
        return "its name has characters that cannot be printed"
    if len(path.encode()) > SUN_PATH_MAX:
        return f"a socket's path has at most {SUN_PATH_MAX} bytes"
    return ""


def assign(
    configs: Sequence[ChannelConfig],
    scans: Mapping[ChannelConfig, Scan],
    served: Mapping[str, ChannelConfig],
) -> tuple[dict[str, ChannelConfig], list[Notice]]:
    """The channels by name, of those that are ``served`` now and of what was seen; and what is to be said.

    A channel without wildcards is there always and comes first.  A socket that several match is the first
    one's, and a name that several sockets would get is that of the one that has it, else the first one's.
    """
    wanted = {config.name: config for config in configs if not config.is_pattern}
    notices: list[Notice] = []
    owners = {config.path: config.name for config in wanted.values()}  # by path, and real path
    claims: list[ChannelConfig] = []
    for config in configs:
        scan = scans.get(config)
        if config.is_pattern and scan is not None:
            notices += _troubles(config, scan)
            mine, doubles = _own(config, scan, served, owners)
            claims += mine
            notices += _few(config, doubles)
    clashes: dict[str, list[str]] = {}
    for claim in sorted(claims, key=lambda claim: served.get(claim.name) != claim):
        holder = wanted.setdefault(claim.name, claim)
        if holder is not claim:
            clashes.setdefault(claim.name, []).append(claim.path)
    for name, paths in list(clashes.items())[:MAX_NOTICES]:
        others = f"{printable(paths[0])}{f' and {len(paths) - 1} more' if paths[1:] else ''}"
        notices.append(
            Notice(
                True,
                f"{name}: is the channel of {printable(wanted[name].path)}, and {others} would get the same "
                "name: not served; give one of the [[channel]] another name",
            )
        )
    return wanted, notices


def carried(before: Scan, after: Scan) -> Scan:
    """``after`` with what was known before in the folders that could not be read."""
    unread = tuple(f"{folder.rstrip('/')}/" for folder, _ in after.unread)
    if not unread:
        return after
    there = {found.path for found in after.found}
    kept = [found for found in before.found if found.path not in there and found.path.startswith(unread)]
    return after._replace(found=tuple(sorted((*after.found, *kept)[:MAX_SOCKETS])))


def difference(
    served: Mapping[str, ChannelConfig], wanted: Mapping[str, ChannelConfig]
) -> tuple[list[ChannelConfig], list[ChannelConfig]]:
    """Those that are gone, and those that are new; one that changed is in both."""
    gone = [config for name, config in served.items() if wanted.get(name) != config]
    new = [config for name, config in wanted.items() if served.get(name) != config]
    return gone, new


def _own(
    config: ChannelConfig, scan: Scan, served: Mapping[str, ChannelConfig], owners: dict[str, str]
) -> tuple[list[ChannelConfig], list[str]]:
    """The sockets that nobody before it has; and why not the others.  Writes down whose they are now."""
    mine, doubles = [], []
    kept = {one.path for one in served.values()}
    for found in sorted(scan.found, key=lambda found: (found.path not in kept, found.path)):
        odd = oddness(found.path)
        owner = owners.get(found.path) or owners.get(found.real)
        if odd:
            doubles.append(f"{printable(found.path)} is not served: {odd}")
        elif owner is not None:
            doubles.append(f"{printable(found.path)} is served as {owner} already")
        else:
            name = "-".join(filter(None, (config.name, found.stem)))
            owners[found.path] = owners[found.real] = name
            mine.append(ChannelConfig(name, found.path, config.kind))
    return mine, doubles


def _troubles(config: ChannelConfig, scan: Scan) -> Iterable[Notice]:
    if scan.missing:
        yield Notice(False, f"{config.name}: no folder {printable(scan.missing)}; looking on")
    yield from _few(config, [f"{printable(folder)}: {why}" for folder, why in scan.unread])
    if scan.more:
        text = f"{config.name}: more than {MAX_SOCKETS} sockets match {printable(config.path)}"
        yield Notice(True, f"{text}; the others are left out")


def _few(config: ChannelConfig, texts: Collection[str]) -> Iterable[Notice]:
    for text in list(texts)[:MAX_NOTICES]:
        yield Notice(True, f"{config.name}: {text}")
    if len(texts) > MAX_NOTICES:
        yield Notice(True, f"{config.name}: and more like these: {len(texts) - MAX_NOTICES}")
