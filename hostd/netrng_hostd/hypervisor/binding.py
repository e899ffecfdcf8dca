# SPDX-License-Identifier: Apache-2.0
"""libvirt's Python binding, or None where it is not installed.

A host without libvirt (sockets named in the configuration) runs without it; whoever needs it gets an
UnreachableError that names the package.
"""

from __future__ import annotations

try:
    import libvirt
except ImportError:  # pragma: no cover - a host without the package
    libvirt = None

__all__ = ["libvirt"]
