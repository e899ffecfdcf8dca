# SPDX-License-Identifier: Apache-2.0
"""`make bench-xen`, in the dom0 of bed/xen: netrng's throughput beside what a console channel carries.

Both over the same channel of the same domU in one run: bare bytes from a socket in dom0 to a reader of
/dev/hvcN, then netrng from a fast source to an agent, then bare bytes again, so that a drift would be seen.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bed.xen.domu import NETRNG, Dom0, DomU
from tests.edge.rig import Hostd
from tests.vm.rig import AGENT, DRAIN
from tests.xen.domus import domus

from bench.line import Line, report

AT_LEAST = 0.7  # of what the channel carries
RAW_BYTES, RAW_ROUNDS = 1_500_000, 2  # before and after
NETRNG_S, NETRNG_ROUNDS = 8.0, 3
WARM_BYTES = 100_000  # before it is measured
# Bytes of a sample and of a window: the defaults, and those for who wants much at a time.
SIZES = {"as it is installed": (512, 4096), "with large samples": (16384, 65536)}
PATIENCE_S = 300.0
_READY = "/run/raw-reader"
# Counts from the first byte, as the agent reads: what had waited is there at once, and is little.
_READER = f"""
import os, time, tty, termios
port = os.open("{{device}}", os.O_RDWR | os.O_NOCTTY)
tty.setraw(port, termios.TCSANOW)
os.close(os.open("{_READY}", os.O_CREAT | os.O_WRONLY))
left = {RAW_BYTES} - len(os.read(port, 65536))
begun = time.monotonic()
counted = left
while left > 0:
    left -= len(os.read(port, 65536))
print(counted / (time.monotonic() - begun))
"""


def raw_rate(domu: DomU, socket_path: Path) -> float:
    """Bytes per second from a socket in dom0 to a reader in the domU."""
    reader = domu.spawn_python(_READER.format(device=domu.device()))
    domu.check(f"until [ -e {_READY} ]; do sleep 0.2; done; rm {_READY}", PATIENCE_S)
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(socket_path))
        channel.sendall(bytes(RAW_BYTES))
        return float(reader.result(PATIENCE_S).out)


def netrng_rates(domu: DomU, hostd: Hostd, window: int) -> Iterator[float]:
    """Bytes per second that an agent acknowledges, whose sink takes all."""
    agent = domu.spawn(f"exec python3 -I -S {AGENT} run --window {window} {DRAIN}")
    _acknowledged(domu, hostd, WARM_BYTES)
    n_bytes, then = _acknowledged(domu, hostd)
    for _ in range(NETRNG_ROUNDS):
        time.sleep(NETRNG_S)
        now_bytes, now = _acknowledged(domu, hostd)
        yield (now_bytes - n_bytes) / (now - then)
        n_bytes, then = now_bytes, now
    agent.kill("KILL")


def _acknowledged(domu: DomU, hostd: Hostd, at_least: int = 0) -> tuple[int, float]:
    """How many bytes, as soon as there are so many, and when that was.  Asks seldom, as that takes time."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        status = hostd.status()
        n_bytes = sum(one["bytes_acked"] for one in status["domains"] if one["name"] == domu.name)
        if n_bytes >= at_least:
            return n_bytes, status["time"]
        if time.monotonic() > deadline:
            raise TimeoutError(f"{n_bytes} bytes acknowledged, not {at_least}: {hostd.log[-1000:]}")
        time.sleep(1)


def lines(domu: DomU, folder: Path) -> Iterator[Line]:
    """What was measured of each, and the one by the other."""
    path = Path(f"/var/lib/libvirt/libxl/channel/target/{domu.name}-{NETRNG}")
    domu.check("killall strace python3; while pidof strace python3; do sleep 0.2; done", PATIENCE_S)
    raw = [raw_rate(domu, path) for _ in range(RAW_ROUNDS)]
    ours = {}
    for name, (sample, window) in SIZES.items():
        with Hostd(folder, _config(domu, path, sample)) as hostd:
            hostd.python = (sys.executable,)
            hostd.start()
            ours[name] = list(netrng_rates(domu, hostd, window))
    raw += [raw_rate(domu, path) for _ in range(RAW_ROUNDS)]
    yield Line("bare bytes over a console channel, host to guest", _told(raw), "any", True)
    for name, rates in ours.items():
        ratio = statistics.median(rates) / statistics.median(raw)
        told = f"{_told(rates)}, {ratio:.2f}"
        if SIZES[name] == max(SIZES.values()):
            yield Line(f"netrng {name}", told, f"at least {AT_LEAST} of that", ratio >= AT_LEAST)
        else:
            yield Line(f"netrng {name}", told, "any", True)


def _config(domu: DomU, path: Path, sample: int) -> str:
    channel = f'[libvirt]\nuris = []\n[[channel]]\nname = "{domu.name}"\npath = "{path}"\n'
    source = '[[source]]\nname = "fast"\nkind = "prng"\npath = "/dev/urandom"\n'
    return f"sample_size = {sample}\n{channel}{source}"


def _told(rates: list[float]) -> str:
    return ", ".join(f"{rate / 1000:.0f}" for rate in rates) + " kB/s"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        first, *others = domus(Dom0())
        for domu in others:
            subprocess.run(["xl", "pause", domu.name], check=True)
        return report(lines(first, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
