# SPDX-License-Identifier: Apache-2.0
"""`netrng-hostd attach`, `detach` and `xml`: the channel in a domain's libvirt XML."""

from __future__ import annotations

from typing import Callable

from netrng_hostd.hypervisor.administration import Definition
from netrng_hostd.hypervisor.errors import DeniedError, HypervisorError, UnreachableError, UnsupportedError
from netrng_hostd.operate.administer import ANSWER_S, DEFAULT_URI, Result, administer

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
RNG_VIRTIO = """\
<rng model='virtio'>
  <backend model='egd' type='unix'>
    <source mode='bind' path='/var/lib/libvirt/qemu/DOMAIN.netrng'/>
  </backend>
</rng>
"""

# What makes the hypervisor look at the definition again. To libvirt's Xen driver a reboot is the start of a
# new domain (libxlDomainShutdownHandleRestart in libxl_domain.c); a QEMU goes on with what it has.
_ACTIVE = "active after the next full power-off, not a guest reboot"
_GONE = "gone after the next full power-off, not a guest reboot"
_ACTIVE_XEN = "active after the next full power-off or guest reboot"
_GONE_XEN = "gone after the next full power-off or guest reboot"
_XEN = "Xen cannot hot-plug channels"
_SAVED = "active at its next full start: the next one restores a saved state"
_TRANSIENT = "it is transient: what creates it next time has to bring the channel along"


def xml(xen: bool = False, virtio_rng: bool = False) -> str:
    """The libvirt snippet: a channel for virtio or Xen, or an agentless virtio-rng device."""
    if virtio_rng:
        return RNG_VIRTIO
    return CHANNEL_XEN if xen else CHANNEL_VIRTIO


def attach(domain: str, uri: str = DEFAULT_URI, answer_s: float = ANSWER_S) -> Result:
    """Add the channel to the domain (a name or UUID): to its definition, then to the running one."""
    return administer(uri, domain, _attach, answer_s)


def detach(domain: str, uri: str = DEFAULT_URI, answer_s: float = ANSWER_S) -> Result:
    """Remove the channel from the domain (a name or UUID): from its definition, then from the running one."""
    return administer(uri, domain, _detach, answer_s)


def _attach(domain: Definition, lines: list[str]) -> None:
    channel = xml(domain.xen)
    kept, live = domain.kept_channel(), domain.live_channel()
    if (kept or not domain.persistent) and (live or not domain.active):
        lines.append(f"{domain.name}: has the channel already")
        return
    if domain.persistent and not kept:
        domain.attach_kept(channel)
        lines.append(f"{domain.name}: channel added to the definition{_later(domain)}")
    if domain.active and not live:
        refused = _try_live(domain, lambda: domain.attach_live(channel))
        if refused:
            lines.append(f"{domain.name}: {_ACTIVE_XEN if domain.xen else _ACTIVE} ({refused})")
        else:
            note = "" if domain.persistent else f"; {_TRANSIENT}"
            lines.append(f"{domain.name}: channel added to the running domain, active now{note}")


def _later(domain: Definition) -> str:
    if domain.active:
        return ""
    return f"; {_SAVED if domain.has_saved_state() else 'active at its next start'}"


def _detach(domain: Definition, lines: list[str]) -> None:
    kept, live = domain.kept_channel(), domain.live_channel()
    if not kept and not live:
        lines.append(f"{domain.name}: has no channel")
        return
    if kept:
        domain.detach_kept(kept)
        saved = "" if domain.active or not domain.has_saved_state() else f"; {_SAVED}"
        lines.append(f"{domain.name}: channel removed from the definition{saved}")
    if live:
        refused = _try_live(domain, lambda: domain.detach_live(live))
        if refused:
            lines.append(f"{domain.name}: {_GONE_XEN if domain.xen else _GONE} ({refused})")
        else:
            lines.append(f"{domain.name}: channel removed from the running domain")


def _try_live(domain: Definition, change: Callable[[], None]) -> str:
    """Change the running domain; the reason if it cannot be done live and is in the definition."""
    try:
        change()
    except (DeniedError, UnreachableError):
        raise
    except HypervisorError as error:
        why = _XEN if domain.xen and isinstance(error, UnsupportedError) else str(error)
        if domain.persistent:
            return why
        raise type(error)(f"{domain.name}: {why}; {_TRANSIENT}") from error
    return ""
