# SPDX-License-Identifier: Apache-2.0
"""domUs of the dom0 that this runs in, of its libvirt or of xl; a console channel is their job line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import libvirt

from bed import initramfs
from bed.inside import BOOT_S, PATIENCE, Inside
from bed.packages import ROOT, BedError
from bed.xen.images import BOOT

URI = "xen:///system"
MEMORY_MIB = 160
CMDLINE = "console=hvc0 quiet mitigations=off nokaslr cryptomgr.notests clocksource=tsc tsc=reliable"
_SOCKETS = Path("/run/bed")
NETRNG, JOBS = "org.netrng.0", "org.netrng.jobs"
_PID = Path("/run/libvirtd.pid")


class Dom0:
    """dom0's libvirt."""

    def __init__(self) -> None:
        self._connection: libvirt.virConnect | None = None

    def connection(self) -> libvirt.virConnect:
        """A connection that is alive."""
        if self._connection is None or not self._connection.isAlive():
            self._connection = libvirt.open(URI)
        return self._connection

    def kill_libvirtd(self) -> None:
        """As a crash would."""
        pid = int(_PID.read_text())
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.05)
        self._connection = None

    def start_libvirtd(self) -> None:
        """Starts it again, and waits until it answers."""
        subprocess.run(["libvirtd", "--daemon", "--timeout", "0"], check=True)
        deadline = time.monotonic() + PATIENCE * BOOT_S
        while True:
            try:
                self.connection()
            except libvirt.libvirtError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return


class DomU(Inside):
    """A PV domU.  ``channels``: the names of its console channels, /dev/hvc1 first."""

    def __init__(self, name: str, channels: Sequence[str]) -> None:
        super().__init__(name)
        self.image = Path(BOOT, f"{name}.cpio")
        self._channels = tuple(channels)
        _SOCKETS.mkdir(mode=0o700, exist_ok=True)
        self._socket = _SOCKETS / f"{name}.jobs"

    def line(self) -> Path | None:
        return self._socket if self._socket.exists() else None

    def device(self, channel: str = NETRNG) -> str:
        """The domU's end of the channel."""
        return f"/dev/hvc{1 + self._channels.index(channel)}"

    @property
    def console(self) -> Path:
        return Path(f"/var/log/xen/console/guest-{self.name}.log")

    def write_image(self, main: str, files: dict[str, bytes | Path]) -> None:
        """What it boots from the next time; ``main`` is a shell script that it then runs."""
        bed = {"name": self.name, "line": self.device(JOBS), "main": main}
        own = {**{f"bed/{name}": text.encode() for name, text in bed.items()}, **files}
        links = {"usr/sbin/rngd": "/opt/rng-tools5/usr/sbin/rngd"}
        initramfs.extend(Path(BOOT, "initramfs"), self.image, own, links)


class LibvirtDomU(DomU):
    """One of libvirt's Xen driver."""

    def __init__(self, host: Dom0, name: str, channels: Sequence[str]) -> None:
        super().__init__(name, channels)
        self.host = host
        self.uuid = str(uuid.uuid5(uuid.NAMESPACE_URL, name))

    def create(self) -> None:
        """Defines and starts it."""
        self.host.connection().defineXML(self._xml()).create()

    @property
    def domain(self) -> libvirt.virDomain:
        """libvirt's handle; valid until its libvirtd restarts.  Raises libvirtError when there is none."""
        return self.host.connection().lookupByUUIDString(self.uuid)

    def _xml(self) -> str:
        return f"""
<domain type='xen'>
  <name>{self.name}</name>
  <uuid>{self.uuid}</uuid>
  <memory unit='MiB'>{MEMORY_MIB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='xenpv'>linux</type>
    <kernel>{BOOT}/kernel</kernel>
    <initrd>{self.image}</initrd>
    <cmdline>{CMDLINE}</cmdline>
  </os>
  <clock offset='utc'><timer name='tsc' mode='native'/></clock>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <console type='pty'><target type='xen' port='0'/></console>
    {"".join(map(self._channel_xml, self._channels))}
  </devices>
</domain>"""

    def _channel_xml(self, channel: str) -> str:
        # Where netrng's socket is, libvirt chooses.
        source = "" if channel == NETRNG else f"<source mode='bind' path='{self._socket}'/>"
        return f"<channel type='unix'>{source}<target type='xen' name='{channel}'/></channel>"


class XlDomU(DomU):
    """One of xl, from contrib/xen/domu.cfg and with the job line before netrng's channel."""

    def __init__(self, name: str) -> None:
        super().__init__(name, (JOBS, NETRNG))

    def create(self) -> None:
        """Starts it."""
        text = (ROOT / "contrib/xen/domu.cfg").read_text()
        jobs = f'"connection=socket,path={self._socket},name={JOBS}"'
        text = _replaced(text, r'channel *= *\["[^"]*", *', rf"\g<0>{jobs}, ")
        boot = {"kernel": f"{BOOT}/kernel", "ramdisk": str(self.image), "extra": CMDLINE}
        for key, value in {"name": self.name, **boot}.items():
            text = _replaced(text, rf"{key} *=.*", f'{key} = "{value}"')
        file = Path(BOOT, f"{self.name}.cfg")
        file.write_text(_replaced(text, "memory *=.*", f'memory = {MEMORY_MIB}\ntsc_mode = "native"'))
        done = subprocess.run(["xl", "create", "-q", str(file)], capture_output=True, text=True)
        if done.returncode:
            raise BedError(f"xl create failed: {done.stderr.strip()}")


def _replaced(text: str, pattern: str, by: str) -> str:
    """With what begins one line replaced.  Raises BedError where no line begins so."""
    replaced, n = re.subn(f"(?m)^{pattern}", by, text)
    if n != 1:
        raise BedError(f"no line of the configuration of xl begins with {pattern}")
    return replaced
