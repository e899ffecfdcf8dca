# SPDX-License-Identifier: Apache-2.0
"""The domains of this Xen host that libvirt does not list, as xenstore shows them. Nothing is connected to.

libvirt lists what it started itself, and neither what xl nor what XAPI did. For each console of a domain
libxl writes a node below /local/domain/0/backend/console (tools/libs/light/libxl_console.c): a channel's has
a ``name``, the ``connection`` "socket" or "pty", and the socket's ``path``.  The first channel of xl 4.17 has
none: it is device 0, which the primary console overwrites (domcreate_launch_dm in libxl_create.c).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from netrng_guest.xenstore import Xenstore, XenstoreError, find_device
from netrng_hostd.config import DEFAULT_FILE, Config
from netrng_hostd.config.sections import SUN_PATH_MAX
from netrng_hostd.core.spelling import printable
from netrng_hostd.hypervisor.connection import drives_xen
from netrng_hostd.hypervisor.domain_xml import DEFAULT_CHANNEL_NAME
from netrng_hostd.operate.check.finding import Finding, TooLate, note, problem, within

CAPABILITIES = Path("/proc/xen/capabilities")  # of xenfs; "control_d" in dom0, empty in other domains
XENSTORE_S = 10.0
UNREADABLE = "\ufffd"  # Xenstore's mark for all but printable ASCII
LIBVIRTS = "/var/lib/libvirt/libxl/"  # where its Xen driver puts the sockets of its domains' channels
_DOMAINS = "/local/domain"
_BACKENDS = "/local/domain/0/backend"
_BY_OTHERS = "made by xl or XAPI, libvirt does not list it"
_NOT_ASKED = 'no URI in libvirt.uris lists it (if libvirt made it, put "xen:///system" there)'


class XenChannel(NamedTuple):
    """A console of the name that netrng looks for; what its node does not say is ""."""

    connection: str
    path: str


class XenDomain(NamedTuple):
    """A domain but dom0."""

    id: int
    name: str
    channel: XenChannel | None


def check_dom0(
    config: Config, listed: frozenset[int] | None, xenstore_s: float = XENSTORE_S
) -> Iterator[Finding]:
    """Says nothing where this is no dom0.

    ``listed``: ids of the domains at the xen: URIs; None where one of these did not answer.
    """
    if find_device() is None:
        return
    asked = any(map(drives_xen, config.libvirt.uris))
    try:
        domains = within(xenstore_s, lambda: read_domains(xenstore_s))
    except (TooLate, XenstoreError) as error:
        if asked:
            why = str(error) or f"no answer from xenstore in {xenstore_s:g} s; see whether xenstored runs"
            yield note(f"whether there are domains that libvirt does not list cannot be seen: {why}")
        return
    if listed is None:
        return
    shared = _sharing(domains)
    for path, sharers in shared.items():
        if not listed.issuperset(domain.id for domain in sharers):
            yield problem(
                f"{' and '.join(map(_who, sharers))}: their channels have the same socket, {path}; "
                "give each domU its own path in xl.cfg"
            )
    silent = listed.union(domain.id for sharers in shared.values() for domain in sharers)
    taken = {channel.name for channel in config.channels}
    for domain in domains:
        if domain.id not in silent:
            yield from _check_unlisted(domain, asked, config, taken)


def _who(domain: XenDomain) -> str:
    return f"{printable(domain.name)} (Xen domain {domain.id})"


def _check_unlisted(domain: XenDomain, asked: bool, config: Config, taken: set[str]) -> Iterator[Finding]:
    """``taken``: names of channels, to which one may be added."""
    who, channel = f"{_who(domain)}: {_BY_OTHERS if asked else _NOT_ASKED}", domain.channel
    if channel is None:
        yield note(
            f"{who}; it has no channel, or one that stands first in xl.cfg and is lost: "
            "a dummy must come first in channel = [...]"
        )
        return
    trouble = _trouble(channel)
    if trouble:
        yield problem(f"{who}; {trouble} in xl.cfg")
        return
    if os.path.realpath(channel.path) in {os.path.realpath(known.path) for known in config.channels}:
        return
    if not asked and channel.path.startswith(LIBVIRTS):
        # A static channel would have no quota in metadata, and no new session after a resume.
        yield note(f'{_who(domain)}: its channel is one of libvirt\'s; put "xen:///system" into libvirt.uris')
    else:
        name = channel_name(domain, taken)
        taken.add(name)
        yield note(
            f"{who}; to serve it, put these lines into {config.file or DEFAULT_FILE}:",
            "[[channel]]",
            f"name = {toml_string(name)}",
            f"path = {toml_string(channel.path)}",
        )


def read_domains(seconds: float) -> list[XenDomain]:
    """The domains that may have a channel; none if this is no dom0.

    Raises XenstoreError, also when there is no answer after ``seconds``.
    """
    if not _may_be_dom0():
        return []
    with Xenstore(seconds=seconds) as store:
        if not store.entries(_BACKENDS):
            return []
        found = []
        for number in _numbers(_all_domains(store)):
            home = f"{_DOMAINS}/{number}"
            name = store.read(f"{home}/name")
            # Without a name it has just ended; with a target it is another one's stub domain.
            if number and name and store.read(f"{home}/target") is None:
                found.append(XenDomain(number, name, _find_channel(store, number)))
        return found


def _all_domains(store: Xenstore) -> list[str]:
    try:
        return store.entries(_DOMAINS)
    except XenstoreError as error:
        if "E2BIG" in str(error):  # some 800, in MAX_PAYLOAD bytes
            raise XenstoreError("there are more domains than one answer of xenstore holds") from error
        raise


def _may_be_dom0() -> bool:
    try:
        return "control_d" in CAPABILITIES.read_text(encoding="ascii", errors="replace")
    except OSError:
        return True  # xenfs is not mounted; no other domain may look at the backends


def _find_channel(store: Xenstore, number: int) -> XenChannel | None:
    consoles = f"{_BACKENDS}/console/{number}"
    for device in _numbers(store.entries(consoles)):
        node = f"{consoles}/{device}"
        if store.read(f"{node}/name") == DEFAULT_CHANNEL_NAME:
            connection, path = (store.read(f"{node}/{key}") or "" for key in ("connection", "path"))
            return XenChannel(connection, path)
    return None


def _numbers(entries: list[str]) -> list[int]:
    return sorted(int(entry) for entry in entries if entry.isdecimal())


def _trouble(channel: XenChannel) -> str:
    """Why it cannot be served, and what to do; "" if it can."""
    if channel.connection == "pty" or not channel.path or channel.path.startswith("/dev/pts/"):
        return "its channel is no socket: set connection=socket and a path"
    if not channel.path.startswith("/") or UNREADABLE in channel.path:
        return f"its channel's socket is {channel.path}: set an absolute path of ASCII characters"
    if len(channel.path) > SUN_PATH_MAX:
        return f"its channel's socket has a path of more than {SUN_PATH_MAX} bytes: set a shorter one"
    return ""


def _sharing(domains: list[XenDomain]) -> dict[str, list[XenDomain]]:
    """By path, those whose channels have one socket, as copies of an xl.cfg do."""
    sockets: dict[str, list[XenDomain]] = {}
    for domain in domains:
        if domain.channel is not None and not _trouble(domain.channel):
            sockets.setdefault(os.path.realpath(domain.channel.path), []).append(domain)
    return {path: sharers for path, sharers in sockets.items() if len(sharers) > 1}


def channel_name(domain: XenDomain, taken: set[str]) -> str:
    """A name for its [[channel]]: its own, as far as one may be named so."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", domain.name).strip("_.-")[:48] or "domain"
    free, number = name, domain.id
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def toml_string(text: str) -> str:
    """A basic string of TOML, in ASCII: a terminal shows nothing else in every locale."""
    return '"' + "".join(map(_toml_character, text)) + '"'


def _toml_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if " " <= character <= "~":
        return character
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
