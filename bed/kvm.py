# SPDX-License-Identifier: Apache-2.0
"""Whether KVM really runs a guest here: on some machines /dev/kvm opens and yet no kernel boots."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time

from bed.packages import Artefacts
from bed.rundir import RunDirectory

_UP = b"bed: up"
_DEADLINE_S = 15.0


def boots(
    run: RunDirectory, artefacts: Artefacts, accelerator: str = "kvm", deadline_s: float = _DEADLINE_S
) -> bool:
    """Boots a guest without libvirt, as the user that VMs of this run have; False if it is not up by then."""
    with contextlib.ExitStack() as stack:
        # Opened here: the guest's user may not read the cache.
        kernel = stack.enter_context(artefacts.kernel.open("rb"))
        image = stack.enter_context(artefacts.initramfs.open("rb"))
        console = stack.enter_context(tempfile.TemporaryFile())
        command = ["qemu-system-x86_64", "-accel", accelerator, "-cpu", "max", "-m", "256"]
        command += ["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]
        command += ["-kernel", f"/dev/fd/{kernel.fileno()}", "-initrd", f"/dev/fd/{image.fileno()}"]
        command += ["-append", "console=ttyS0 panic=-1 quiet"]
        guest = subprocess.Popen(
            [*run.user.prefix(), *command],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.DEVNULL,
            pass_fds=(kernel.fileno(), image.fileno()),
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + deadline_s
            while guest.poll() is None and time.monotonic() < deadline:
                console.seek(0)
                if _UP in console.read():
                    return True
                time.sleep(0.05)
            return False
        finally:
            guest.kill()
            guest.wait()
