# SPDX-License-Identifier: Apache-2.0
"""What the tests of discovery share: a recorder of callbacks, waiting with a deadline, domains' XML."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator

import libvirt

from netrng_hostd.discovery.watcher import Timing, UriState, Watcher
from netrng_hostd.hypervisor import LiveDomain

DEADLINE_S = 60.0
UUID_A = "aaaaaaaa-0000-4000-8000-000000000001"
UUID_B = "bbbbbbbb-0000-4000-8000-000000000002"

# Events alone must do it unless a test says otherwise: the periodic listing is an hour away.
QUICK = Timing(
    relist_s=3600.0,
    debounce_s=0.02,
    max_debounce_s=0.02,
    backoff_s=0.02,
    max_backoff_s=0.1,
    answer_s=DEADLINE_S / 2,
    stop_s=DEADLINE_S,
    reopen_s=0.0,
)
IMPATIENT = QUICK._replace(answer_s=0.2, stop_s=0.2)  # with a libvirtd that hangs


def channel_xml(path: str, name: str = "org.netrng.0") -> str:
    source = f"<source mode='bind' path='{path}'/>"
    return f"<channel type='unix'>{source}<target type='virtio' name='{name}'/></channel>"


def domain_xml(name: str, uuid: str, devices: str = "") -> str:
    """A domain for libvirt's test driver."""
    return (
        f"<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>65536</memory><vcpu>1</vcpu>"
        f"<os><type>hvm</type></os><devices>{devices}</devices></domain>"
    )


class Recorder:
    """Every callback of a Watcher, in order, as (what, domain names or states)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.states: list[UriState] = []
        self.old: LiveDomain | None = None

    def watcher(self, uri: str, transport: str = "socket", timing: Timing = QUICK) -> Watcher:
        def changed(old: LiveDomain, new: LiveDomain) -> None:
            self.old = old
            self.calls.append(("changed", new.name))

        return Watcher(
            uri,
            transport,
            appeared=lambda domain: self.calls.append(("appeared", domain.name)),
            changed=changed,
            vanished=lambda domain: self.calls.append(("vanished", domain.name)),
            renewed=lambda domain: self.calls.append(("renewed", domain.name)),
            state_changed=self.states.append,
            timing=timing,
        )

    @property
    def state_names(self) -> list[str]:
        return [state.state for state in self.states]


async def until(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what or condition}"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(watcher: Watcher) -> AsyncIterator[asyncio.Task[None]]:
    """The watcher's run() as a task, cancelled at the end."""
    task = asyncio.create_task(watcher.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.contextmanager
def fake_hypervisor() -> Iterator[libvirt.virConnect]:
    """libvirt's built-in test hypervisor; every connection of this process sees the same one."""
    gc.collect()  # an earlier test's domain objects, in a cycle with a traceback, would keep its hypervisor
    connection = libvirt.open("test:///default")
    try:
        connection.lookupByName("test").destroy()  # the one it comes with
        yield connection
    finally:
        connection.close()


def paused_domain(
    name: str,
    uuid: str,
    source: str = "",
    *,
    channel: bool = True,
    controller: bool = True,
    acpi: bool = False,
) -> str:
    """The smallest real QEMU: no disk, no firmware to run, started paused; with ``acpi`` PCI devices can be
    plugged in."""
    serial = "<controller type='virtio-serial' index='0'/>" if controller else ""
    target = "<target type='virtio' name='org.netrng.0'/>"
    features = "<features><acpi/></features>" if acpi else ""
    chosen = f"<channel type='unix'>{source}{target}</channel>" if channel else ""
    return (
        f"<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid>"
        "<memory unit='MiB'>16</memory><vcpu>1</vcpu>"
        f"<os><type arch='x86_64' machine='pc'>hvm</type></os>{features}<devices>"
        "<emulator>/usr/bin/qemu-system-x86_64</emulator>"
        f"<controller type='usb' model='none'/><memballoon model='none'/>{serial}{chosen}"
        "</devices></domain>"
    )
