# SPDX-License-Identifier: Apache-2.0
"""What an rngd says of its blocks, and when it has to go."""

from typing import Optional, Tuple

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
