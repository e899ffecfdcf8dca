# SPDX-License-Identifier: Apache-2.0
"""The libvirt definition of a guest: as little hardware as boots, so that it boots soon."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

CHANNEL = "org.netrng.0"
CHANNEL_XML = f"<channel type='unix'><target type='virtio' name='{CHANNEL}'/></channel>"
# The last three only save time.
_KERNEL_ARGS = "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off i8042.nokbd"
# libvirt writes <source mode='bind' path='…'/> and then <target …>.
_CHANNEL_SOURCE = re.compile(
    rf"<source mode='bind' path='([^']+)'/>\s*<target type='virtio' name='{re.escape(CHANNEL)}'"
)


class Hardware(NamedTuple):
    """What a guest's machine has; bed.vm.VM explains it."""

    channel: bool
    controller: bool
    memory_mib: int
    metadata: str
    devices: str
    kernel_args: str
    cpu: str
    kvm: bool
    genid: bool


class Files(NamedTuple):
    """Where a guest's kernel, image, console and job line are on the host."""

    kernel: Path
    image: Path
    console: Path
    line: Path


def domain_xml(name: str, uuid: str, hardware: Hardware, files: Files) -> str:
    """The definition; libvirt chooses the path of the channel's socket."""
    controller = "<controller type='virtio-serial' index='0'/>" if hardware.controller else ""
    return f"""
<domain type='{"kvm" if hardware.kvm else "qemu"}'>
  <name>{escape(name)}</name>
  <uuid>{uuid}</uuid>
  {"<genid/>" if hardware.genid else ""}
  <metadata>{hardware.metadata}</metadata>
  <memory unit='MiB'>{hardware.memory_mib}</memory>
  <vcpu>1</vcpu>
  {hardware.cpu}
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{escape(str(files.kernel))}</kernel>
    <initrd>{escape(str(files.image))}</initrd>
    <cmdline>{escape(f"{_KERNEL_ARGS} {hardware.kernel_args}".strip())}</cmdline>
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'>
      <source path={quoteattr(str(files.console))} append='on'/><target port='0'/>
    </serial>
    <serial type='unix'>
      <source mode='bind' path={quoteattr(str(files.line))}/><target port='1'/>
    </serial>
    {CHANNEL_XML if hardware.channel else controller}
    {hardware.devices}
  </devices>
</domain>"""


def channel_socket(live_xml: str) -> Path | None:
    """Where the host's end of the channel is; None without one."""
    found = _CHANNEL_SOURCE.search(live_xml)
    return Path(found.group(1)) if found else None
