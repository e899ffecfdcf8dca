# SPDX-License-Identifier: Apache-2.0
"""`make test-xen`: tests/xen in a real dom0, on an emulated computer; arguments go to pytest.

Exit code: pytest's; 1 where the bed fails.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from bed import packages
from bed.packages import ROOT, BedError, say
from bed.xen import images, payload, snapshot
from bed.xen.computer import NEEDED_MIB, Computer

RESULTS = ROOT / ".cache" / "xen-results"
TESTS_S = 1500.0


def main(arguments: list[str]) -> int:
    lacking = NEEDED_MIB - _available_mib()
    if lacking > 0:
        say(f"SKIPPED: the Xen tests need {NEEDED_MIB} MiB of free memory, {lacking} more than there is")
        return 0
    begun = time.monotonic()
    made = images.prepare(packages.prepare())
    with tempfile.TemporaryDirectory(prefix="netrng-xen-") as scratch:
        brought = Path(scratch) / "payload"
        payload.write(brought, made.python)
        saved = snapshot.prepare(made, brought)
        with Computer(made, saved.disk, brought, saved.memory) as dom0:
            dom0.check(snapshot.MOUNT)
            say(f"dom0 and its domUs are up after {time.monotonic() - begun:.0f} s; the tests follow")
            code = _run_tests(dom0, arguments)
            _bring_out(dom0)
    say(f"the Xen tests ended after {time.monotonic() - begun:.0f} s with exit code {code}")
    return code


def _run_tests(dom0: Computer, arguments: list[str]) -> int:
    """pytest in dom0; what it prints is shown as it comes."""
    program = f"{payload.CHECKOUT}/bed/xen/dom0/tests"
    dom0.check(f"sh {program} {shlex.join(arguments or ['-v', 'tests/xen'])} &", 60)
    said = ""
    deadline = time.monotonic() + TESTS_S
    with dom0.out.open("rb") as out:
        while not (ended := re.search(r"\nbed: exit code (\d+)\n", said[-200:])):
            dom0.assert_running()
            if time.monotonic() > deadline:
                raise BedError(f"the tests have not ended after {TESTS_S:.0f} s\n{dom0.tail()}")
            time.sleep(0.2)
            more = out.read().decode(errors="replace")
            sys.stdout.write(more)
            sys.stdout.flush()
            said += more
    return int(ended.group(1))


def _bring_out(dom0: Computer) -> None:
    dom0.check("tar -c -C /run/results . >/dev/bed-results", 60)
    shutil.rmtree(RESULTS, ignore_errors=True)
    with contextlib.suppress(tarfile.ReadError), tarfile.open(dom0.results) as archive:  # empty: no results
        archive.extractall(RESULTS)
        say(f"logs are in {RESULTS}")


def _available_mib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main(sys.argv[1:]))
    except BedError as error:
        sys.exit(f"bed: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
