# SPDX-License-Identifier: Apache-2.0
"""The virtio-rng that needs no agent: its libvirt XML, and where its socket is.

QEMU listens at the socket and asks in EGD's protocol.  libvirt chooses a path for a channel alone, so this
one has to be chosen here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from netrng_hostd.config.sections import LOCAL_HOSTS, SUN_PATH_MAX
from netrng_hostd.operate.administer import Refused

# libvirt's own folder, so one in which it may make a socket; /var/lib/libvirt/qemu of any privileged one.
SYSTEM_FOLDER = "/var/lib/libvirt/qemu"

# What is the same in XML, in a shell and in a [[channel]]'s path, where * and ? stand for others.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@:-]*")


def rng_xml(path: str) -> str:
    """The device, with its socket at ``path``."""
    return (
        "<rng model='virtio'>\n"
        "  <backend model='egd' type='unix'>\n"
        f"    <source mode='bind' path='{escape(path, {chr(39): '&apos;'})}'/>\n"
        "  </backend>\n"
        "</rng>\n"
    )


def rng_path(uri: str, name: str, uuid: str, environment: Mapping[str, str] = os.environ) -> str:
    """Where a domain's QEMU is to listen: by its name, or by its UUID if that makes no good file name.

    Raises Refused where no path would do.
    """
    folder = _folder(uri, environment)
    wanted = [f"{folder}/{stem}.netrng" for stem in (name, uuid) if _PLAIN.fullmatch(stem)]
    for path in wanted:
        if len(os.fsencode(path)) <= SUN_PATH_MAX:
            return path
    raise Refused(f"{name}: {wanted[-1]} is too long for a socket, {SUN_PATH_MAX} bytes are allowed")


def _folder(uri: str, environment: Mapping[str, str]) -> str:
    parts = urlsplit(uri)
    if parts.path != "/session":
        return SYSTEM_FOLDER
    if (parts.hostname or "") not in LOCAL_HOSTS:
        raise Refused(f"{uri}: where that libvirt has its folder is known on its host alone; run this there")
    base = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '')}/.config"
    folder = f"{base.rstrip('/')}/libvirt/qemu"
    if not _is_folder(folder):  # then no domain with a socket in it would start
        raise Refused(f"{uri}: no folder {folder}; set XDG_CONFIG_HOME to that of this libvirt")
    return folder


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:
        return False
