# SPDX-License-Identifier: Apache-2.0
"""`netrng-hostd attach`, `detach` and `xml`: the channel in a domain's libvirt XML."""

from __future__ import annotations

from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Callable, NamedTuple

from netrng_hostd.hypervisor.administration import Administration, Definition
from netrng_hostd.hypervisor.errors import DeniedError, HypervisorError, UnreachableError
from netrng_hostd.hypervisor.worker import Worker

DEFAULT_URI = "qemu:///system"

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

# libvirt itself waits at most seconds for a guest to let a device go.
_ANSWER_S = 60.0

_POWER_OFF = "active after the next full power-off, not a guest reboot"
_TRANSIENT = "it is transient: what creates it next time has to bring the channel along"


class Result(NamedTuple):
    """What to print, and the exit code: 0, or 1 when the last line is an error."""

    lines: tuple[str, ...]
    exit_code: int


def xml(xen: bool = False, virtio_rng: bool = False) -> str:
    """The libvirt snippet: a channel for virtio or Xen, or an agentless virtio-rng device."""
    if virtio_rng:
        return RNG_VIRTIO
    return CHANNEL_XEN if xen else CHANNEL_VIRTIO


def attach(domain: str, uri: str = DEFAULT_URI, answer_s: float = _ANSWER_S) -> Result:
    """Add the channel to the domain (a name or UUID): to its definition, then to the running one."""
    return _run(uri, domain, _attach, answer_s)


def detach(domain: str, uri: str = DEFAULT_URI, answer_s: float = _ANSWER_S) -> Result:
    """Remove the channel from the domain (a name or UUID): from its definition, then from the running one."""
    return _run(uri, domain, _detach, answer_s)


def _run(uri: str, domain: str, change: Callable[[Definition, list[str]], None], answer_s: float) -> Result:
    lines: list[str] = []

    def work() -> None:
        with Administration(uri) as administration:
            change(administration.find(domain), lines)

    # In a thread: a call into a libvirtd that hangs would not even end by Ctrl-C.
    worker = Worker(f"libvirt {uri}")
    job = worker.submit(work)
    worker.stop()
    try:
        job.result(answer_s)
    except HypervisorError as error:
        return Result((*lines, str(error)), 1)
    except FutureTimeoutError:
        return Result((*lines, f"{uri}: libvirtd did not answer within {answer_s:.0f} s"), 1)
    return Result(tuple(lines), 0)


def _attach(domain: Definition, lines: list[str]) -> None:
    channel = xml(domain.xen)
    kept, live = domain.kept_channel(), domain.live_channel()
    if (kept or not domain.persistent) and (live or not domain.active):
        lines.append(f"{domain.name}: has the channel already")
        return
    if domain.persistent and not kept:
        domain.attach_kept(channel)
        later = "" if domain.active else "; active at its next start"
        lines.append(f"{domain.name}: channel added to the definition{later}")
    if domain.active and not live:
        refused = _try_live(domain, lambda: domain.attach_live(channel))
        if refused:
            lines.append(f"{domain.name}: {_POWER_OFF} ({refused})")
        else:
            note = "" if domain.persistent else f"; {_TRANSIENT}"
            lines.append(f"{domain.name}: channel added to the running domain, active now{note}")


def _detach(domain: Definition, lines: list[str]) -> None:
    kept, live = domain.kept_channel(), domain.live_channel()
    if not kept and not live:
        lines.append(f"{domain.name}: has no channel")
        return
    if kept:
        domain.detach_kept(kept)
        lines.append(f"{domain.name}: channel removed from the definition")
    if live:
        refused = _try_live(domain, lambda: domain.detach_live(live))
        if refused:
            lines.append(f"{domain.name}: gone after the next full power-off, not a guest reboot ({refused})")
        else:
            lines.append(f"{domain.name}: channel removed from the running domain")


def _try_live(domain: Definition, change: Callable[[], None]) -> str:
    """Change the running domain; the reason if it cannot be done live and is in the definition."""
    try:
        change()
    except (DeniedError, UnreachableError):
        raise
    except HypervisorError as error:
        if domain.persistent:
            return str(error)
        raise type(error)(f"{error}; {_TRANSIENT}") from error
    return ""
