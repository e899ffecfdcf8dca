# SPDX-License-Identifier: Apache-2.0
"""Whether the sockets of channels and virtio-rngs can be reached, one VM at each. None is connected to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from netrng_hostd.config import ChannelConfig, Config
from netrng_hostd.core.spelling import printable
from netrng_hostd.discovery.globs import Scan, assign
from netrng_hostd.discovery.sockets import scan
from netrng_hostd.hypervisor import LiveChannel, LiveDomain
from netrng_hostd.hypervisor.domain_xml import VIRTIO_RNG
from netrng_hostd.operate.administer import command_line
from netrng_hostd.operate.check.finding import Finding, TooLate, note, problem, within


def check_domain(name: str, domain: LiveDomain, config: Config) -> Iterator[Finding]:
    """What a running domain has to be served by; ``name`` is printable."""
    if domain.rng is not None:
        yield from _check_rng(name, domain, domain.rng, config)
    if domain.channel is not None:
        if config.libvirt.transport == "socket":
            yield from _check_channel(name, domain.channel)
    elif domain.rng is None:
        yield note(f"{name} has no channel; give it one: {command_line('attach', name, domain.uri)}")


def find_channels(config: Config, scan_s: float) -> tuple[list[ChannelConfig], list[Finding]]:
    """The channels of the configuration as the daemon would find them now, and what is wrong with them."""
    found: list[Finding] = []
    scans: dict[ChannelConfig, Scan] = {}
    for channel in config.channels:
        if not channel.is_pattern:
            continue
        try:
            scans[channel] = within(scan_s, partial(scan, channel.path))
        except TooLate:
            found.append(
                problem(
                    f"{channel.name}: no answer from the file system of {channel.path} in {scan_s:g} s; "
                    "mend its mount, or name a folder on another"
                )
            )
    channels, notices = assign(config.channels, scans, {})
    found += [problem(notice.text) for notice in notices if notice.wrong]
    found += [
        note(f"{channel.name}: no socket matches {channel.path}; no VM is on, or none has such a chardev")
        for channel, seen in scans.items()
        if not seen.found and not seen.unread
    ]
    return list(channels.values()), found


def check_sockets(
    channels: Iterable[ChannelConfig], domains: Iterable[LiveDomain], config: Config
) -> Iterator[Finding]:
    """Those that several have, and the ``channels`` of the configuration; ``domains`` are this host's."""
    owners = _owners(domains)
    yield from _check_shared(owners)
    ours = {os.path.realpath(path) for path in (config.control, *(one.path for one in config.serves))}
    for channel in channels:
        if os.path.realpath(channel.path) in ours:
            yield problem(f"{channel.name}: {channel.path} is netrng-hostd's own socket; name another path")
            continue
        theirs = [domain for domain, _ in owners.get(os.path.realpath(channel.path), [])]
        if theirs:
            yield problem(
                f"{channel.name}: {channel.path} is the socket of {_names(theirs)}, which libvirt "
                "lists: two channels on one socket, of which one waits for ever; take the [[channel]] out"
            )
        else:
            yield from _check_static(channel.name, channel.path)


Owners = dict[str, list[tuple[LiveDomain, LiveChannel]]]


def _owners(domains: Iterable[LiveDomain]) -> Owners:
    """Domains, and what they have there, by the real paths of their sockets."""
    owners: Owners = {}
    for domain in domains:
        for channel in (domain.channel, domain.rng):
            if channel is not None and channel.path is not None:
                owners.setdefault(os.path.realpath(channel.path), []).append((domain, channel))
    return owners


def _names(domains: Sequence[LiveDomain]) -> str:
    return " and ".join({domain.uuid: printable(domain.name) for domain in domains}.values())


def _check_shared(owners: Owners) -> Iterator[Finding]:
    """Sockets of several domains, and domains that two URIs list."""
    twins: dict[tuple[str, ...], None] = {}  # URIs; in their order, each once
    for path, there in owners.items():
        uris_of: dict[tuple[str, str], tuple[str, ...]] = {}  # by UUID and what it has there
        for domain, channel in there:
            key = (domain.uuid, channel.kind)
            uris_of[key] = (*uris_of.get(key, ()), domain.uri)
        kinds = {channel.kind == VIRTIO_RNG for _, channel in there}
        if len(uris_of) > 1:
            yield problem(f"{_names([domain for domain, _ in there])}: {_shared(kinds, path)}")
        twins.update(dict.fromkeys(uris for uris in uris_of.values() if len(uris) > 1))
    for uris in twins:
        yield problem(
            f"libvirt.uris: {' and '.join(uris)} are the same libvirt: each domain has several channels on "
            "one socket, of which one is served; keep one of them"
        )


def _shared(kinds: set[bool], path: str) -> str:
    if kinds == {False}:
        return (
            f"their channels have the same socket, {path}; "
            "take <source> out of the channel's XML, and libvirt gives each its own"
        )
    what = "virtio-rng devices" if kinds == {True} else "channel and virtio-rng"
    return (
        f"their {what} have the same socket, {path}, as a copied definition has; give each its own: "
        "netrng-hostd detach --virtio-rng, then attach --virtio-rng"
    )


def _check_channel(name: str, channel: LiveChannel) -> Iterator[Finding]:
    if channel.mode == "connect":
        yield problem(
            f"{name}: its channel has <source mode='connect'>; netrng needs mode='bind'; "
            f"take <source> out of the channel's XML: netrng-hostd xml{_for(channel)} shows it"
        )
    elif channel.path is None:
        yield problem(f"{name}: libvirt shows no socket for its channel; restart the domain")
    else:
        yield from _check_socket(name, channel.path)


def _check_rng(name: str, domain: LiveDomain, rng: LiveChannel, config: Config) -> Iterator[Finding]:
    if config.libvirt.transport == "stream":
        text = f'{name}: its virtio-rng is not served: transport = "stream" carries channels alone'
        if domain.channel is None:
            text += f"; give it a channel: {command_line('attach', name, domain.uri)}"
        yield note(text)
    elif rng.path is None:
        yield problem(f"{name}: libvirt shows no socket for its virtio-rng; restart the domain")
    else:
        yield from _check_socket(name, rng.path)


def _for(channel: LiveChannel) -> str:
    return " --xen" if channel.kind == "xen" else ""


def _check_static(name: str, path: str) -> Iterator[Finding]:
    try:
        there = Path(path).exists()
    except PermissionError:
        there = True
    if there:
        yield from _check_socket(name, path)
    else:
        yield note(f"{name}: no socket at {path}; the VM is off, or its QEMU has no such chardev")


def _check_socket(name: str, path: str) -> Iterator[Finding]:
    """Whether this user could connect."""
    try:
        if not Path(path).exists():
            yield problem(f"{name}: no socket at {path}, where libvirt says it is; restart the domain")
            return
        if not Path(path).is_socket():
            yield problem(f"{name}: {path} is not a socket; set the path of the QEMU chardev's")
            return
        denied = not os.access(path, os.W_OK, effective_ids=True)
    except PermissionError:
        denied = True
    if denied:
        yield problem(
            f"{name}: permission denied: {path}; run as root with CAP_DAC_OVERRIDE, or as the VM's user"
        )
