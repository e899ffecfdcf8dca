# SPDX-License-Identifier: Apache-2.0
"""`make bench-xen`, in the dom0 of bed/xen: netrng's throughput beside what a console channel carries.

Bare bytes from a socket in dom0 to a reader of one domU's console, and netrng from a fast source to an agent
in another domU of the same kind, in turns of seconds: each round is a ratio of two neighbours, since an
emulated computer is at one time twice as fast as at another.
"""

from __future__ import annotations

import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bed.xen.domu import NETRNG, Dom0, DomU
from tests.edge.rig import Hostd
from tests.vm.rig import AGENT, DRAIN
from tests.xen.domus import domus

from bench.line import Line, report

AT_LEAST = 0.7  # of what the channel carries
RAW_BYTES = 1_500_000
NETRNG_S = 8.0
WARM_BYTES = 100_000  # before it is measured
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


class Setting(NamedTuple):
    """``config``: hostd's, but for channel and source; ``window``: the agent's, in bytes."""

    what: str
    config: str
    window: int
    rounds: int
    promised: bool


_MUCH = 'sample_size = 16384\n[reservoir]\nsize = "1MiB"\n'
SETTINGS = (
    Setting("as it is installed", "", 4096, 2, promised=False),
    Setting("for who wants much", _MUCH, 65536, 6, promised=True),
)


def lines(bare: DomU, served: DomU, folder: Path) -> Iterator[Line]:
    """What was measured of each, and the one by the other."""
    for domu in (bare, served):
        domu.check("killall strace python3; while pidof strace python3; do sleep 0.2; done", PATIENCE_S)
    for setting in SETTINGS:
        both = list(rounds(bare, served, setting, folder))
        ratio = statistics.median(netrng / raw for raw, netrng in both)
        told = ", ".join(f"{netrng / 1000:.0f} of {raw / 1000:.0f}" for raw, netrng in both)
        wanted = f"at least {AT_LEAST}" if setting.promised else "any"
        yield Line(
            f"netrng {setting.what}, of what a console channel carries: {told} kB/s",
            f"{ratio:.2f}",
            wanted,
            ratio >= AT_LEAST or not setting.promised,
        )


def rounds(bare: DomU, served: DomU, setting: Setting, folder: Path) -> Iterator[tuple[float, float]]:
    """Bytes per second over the one's channel, and by netrng to the other."""
    channel = f'[libvirt]\nuris = []\n[[channel]]\nname = "{served.name}"\npath = "{_socket(served)}"\n'
    source = '[[source]]\nname = "fast"\nkind = "prng"\npath = "/dev/urandom"\n'
    with Hostd(folder, setting.config + channel + source) as hostd:
        hostd.python = (sys.executable,)
        hostd.start()
        agent = served.spawn(f"exec python3 -I -S {AGENT} run --window {setting.window} {DRAIN}")
        try:
            _acknowledged(served, hostd, WARM_BYTES)
            for _ in range(setting.rounds):
                _pause(served)
                hostd.send_signal(signal.SIGSTOP)
                try:
                    raw = raw_rate(bare)
                finally:
                    hostd.send_signal(signal.SIGCONT)
                    _pause(served, "unpause")
                yield raw, netrng_rate(served, hostd)
        finally:
            agent.kill("KILL")
            agent.result(PATIENCE_S)


def raw_rate(domu: DomU) -> float:
    """Bytes per second from a socket in dom0 to a reader in the domU."""
    reader = domu.spawn_python(_READER.format(device=domu.device()))
    domu.check(f"until [ -e {_READY} ]; do sleep 0.2; done; rm {_READY}", PATIENCE_S)
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(_socket(domu)))
        channel.sendall(bytes(RAW_BYTES))
        return float(reader.result(PATIENCE_S).out)


def netrng_rate(domu: DomU, hostd: Hostd) -> float:
    """Bytes per second that an agent acknowledges, whose sink takes all."""
    n_bytes, then = _acknowledged(domu, hostd)
    time.sleep(NETRNG_S)
    now_bytes, now = _acknowledged(domu, hostd)
    return (now_bytes - n_bytes) / (now - then)


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


def _pause(domu: DomU, command: str = "pause") -> None:
    subprocess.run(["xl", command, domu.name], check=True)


def _socket(domu: DomU) -> Path:
    return Path(f"/var/lib/libvirt/libxl/channel/target/{domu.name}-{NETRNG}")


def main() -> int:
    served, bare, other = domus(Dom0())
    _pause(other)
    return report(lines(bare, served, Path("/run/results")))  # which is brought out


if __name__ == "__main__":
    sys.exit(main())
