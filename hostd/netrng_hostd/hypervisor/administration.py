# SPDX-License-Identifier: Apache-2.0
"""Changing domains, with the administrator's rights: a read-write connection for one command."""

from __future__ import annotations

import uuid as uuid_module
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any

from netrng_hostd.hypervisor.binding import libvirt
from netrng_hostd.hypervisor.domain_edit import (
    Device,
    device_of,
    has_foreign,
    is_xen,
    with_device,
    without_device,
)
from netrng_hostd.hypervisor.domain_xml import (
    METADATA_NAMESPACE,
    METADATA_PREFIX,
    QuotaElement,
    find_quota,
    parse_domain,
    quota_xml,
)
from netrng_hostd.hypervisor.errors import NoDomainError, UnsupportedError, translated


class Administration:
    """A context manager; everything in it blocks and raises HypervisorError."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._conn: Any = None

    def __enter__(self) -> Administration:
        with translated(self.uri, "connect"):
            libvirt.registerErrorHandler(_silence, None)  # the exception says it already
            self._conn = libvirt.open(self.uri)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(libvirt.libvirtError):
            self._conn.close()

    def find(self, domain: str) -> Definition:
        """The domain of that name or UUID, running or not.  Raises NoDomainError."""
        try:
            with translated(self.uri, f"find the domain {domain}"):
                return Definition(self.uri, self._conn, self._conn.lookupByName(domain))
        except NoDomainError:
            try:
                uuid = str(uuid_module.UUID(domain))
            except ValueError:
                raise NoDomainError(
                    f"{self.uri}: no domain {domain}; `virsh -c {self.uri} list --all` shows what there is"
                ) from None
        with translated(self.uri, f"find the domain {domain}"):
            return Definition(self.uri, self._conn, self._conn.lookupByUUIDString(uuid))


class Definition:
    """A domain as it is kept (persistent) and as it runs (active): either or both."""

    def __init__(self, uri: str, conn: Any, domain: Any) -> None:
        self.uri = uri
        self._conn = conn
        self._domain = domain
        with translated(uri, "read the domain's state"):
            self.name = str(domain.name())
            self.uuid = str(domain.UUIDString())
            self.active = bool(domain.isActive())
            self.persistent = bool(domain.isPersistent())
            self.xen = is_xen(str(domain.XMLDesc(0)))

    def live(self, device: Device) -> str | None:
        """The XML of the running domain's device, None where it has none."""
        with translated(self.uri, f"read the live XML of {self.name}"):
            return device_of(str(self._domain.XMLDesc(0)), device) if self.active else None

    def kept(self, device: Device) -> str | None:
        """The XML of the persistent definition's device, None where it has none."""
        with translated(self.uri, f"read the definition of {self.name}"):
            inactive = libvirt.VIR_DOMAIN_XML_INACTIVE
            return device_of(str(self._domain.XMLDesc(inactive)), device) if self.persistent else None

    def has_foreign(self, device: Device) -> bool:
        """Whether it has one, as it runs or else as it is kept, that is not netrng's."""
        with translated(self.uri, f"read the XML of {self.name}"):
            return has_foreign(str(self._domain.XMLDesc(0)), device)

    def live_quota(self) -> QuotaElement | None:
        """What the running domain's metadata says, None where it says nothing."""
        with translated(self.uri, f"read the live XML of {self.name}"):
            return find_quota(parse_domain(str(self._domain.XMLDesc(0)))) if self.active else None

    def kept_quota(self) -> QuotaElement | None:
        """What the persistent definition's metadata says, None where it says nothing."""
        with translated(self.uri, f"read the definition of {self.name}"):
            inactive = libvirt.VIR_DOMAIN_XML_INACTIVE
            return find_quota(parse_domain(str(self._domain.XMLDesc(inactive)))) if self.persistent else None

    def has_saved_state(self) -> bool:
        """Whether its next start restores a managed save, with the live XML of the moment of the save."""
        try:
            with translated(self.uri, f"look for a saved state of {self.name}"):
                return self.persistent and bool(self._domain.hasManagedSaveImage(0))
        except UnsupportedError:
            return False

    def set_quota(self, attributes: Iterable[tuple[str, str]] | None, *, live: bool) -> None:
        """Replace what the metadata says, or remove it (None): in the running domain, or the definition."""
        where = "the running domain" if live else "the definition"
        try:
            with translated(self.uri, f"set the quota in the metadata of {where} {self.name}"):
                self._domain.setMetadata(
                    libvirt.VIR_DOMAIN_METADATA_ELEMENT,
                    None if attributes is None else quota_xml(attributes),
                    METADATA_PREFIX,
                    METADATA_NAMESPACE,
                    libvirt.VIR_DOMAIN_AFFECT_LIVE if live else libvirt.VIR_DOMAIN_AFFECT_CONFIG,
                )
        except UnsupportedError as error:
            raise UnsupportedError(f"{error}; give {self.name} a [[quota]] in hostd.toml instead") from error

    def attach_live(self, device: Device, xml: str) -> None:
        with translated(self.uri, f"add the {device.name} to the running {self.name}"):
            self._domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def detach_live(self, device: Device, xml: str) -> bool:
        """Whether it is gone: where the guest has a say in it, libvirt waits 5 s for it, and says nothing."""
        with translated(self.uri, f"remove the {device.name} from the running {self.name}"):
            self._domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        return self.live(device) is None

    def attach_kept(self, device: Device, xml: str) -> None:
        doing = f"add the {device.name} to the definition of {self.name}"
        try:
            with translated(self.uri, doing):
                self._domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        except UnsupportedError:
            with translated(self.uri, doing):
                self._conn.defineXML(with_device(self._whole_definition(), xml))

    def detach_kept(self, device: Device, xml: str) -> None:
        doing = f"remove the {device.name} from the definition of {self.name}"
        try:
            with translated(self.uri, doing):
                self._domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        except UnsupportedError:
            with translated(self.uri, doing):
                self._conn.defineXML(without_device(self._whole_definition(), device))

    def _whole_definition(self) -> str:
        # SECURE: with the passwords that a plain reading leaves out and a redefinition would lose.
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        return str(self._domain.XMLDesc(flags))


def _silence(_context: Any, _error: Any) -> None:
    pass
