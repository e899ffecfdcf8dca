# SPDX-License-Identifier: Apache-2.0
"""``netrng-guest check``: what is missing in this VM, and how to mend it."""

import os
import stat
from typing import List, Optional

from . import finder, port, variants
from .config import Settings
from .kernel import DEVICE
from .stdio import tell

CAP_SYS_ADMIN = 21  # linux/capability.h: what RNDADDENTROPY asks for
INSTALL = "apt install rng-tools5, or dnf install rng-tools; or --sink kernel, which needs none"
ANOTHER = "give another --channel, or none: it is then looked for"
RANDOM_DEVICES = ((1, 8), (1, 9))


class Findings:
    """Lines for the administrator; ``wrong`` counts what has to be mended."""

    def __init__(self) -> None:
        self.lines: List[str] = []
        self.wrong = 0

    def ok(self, text: str) -> None:
        """Something is as it should be."""
        self.lines.append("ok     " + text)

    def note(self, text: str) -> None:
        """Worth knowing, nothing to mend."""
        self.lines.append("note   " + text)

    def mend(self, text: str, how: str) -> None:
        """Something is wrong, and what to do about it."""
        self.wrong += 1
        self.lines.append("wrong  {}\n       {}".format(text, how))


def check(settings: Settings, sysfs: str = finder.SYSFS, dev: str = finder.DEV) -> int:
    """Prints the findings; returns 1 if anything is wrong, else 0."""
    found = Findings()
    _check_channel(found, settings.channel, sysfs, dev)
    _check_kernel(found)
    if settings.sink == "rngd":
        _check_rngd(found)
    elif settings.sink.startswith("pipe:"):
        _check_pipe(found, settings.sink.split(":", 1)[1])
    tell("\n".join(found.lines))
    return 1 if found.wrong else 0


def _check_channel(found: Findings, channel: Optional[str], sysfs: str, dev: str) -> None:
    try:
        path = channel or finder.find_channel(sysfs, dev)
    except finder.NoChannel as error:
        found.mend(str(error), error.how)
        return
    if not os.path.exists(path):
        how = finder.how_to_attach(path) if channel else "mount -t devtmpfs none /dev"
        found.mend("{} does not exist".format(path), how)
        return
    opened = port.Port(path)
    try:
        opened.open()
        data, connected, _ = opened.read_all()
        data[:] = bytes(len(data))
    except port.PortError as error:
        if port.BUSY in str(error):
            found.ok("{}: in use, presumably by netrng-guest itself".format(path))
        else:
            how = ANOTHER if channel else finder.how_to_attach(path)
            found.mend(str(error), "run netrng-guest check as root" if os.geteuid() else how)
        return
    finally:
        opened.close()
    found.ok("channel {}".format(path))
    if not connected:
        found.note("no host is connected to it: is netrng-hostd running?")


def _check_kernel(found: Findings) -> None:
    try:
        status = os.stat(DEVICE)
        numbers = os.major(status.st_rdev), os.minor(status.st_rdev)
        usable = stat.S_ISCHR(status.st_mode) and numbers in RANDOM_DEVICES
    except OSError:
        usable = False
    if not usable:
        found.mend("{} is not the kernel's".format(DEVICE), "mknod -m 666 {} c 1 9".format(DEVICE))
    if _may_credit():
        found.ok("may credit the kernel's pool")
    else:
        found.mend("not permitted to credit the kernel's pool", "run as root (CAP_SYS_ADMIN)")
    try:
        os.getrandom(1, os.GRND_NONBLOCK)
    except BlockingIOError:
        found.note("the kernel's pool is not seeded yet: programs that ask for random bytes are waiting")
    except (AttributeError, OSError):
        found.note("this kernel cannot say whether its pool is seeded")


def _may_credit() -> bool:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1)
    except (OSError, ValueError, IndexError):
        pass
    return os.geteuid() == 0


def _check_rngd(found: Findings) -> None:
    path = variants.find_rngd()
    if path is None:
        found.mend("no rngd in " + ", ".join(variants.FOLDERS[:3]), INSTALL)
        return
    try:
        variant = variants.identify(path, variants.MAX_HELP_S)
    except variants.Slow as slow:
        found.mend(str(slow), "run it: {} --help".format(path))
        return
    if variant is None:
        found.mend("{} is no rngd that we know".format(path), INSTALL)
        return
    found.ok("{} is version {} of {}".format(path, variant.version, variant.kind))


def _check_pipe(found: Findings, path: str) -> None:
    if not os.path.exists(path):
        found.mend("{} does not exist".format(path), "mkfifo {}".format(path))
    elif not os.access(path, os.W_OK):
        found.mend("{} cannot be written to".format(path), "run as root, or chmod it")
    else:
        found.ok("pipe {}".format(path))
