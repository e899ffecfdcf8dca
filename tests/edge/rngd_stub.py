#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for rngd whose misbehaviour is the first word of the file ``mode`` beside it.

good | parked | deaf (also to SIGTERM) | dies CODE | rejects | gives-up | denied |
upstream N (a version 6 that reads N bytes first) | slow (to tell what it is)
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

HERE = Path(sys.argv[0]).resolve().parent
BLOCK = 2500


def read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        if not piece:
            sys.exit(1)
        data += piece
    return data


def main() -> None:
    mode, *rest = (HERE / "mode").read_text().split()
    upstream = mode == "upstream"
    if mode == "slow":
        time.sleep(300)
    if "--version" in sys.argv:
        print("rngd 6.17" if upstream else "rngd 5")
        sys.exit(1 if upstream else 0)
    if "--help" in sys.argv:
        print("  -x, --exclude=n\n  -l, --list" if upstream else "  -d, --no-drng=1|0\n  -n, --no-tpm=1|0")
        sys.exit(0)
    if "-l" in sys.argv:
        print("Entropy sources that are available but disabled\n4: NIST Network Entropy Beacon (nist)")
        print("Available and enabled entropy sources:\n0: Hardware RNG Device (hwrng)")
        print("2: Intel RDRAND Instruction RNG (rdrand)\n5: JITTER Entropy generator (jitter)")
        sys.exit(1)
    if mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with (HERE / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    if mode in ("parked", "deaf"):
        while True:
            time.sleep(60)
    fd = os.open("/proc/self/fd/0", os.O_RDONLY)
    read_exactly(fd, int(rest[0]) if upstream else 8)
    for n in range(10**9):
        block = read_exactly(fd, BLOCK)
        with (HERE / "blocks").open("ab") as blocks:
            blocks.write(block)
        if mode == "dies" and n + 1 == int(rest[1]):
            print("a last word", file=sys.stderr)
            sys.exit(int(rest[0]))
        if mode == "denied":
            print("RNDADDENTROPY failed: Operation not permitted", flush=True)
            time.sleep(60)
        if mode == "gives-up":
            print("too many FIPS failures, disabling entropy source", file=sys.stderr)
            sys.exit(0)
        if mode == "rejects" and n in map(int, rest):
            print("block failed FIPS test: 0x1f", flush=True)


main()
