# SPDX-License-Identifier: Apache-2.0
"""Everything that libvirt can refuse, as one exception tree.

::

    HypervisorError             what, where and what to do, in one line
    ├── UnreachableError        no libvirtd there, or the connection to it was lost
    ├── DeniedError             libvirtd, or the permissions of its socket, refuse us
    ├── UnsupportedError        this hypervisor, or this domain, cannot do that
    └── NoDomainError           no such domain (any more)

``libvirt.libvirtError`` is translated here, once, and never leaves this package.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from netrng_hostd.hypervisor.binding import libvirt


class HypervisorError(Exception):
    """libvirt said no; ``str()`` is one line: where, what, what to do."""


class UnreachableError(HypervisorError):
    """Nobody answers at the URI, or the connection broke."""


class DeniedError(HypervisorError):
    """Permission, authentication or libvirt's access control refused it."""


class UnsupportedError(HypervisorError):
    """The driver, or this kind of domain, does not know the operation."""


class NoDomainError(HypervisorError):
    """The domain does not exist, or does not exist any more."""


_HINTS = {
    UnreachableError: "is libvirtd (or virtqemud, virtxend) running there?",
    DeniedError: "run as root, or as a member of the group libvirt",
}


@contextmanager
def translated(uri: str, doing: str) -> Iterator[None]:
    """Turn a libvirtError of the body into a HypervisorError that begins with ``uri: doing``."""
    if libvirt is None:
        raise UnreachableError(
            f"{uri}: cannot {doing}: Python's libvirt module is not installed (Debian: python3-libvirt)"
        )
    try:
        yield
    except libvirt.libvirtError as error:
        kind = _classify(error)
        text = one_line(f"{uri}: cannot {doing}: {error.get_error_message() or error}")
        hint = _HINTS.get(kind)
        raise kind(f"{text}; {hint}" if hint else text) from error


def one_line(text: str) -> str:
    """The text without line breaks and other control characters, at most 500 characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:500]


def _classify(error: Any) -> type[HypervisorError]:
    code, domain, number = error.get_error_code(), error.get_error_domain(), error.get_int1()
    if code == libvirt.VIR_ERR_SYSTEM_ERROR and domain == libvirt.VIR_FROM_RPC:
        # int1 is the errno of connect(2), read(2) or write(2) on libvirtd's socket.
        return DeniedError if number in (errno.EACCES, errno.EPERM) else UnreachableError
    if code in _DENIED:
        return DeniedError
    if code in _UNSUPPORTED:
        return UnsupportedError
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return NoDomainError
    if code == libvirt.VIR_ERR_NO_CONNECT or (
        code in _BROKEN and domain in (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE)
    ):
        return UnreachableError
    return HypervisorError


def _codes(*names: str) -> frozenset[int]:
    """The numbers of those error names that the installed libvirt knows."""
    return frozenset(
        getattr(libvirt, "VIR_ERR_" + name) for name in names if hasattr(libvirt, "VIR_ERR_" + name)
    )


_DENIED = _codes("OPERATION_DENIED", "ACCESS_DENIED", "AUTH_FAILED", "AUTH_CANCELLED", "AUTH_UNAVAILABLE")
_UNSUPPORTED = _codes("NO_SUPPORT", "CONFIG_UNSUPPORTED", "OPERATION_UNSUPPORTED", "ARGUMENT_UNSUPPORTED")
_BROKEN = _codes("INTERNAL_ERROR", "RPC", "NO_SERVER", "NO_CLIENT", "INVALID_CONN")
