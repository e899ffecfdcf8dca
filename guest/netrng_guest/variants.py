# SPDX-License-Identifier: Apache-2.0
"""Which rngd is installed, and how it is told to take its bytes from us and from nowhere else.

Three programs go by that name.  All read 2,500 bytes, test them (FIPS 140-2) and credit them 64 at a time.
Each wants ``-o /dev/urandom``: with /dev/random, which on a modern kernel never polls writable, it credits 64
bytes and then waits.  Before the first block each reads a few bytes to start its continuous test; without
them every block would wait for the first bytes of the next.

- rng-tools5: without ``-d 1`` it mixes RDRAND in and starves the pipe.
- rng-tools-debian: one source only; without ``-T 0`` it ends after ten seconds without a first byte.
- rng-tools6, the upstream: whatever ``-l`` lists is excluded by name, but for hwrng.
"""

import os
import re
import subprocess
from typing import List, NamedTuple, Optional

NAME = "rngd"
FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/bin", "/usr/local/bin", "/bin")
STDIN = "/proc/self/fd/0"  # what /dev/stdin is a link to, where there is a udev or devtmpfs that makes one
MAX_OUTPUT = 65536
HELP_S, LIST_S = 3, 5  # rng-tools6's -l starts every source to see whether it works


class Variant(NamedTuple):
    """``start_bytes``: what it reads before its first block."""

    kind: str
    version: str
    argv: List[str]
    start_bytes: int


def find_rngd() -> Optional[str]:
    """The path of an rngd, None if there is none."""
    for folder in os.get_exec_path() + list(FOLDERS):
        path = os.path.join(folder, NAME)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def identify(path: str) -> Optional[Variant]:
    """Which of the three is at ``path``, told by its own help; None if it is none of them."""
    text = _output_of([path, "--help"], HELP_S)
    match = re.search(r"^rngd (?:version )?(\d[\w.]*)", _output_of([path, "--version"], HELP_S), re.MULTILINE)
    version = match.group(1) if match else "?"
    base = [path, "-f", "-r", STDIN, "-o", "/dev/urandom"]
    if "--feed-interval" in text:
        return Variant("rng-tools-debian", version, base + ["-T", "0"], 8)
    if "--no-drng" in text:
        return Variant("rng-tools5", version, base + ["-d", "1", "-n", "1"], 8)
    if "--exclude" in text:
        return Variant("rng-tools6", version, base + _exclusions(path, text), 24)
    return None


def _exclusions(path: str, help_text: str) -> List[str]:
    sources = ["rdrand", "namedpipe"]  # what every 6.17 has, should the list not come
    if "--list" in help_text:
        listing = _output_of([path, "-l", "-r", "/dev/null"], LIST_S)
        sources = re.findall(r"\((\w+)\)\s*$", listing, re.MULTILINE) or sources
    return [word for source in sorted(set(sources)) if source != "hwrng" for word in ("-x", source)]


def _output_of(argv: List[str], seconds: int) -> str:
    """What ``argv`` printed, whatever its exit code says; "" if it did not run or end."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[:MAX_OUTPUT].decode("utf-8", "replace")
