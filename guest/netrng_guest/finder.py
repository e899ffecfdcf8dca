# SPDX-License-Identifier: Apache-2.0
"""Where the channel org.netrng.0 is: a virtio-serial port, else a console of Xen's.  Neither needs udev.

A virtio-serial port (drivers/char/virtio_console.c): /sys/class/virtio-ports/vportNpM/name holds the name
that the host gave it, and the device is /dev/vportNpM.  Of a Xen console only xenstore knows the name.
"""

import os
from typing import Optional

from . import xenstore

NAME = "org.netrng.0"
SYSFS = "/sys/class/virtio-ports"
DEV = "/dev"
ATTACH = "on the host: netrng-hostd attach DOMAIN"
# xl 4.17 makes the first channel of a domain its primary console: no name of it is left in xenstore.
ATTACH_XEN = ATTACH + (
    ", then switch the domain off and start it; with xl: in its xl.cfg, after a dummy (the first one is lost)"
)


class NoChannel(Exception):
    """This VM has no channel, in one line; ``how`` is what to do."""

    def __init__(self, text: str, how: str) -> None:
        super().__init__(text)
        self.how = how


def find_channel(sysfs: str = SYSFS, dev: str = DEV) -> str:
    """The channel's device.  Raises NoChannel."""
    port = find_virtio(sysfs, dev)
    if port is not None:
        return port
    xenbus = xenstore.find_device()
    if xenbus is not None:
        return _find_xen(xenbus, dev)
    if not os.path.isdir(sysfs):
        how = "modprobe virtio_console, or " + ATTACH
        raise NoChannel("no channel {}: neither virtio-serial nor Xen is here".format(NAME), how)
    raise NoChannel("no channel " + NAME, ATTACH)


def how_to_attach(path: str) -> str:
    """What to do where the channel's device, a port or a console, is not usable."""
    return ATTACH_XEN if os.path.basename(path).startswith("hvc") else ATTACH


def find_virtio(sysfs: str = SYSFS, dev: str = DEV) -> Optional[str]:
    """The device of the port with our name, None if there is none."""
    try:
        ports = sorted(os.listdir(sysfs))
    except OSError:
        return None
    for port in ports:
        try:
            with open(os.path.join(sysfs, port, "name"), encoding="ascii", errors="replace") as file:
                if file.read(256).strip() == NAME:
                    return os.path.join(dev, port)
        except OSError:
            continue  # detached while we looked, or a console without a name
    return None


def _find_xen(xenbus: str, dev: str) -> str:
    """Which /dev/hvcN Linux made of the console with our name.

    Linux takes the consoles in xenstore's order, refuses those whose number ends in 0 (xencons_probe in
    drivers/tty/hvc/hvc_xen.c) and gives each of the others the next N (hvc_alloc in hvc_console.c); hvc0 is
    the primary console, which is not among them.
    """
    try:
        with xenstore.Xenstore(xenbus, seconds=xenstore.SEARCH_S) as store:
            taken = [devid for devid in store.entries("device/console") if not devid.endswith("0")]
            for number, devid in enumerate(taken, 1):
                if store.read("device/console/{}/name".format(devid)) == NAME:
                    return os.path.join(dev, "hvc{}".format(number))
    except xenstore.XenstoreError as error:
        how = "run it as root, and see that xenstored runs in dom0; or name the device: --channel /dev/hvcN"
        raise NoChannel("no channel {} found: {}".format(NAME, error), how) from None
    raise NoChannel("no channel " + NAME, ATTACH_XEN)
