# SPDX-License-Identifier: Apache-2.0
"""`make test-xen`: tests/xen in a dom0, on an emulated computer.

`python -m bed.xen [ARGUMENT …]`: what pytest is given, in the place of tests/xen; `-m MODULE [ARGUMENT …]`
runs another module of this checkout.  Exit code: the module's; 1 where the bed fails.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from bed import packages
from bed.packages import ROOT, BedError, say
from bed.rundir import RunDirectory
from bed.xen import images, payload, snapshot
from bed.xen.computer import NEEDED_MIB, Computer

RESULTS = ROOT / ".cache" / "xen-results"
# The tests share their domUs: after a failure the others would wait in vain.  Of conftest.py's the folder's
# own alone: the others import what is not in dom0.
_OPTIONS = ("-x", "-p", "no:cacheprovider", "-o", "console_output_style=times", "--confcutdir", "tests/xen")
_TESTS = ("-v", "tests/xen")
_LOGS = "/var/log/xen/console/guest-*.log /var/log/libvirt/libxl/*.log"
_RUN_S = 3600.0


def main(arguments: list[str]) -> int:
    if (lacking := NEEDED_MIB - _free_mib()) > 0:
        say(f"SKIPPED: Xen needs {NEEDED_MIB} MiB of free memory, {lacking} more than there is. NOTHING RAN.")
        return 0
    if re.search(r"[\s,'\"]", str(ROOT)):
        raise BedError(f"QEMU cannot be given files of {ROOT}: no blanks, commas and quotes, please")
    module = arguments[1:] if arguments[:1] == ["-m"] else ["pytest", *_OPTIONS, *(arguments or _TESTS)]
    begun = time.monotonic()
    with RunDirectory() as run, contextlib.ExitStack() as stack:
        dom0 = _started(run.path, stack)
        dom0.check(snapshot.MOUNT)
        say(f"dom0 and its domUs are up after {time.monotonic() - begun:.0f} s")
        shutil.rmtree(RESULTS, ignore_errors=True)
        try:
            code = _run(dom0, module)
        finally:
            try:
                dom0.assert_running()
                _bring_out(dom0)
            except (BedError, OSError) as error:
                say(f"there are no logs of dom0: {error}")
    say(f"ended after {time.monotonic() - begun:.0f} s with exit code {code}")
    return code


def _started(folder: Path, stack: contextlib.ExitStack) -> Computer:
    """The computer on which dom0 and its domUs are up; the stack switches it off."""
    payload.CACHE.mkdir(parents=True, exist_ok=True)
    with packages.locked(payload.CACHE / "lock"):  # which another run may be filling, and clearing
        made = images.prepare(packages.prepare())
        brought = folder / "payload"
        payload.write(brought, made.python)
        saved = snapshot.prepare(made, brought)
        dom0 = Computer(made, saved.disk, brought, saved.memory)
        try:
            return stack.enter_context(dom0)
        except BedError:
            if dom0.ended:
                saved.memory.unlink()  # the next run makes it anew
            raise


def _run(dom0: Computer, module: Sequence[str]) -> int:
    """It in dom0; what it prints is shown as it comes."""
    dom0.check(f"sh {payload.CHECKOUT}/bed/xen/dom0/run {shlex.join(module)} &", 60)
    said = ""
    deadline = time.monotonic() + _RUN_S
    with dom0.out.open("rb") as out:
        while not (ended := re.search(r"\nbed: exit code (\d+)\n", said[-200:])):
            dom0.assert_running()
            if time.monotonic() > deadline:
                raise BedError(f"{module[0]} has not ended after {_RUN_S:.0f} s\n{dom0.tail()}")
            time.sleep(0.2)
            more = out.read().decode(errors="replace")
            sys.stdout.write(more)
            sys.stdout.flush()
            said += more
    return int(ended.group(1))


def _bring_out(dom0: Computer) -> None:
    dom0.check(f"cp $(ls {_LOGS}) /run/results; cd /run/results && tar -c *.log >/dev/bed-results", 60)
    RESULTS.mkdir(exist_ok=True)
    try:
        with tarfile.open(dom0.results) as archive:
            archive.extractall(RESULTS)
    except tarfile.ReadError as error:
        raise BedError(f"dom0's logs did not come whole: {error}") from None
    say(f"logs are in {RESULTS}")


def _free_mib() -> int:
    """What this machine has, or may have where it is a container."""
    found = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError):  # there is no such limit
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found) >> 20


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(main(sys.argv[1:]))
    except (BedError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"bed: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
