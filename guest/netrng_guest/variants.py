# SPDX-License-Identifier: Apache-2.0
"""Which rngd is installed, how it is told to take its bytes from us alone, and what its words mean.

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
from typing import List, NamedTuple, Optional, Tuple

NAME = "rngd"
FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/bin", "/usr/local/bin", "/bin")
STDIN = "/proc/self/fd/0"  # what /dev/stdin is a link to, where there is a udev or devtmpfs that makes one
MAX_OUTPUT = 65536
HELP_S, LIST_S = 3, 5  # rng-tools6's -l starts every source to see whether it works
MAX_HELP_S = 12  # doubled up to this where it was too short

MAX_REJECTED = 3  # rejections without two good blocks in between: by chance about one in 1,250 is rejected
REJECTED = "failed FIPS test"
GAVE_UP = (
    "too many FIPS failures, disabling entropy source",  # r5, r6
    "Too many bad blocks, entropy source malfunction assumed",  # rd
    "Too Slow: Disabling",  # r6
)
DENIED = "RNDADDENTROPY failed: Operation not permitted"
NOISE = "stats:"  # rng-tools-debian's counters, every hour

State = Tuple[str, str]  # one of sink.STATES, and the detail


class Variant(NamedTuple):
    """``start_bytes``: what it reads before its first block.

    A release that reads less is no worse off: it takes the rest along for its next block.  One that reads
    more credits each block only when the next one comes.
    """

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


class Slow(Exception):
    """A program has not told within the seconds it had what it is."""


def identify(path: str, seconds: int) -> Optional[Variant]:
    """Which of the three is at ``path``, told by its own help; None if it is none of them.

    Raises Slow when the help takes longer than ``seconds``, as it may where a host boots many VMs at once.
    """
    text = _output_of([path, "--help"], seconds)
    if text is None:
        raise Slow("{} has not told within {} s what it is".format(path, seconds))
    title = _output_of([path, "--version"], seconds) or ""
    match = re.search(r"^rngd (?:version )?(\d[\w.]*)", title, re.MULTILINE)
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
        listing = _output_of([path, "-l", "-r", "/dev/null"], LIST_S) or ""
        sources = re.findall(r"\((\w+)\)\s*$", listing, re.MULTILINE) or sources
    return [word for source in sorted(set(sources)) if source != "hwrng" for word in ("-x", source)]


def _output_of(argv: List[str], seconds: int) -> Optional[str]:
    """What ``argv`` printed, whatever its exit code says; "" if it did not run, None if it did not end."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except OSError:
        return ""
    except subprocess.TimeoutExpired:
        return None
    return done.stdout[:MAX_OUTPUT].decode("utf-8", "replace")


class Judge:
    """Of one rngd.  ``verdict``: why it has to go, once it has to; ``last_line``: what it said last."""

    def __init__(self) -> None:
        self.verdict: Optional[State] = None
        self.last_line = ""
        self._blocks = self._bad_block = 0  # number of the block given last, and of the last one rejected
        self._rejected = self._clean = 0

    def gave_block(self) -> None:
        """It was given one more block.  Of the one before it has said by now what it had to say."""
        if self._blocks and self._bad_block != self._blocks:
            self._clean += 1
        if self._clean >= 2:
            self._rejected = 0
        self._blocks += 1

    def took_block(self) -> bool:
        """It took the block; True if all is well, as far as it has said."""
        return not self._rejected and self.verdict is None

    def heard(self, line: str) -> Optional[State]:
        """It said ``line``; what that means for the state, if anything."""
        self.last_line = line
        if DENIED in line:
            return self.condemn("no-permission", line)
        if any(text in line for text in GAVE_UP):
            return self.condemn("complaining", line)
        if REJECTED not in line:
            return None
        self._rejected += 1
        self._clean = 0
        self._bad_block = self._blocks
        if self._rejected >= MAX_REJECTED:
            return self.condemn("complaining", line)
        return self.verdict or ("complaining", line)

    def condemn(self, state: str, detail: str) -> State:
        """It has to go; the first reason stands."""
        self.verdict = self.verdict or (state, detail)
        return self.verdict
