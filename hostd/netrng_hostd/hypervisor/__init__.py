# SPDX-License-Identifier: Apache-2.0
"""libvirt, behind typed walls: the only package that imports it."""

from __future__ import annotations

from netrng_hostd.hypervisor.domain_xml import LiveChannel, LiveDomain, QuotaElement
from netrng_hostd.hypervisor.errors import (
    DeniedError,
    HypervisorError,
    NoDomainError,
    UnreachableError,
    UnsupportedError,
)

__all__ = [
    "DeniedError",
    "HypervisorError",
    "LiveChannel",
    "LiveDomain",
    "NoDomainError",
    "QuotaElement",
    "UnreachableError",
    "UnsupportedError",
]
