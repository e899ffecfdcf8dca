# SPDX-License-Identifier: Apache-2.0
"""`netrng-hostd attach`, `detach` and `xml`: the channel, or the virtio-rng, in a domain's libvirt XML."""

from __future__ import annotations

from typing import Callable

from netrng_hostd.hypervisor.administration import Definition
from netrng_hostd.hypervisor.domain_edit import CHANNEL, RNG, Device
from netrng_hostd.hypervisor.errors import DeniedError, HypervisorError, UnreachableError, UnsupportedError
from netrng_hostd.operate.administer import (
    ANSWER_S,
    DEFAULT_URI,
    Refused,
    Result,
    administer,
    command_line,
)
from netrng_hostd.operate.rng_device import SYSTEM_FOLDER, rng_path, rng_xml

# conf/libvirt/*.xml are these texts.
CHANNEL_VIRTIO = """\
<channel type='unix'>
  <target type='virtio' name='org.netrng.0'/>
</channel>
"""
CHANNEL_XEN = """\
<channel type='unix'>
  <target type='xen' name='org.netrng.0'/>
</channel>
"""
RNG_VIRTIO = rng_xml(f"{SYSTEM_FOLDER}/DOMAIN.netrng")

# What makes the hypervisor look at the definition again. To libvirt's Xen driver a reboot is the start of a
# new domain (libxlDomainShutdownHandleRestart in libxl_domain.c); a QEMU goes on with what it has.
_ACTIVE = "active after the next full power-off, not a guest reboot"
_GONE = "gone after the next full power-off, not a guest reboot"
_ACTIVE_XEN = "active after the next full power-off or guest reboot"
_GONE_XEN = "gone after the next full power-off or guest reboot"
# A channel's port is taken from a guest; a PCI device it has to give.
_HELD = "gone once the guest lets go of it, at the latest after its next full power-off"
_XEN = "Xen cannot hot-plug channels"
_SAVED = "active at its next full start: the next one restores a saved state"
_FOREIGN = (
    "it has another RNG device, which the guest's kernel may go on reading; take that one out, "
    "or choose in the guest: /sys/class/misc/hw_random/rng_current"
)


def xml(xen: bool = False, virtio_rng: bool = False) -> str:
    """The libvirt snippet: a channel for virtio or Xen, or an agentless virtio-rng device."""
    if virtio_rng:
        return RNG_VIRTIO
    return CHANNEL_XEN if xen else CHANNEL_VIRTIO


def attach(
    domain: str, uri: str = DEFAULT_URI, answer_s: float = ANSWER_S, *, virtio_rng: bool = False
) -> Result:
    """Add the channel, or the virtio-rng, to the domain (a name or UUID): to its definition, then to the
    running one.
    """
    return administer(uri, domain, _attach_rng if virtio_rng else _attach_channel, answer_s)


def detach(
    domain: str, uri: str = DEFAULT_URI, answer_s: float = ANSWER_S, *, virtio_rng: bool = False
) -> Result:
    """Remove it from the domain (a name or UUID): from its definition, then from the running one."""
    device = RNG if virtio_rng else CHANNEL
    return administer(uri, domain, lambda found, lines: _detach(device, found, lines), answer_s)


def _attach_channel(domain: Definition, lines: list[str]) -> None:
    _attach(CHANNEL, xml(domain.xen), domain, lines)


def _attach_rng(domain: Definition, lines: list[str]) -> None:
    if domain.xen:
        instead = command_line("attach", domain.name, domain.uri)
        raise Refused(f"{domain.name}: Xen has no virtio-rng; give it a channel: {instead}")
    _attach(RNG, rng_xml(rng_path(domain.uri, domain.name, domain.uuid)), domain, lines)
    if domain.has_foreign(RNG):
        lines.append(f"{domain.name}: {_FOREIGN}")


def _attach(device: Device, added: str, domain: Definition, lines: list[str]) -> None:
    kept, live = domain.kept(device), domain.live(device)
    if (kept or not domain.persistent) and (live or not domain.active):
        lines.append(f"{domain.name}: has the {device.name} already")
        return
    if domain.persistent and not kept:
        domain.attach_kept(device, added)
        lines.append(f"{domain.name}: {device.name} added to the definition{_later(domain)}")
    if domain.active and not live:
        refused = _try_live(device, domain, lambda: domain.attach_live(device, added))
        if refused:
            lines.append(f"{domain.name}: {_ACTIVE_XEN if domain.xen else _ACTIVE} ({refused})")
        else:
            note = "" if domain.persistent else f"; {_transient(device)}"
            lines.append(f"{domain.name}: {device.name} added to the running domain, active now{note}")


def _later(domain: Definition) -> str:
    if domain.active:
        return ""
    return f"; {_SAVED if domain.has_saved_state() else 'active at its next start'}"


def _detach(device: Device, domain: Definition, lines: list[str]) -> None:
    kept, live = domain.kept(device), domain.live(device)
    if not kept and not live:
        lines.append(f"{domain.name}: has no {device.name}")
        return
    if kept:
        domain.detach_kept(device, kept)
        saved = "" if domain.active or not domain.has_saved_state() else f"; {_SAVED}"
        lines.append(f"{domain.name}: {device.name} removed from the definition{saved}")
    if live:
        gone = True

        def remove() -> None:
            nonlocal gone
            gone = domain.detach_live(device, live)

        refused = _try_live(device, domain, remove)
        if refused:
            lines.append(f"{domain.name}: {_GONE_XEN if domain.xen else _GONE} ({refused})")
        elif gone:
            lines.append(f"{domain.name}: {device.name} removed from the running domain")
        else:
            lines.append(f"{domain.name}: {_HELD}")


def _try_live(device: Device, domain: Definition, change: Callable[[], None]) -> str:
    """Change the running domain; the reason if it cannot be done live and is in the definition."""
    try:
        change()
    except (DeniedError, UnreachableError):
        raise
    except HypervisorError as error:
        why = _XEN if domain.xen and isinstance(error, UnsupportedError) else str(error)
        if domain.persistent:
            return why
        raise type(error)(f"{domain.name}: {why}; {_transient(device)}") from error
    return ""


def _transient(device: Device) -> str:
    return f"it is transient: what creates it next time has to bring the {device.name} along"
