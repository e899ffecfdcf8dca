# SPDX-License-Identifier: Apache-2.0
"""Real VMs of which the host sees each byte that they get, and when.

The agent in the VM hands its bytes to a second virtio port, which QEMU writes to a file here. The seeds,
which it gives to its kernel instead, are taken from strace's record of that.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bed.libvirtd import PrivateLibvirtd
from bed.packages import ROOT, BedError, prepare
from bed.rundir import RunDirectory
from bed.vm import VM

from bench.fleet import BenchError
from bench.hostd import Say
from netrng_guest.wire import SEED_SIZE

PYZ = ROOT / "dist" / "netrng-guest.pyz"
PORT = "bench.taken"
RATE = "200kB/s"  # more than the sources give
CREDITS = "/run/credits"
# Whole seeds in hexadecimal (-xx -s): only for tests, whose source is no secret.
MAIN = f"""
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = {PORT} ] && taken=/dev/${{port##*/}}
done
exec strace -f -qq --seccomp-bpf -xx -s {SEED_SIZE} -e trace=ioctl -o {CREDITS} \\
    python3 -I -S /opt/netrng-guest.pyz run --rate {RATE} --sink "pipe:$taken"
"""
LOOK_S = 0.002
QUIET_S = 0.3
END_S = 30.0
_SEED = re.compile(r'RNDADDENTROPY, \{entropy_count=\d+, buf_size=\d+, buf="((?:\\x[0-9a-f]{2})+)"')


class Mark(NamedTuple):
    """A moment: how many bytes and seeds a VM had got."""

    n_bytes: int
    n_seeds: int


class WatchedVM:
    """One VM; `taken` is where its bytes arrive."""

    def __init__(self, vm: VM, taken: Path) -> None:
        self.vm = vm
        self._taken = taken
        self._looks: list[tuple[int, float]] = [(0, 0.0)]  # (size, when it was seen), growing

    @property
    def name(self) -> str:
        return self.vm.name

    def look(self) -> None:
        """Notes how many bytes have come."""
        with contextlib.suppress(FileNotFoundError):
            size = self._taken.stat().st_size
            if size > self._looks[-1][0]:
                self._looks.append((size, time.time()))

    @property
    def n_bytes(self) -> int:
        """How many have come, seeds left out."""
        return self._looks[-1][0]

    def arrival(self, position: int) -> float:
        """When the byte after so many came, as Unix time."""
        return self._looks[bisect.bisect_right(self._looks, (position, float("inf")))][1]

    def mark(self) -> Mark:
        return Mark(self.n_bytes, len(self._seeds()))

    def since(self, mark: Mark) -> tuple[bytes, list[bytes]]:
        """What it got after that: all but the seeds, in order; and the seeds."""
        with self._taken.open("rb") as taken:
            taken.seek(mark.n_bytes)
            return taken.read(), self._seeds()[mark.n_seeds :]

    def settle(self) -> None:
        """Until nothing has come for a while."""
        end, size, since = time.monotonic() + END_S, self.n_bytes, time.monotonic()
        while time.monotonic() - since < QUIET_S:
            if self.n_bytes != size:
                size, since = self.n_bytes, time.monotonic()
            if time.monotonic() > end:
                raise BenchError(f"{self.name} gets bytes although nothing is given out")
            time.sleep(LOOK_S)

    def agent_cpu_s(self) -> float:
        """Of CPU time of its kernel's count, by the agent and the strace beside it."""
        ticks = self.vm.check(
            "for pid in $(pidof python3 strace); do cut -d' ' -f14,15 /proc/$pid/stat; done"
        ).split()
        return sum(map(int, ticks)) / 100

    def answer_s(self) -> float:
        """How long it takes to answer a command."""
        begun = time.monotonic()
        self.vm.check("true")
        return time.monotonic() - begun

    def _seeds(self) -> list[bytes]:
        calls = self.vm.run(f"grep RNDADDENTROPY {CREDITS}", 60).out
        return [bytes.fromhex(found.replace("\\x", "")) for found in _SEED.findall(calls)]


@contextlib.contextmanager
def watched(vms: Sequence[WatchedVM]) -> Iterator[None]:
    """Notes when bytes come, all the while."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_S):
            for vm in vms:
                vm.look()

    thread = threading.Thread(target=look, name="watched", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def boot(host: PrivateLibvirtd, names: Sequence[str], boot_vm: Callable[..., VM]) -> list[WatchedVM]:
    """VMs with the agent; ``boot_vm`` is that of tests/vm, or `boot_plain`."""
    vms = []
    for name in names:
        taken = host.folder / f"{name}.taken"
        port = f"<channel type='file'><source path='{taken}'/><target type='virtio' name='{PORT}'/></channel>"
        vm = boot_vm(name, wait=False, files={"/opt/netrng-guest.pyz": PYZ}, main=MAIN, devices=port)
        vms.append(WatchedVM(vm, taken))
    for one in vms:
        one.vm.wait_up()
    return vms


@contextlib.contextmanager
def some(names: Sequence[str], say: Say) -> Iterator[tuple[PrivateLibvirtd, list[WatchedVM]]]:
    """A libvirt of our own with such VMs on it. Raises BenchError."""
    say(f"boots {len(names)} VMs")
    try:
        artefacts = prepare()
        with RunDirectory() as run, PrivateLibvirtd(run) as host, contextlib.ExitStack() as guests:

            def boot_plain(name: str, *, wait: bool, **options: object) -> VM:
                guest = VM(host, artefacts, name, **options)  # type: ignore[arg-type]
                guests.callback(guest.close)
                return guest.start(wait=wait)

            vms = boot(host, names, boot_plain)
            with watched(vms):
                yield host, vms
    except BedError as error:
        raise BenchError(str(error)) from None
