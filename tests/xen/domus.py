# SPDX-License-Identifier: Apache-2.0
"""The three domUs of these tests, and what runs in them; `python -m tests.xen.domus` starts them.

``first`` and ``second`` are libvirt's: an agent and a real rngd, under strace.  ``third`` is xl's: it has
written a megabyte that nobody read before an agent starts, which writes into a file; later it is hostile.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from bed.inside import BOOT_S
from bed.xen.domu import JOBS, NETRNG, Dom0, LibvirtDomU, XlDomU
from tests.vm.rig import AGENT, PYZ, STRACE

STALE = 1_000_000  # bytes
TAKEN = "/run/taken"  # what the third's agent was given
WRITTEN = "/run/written"
GO, STOP, FLOODED = "/run/go", "/run/stop", "/run/flooded"
FLOOD_S = 60  # at least
_RUN = f"python3 -I -S {AGENT} run --rate 4kB/s"
# Only calls that are traced stop, which makes much of a difference where each costs a tenth of a millisecond.
_TRACED = f"exec {STRACE.replace('strace', 'strace --seccomp-bpf', 1)} {_RUN}"
# The channel is a terminal that was never raw, and stays open so while hostd connects: what hostd says is
# echoed.  Then the agent takes over.
_COOKED = f"""
: >{TAKEN}
head -c {STALE} /dev/urandom >/dev/hvc2 && echo written >{WRITTEN}
exec 9<>/dev/hvc2
until [ -e {GO} ]; do sleep 0.5; done
exec 9<&-
exec {_RUN} --sink pipe:{TAKEN}
"""
# As much as its console takes, junk and frames in turn, for a minute and until it is told to stop.
_FLOOD = f"""
import os, sys, termios, time, tty
sys.path.insert(0, "{AGENT}")
from netrng_guest import wire
port = os.open("/dev/hvc2", os.O_RDWR | os.O_NOCTTY)
tty.setraw(port, termios.TCSANOW)
pieces = [os.urandom(4000), b"".join(wire.encode(wire.Knock(os.urandom(8))) for _ in range(100))]
begun, n_bytes = time.monotonic(), 0
while time.monotonic() < begun + {FLOOD_S} or not os.path.exists("{STOP}"):
    for piece in pieces:
        n_bytes += os.write(port, piece)
with open("{FLOODED}", "w") as file:
    file.write("{{}} {{}}".format(time.monotonic() - begun, n_bytes))
"""
FLOOD = "/opt/flood.py"


class Domus(NamedTuple):
    """In the first two netrng's channel is another one of their consoles."""

    first: LibvirtDomU
    second: LibvirtDomU
    third: XlDomU


def domus(dom0: Dom0) -> Domus:
    """They run already, unless this is the program that starts them."""
    return Domus(
        LibvirtDomU(dom0, "first", (NETRNG, JOBS)),
        LibvirtDomU(dom0, "second", (JOBS, NETRNG)),  # as `attach` leaves them: it adds at the end
        XlDomU("third"),
    )


def main() -> None:
    """Starts them, and waits until they are up and their programs wait for a host."""

    def start(domu: LibvirtDomU | XlDomU, main: str, file: str, text: str) -> None:
        domu.write_image(main, {AGENT: PYZ, FLOOD: _FLOOD.encode()})
        domu.create()
        domu.wait_up()
        # Who looks is in the domU, which saves it most of the work.
        domu.check(f"until grep -q {text} {file}; do sleep 0.5; done 2>/dev/null", BOOT_S)

    first, second, third = domus(Dom0())
    with ThreadPoolExecutor(3) as pool:
        starts = [pool.submit(start, domu, _TRACED, "/run/main.out", "opened") for domu in (first, second)]
        starts.append(pool.submit(start, third, _COOKED, WRITTEN, "written"))
        for started in starts:
            started.result()


if __name__ == "__main__":
    main()
