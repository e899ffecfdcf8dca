# SPDX-License-Identifier: Apache-2.0
"""How much to ask for, and when.  Pure and in integers; ``now_ns`` is passed in.

At once the agent may ask for the seed and one first block; after that, for one more whole piece whenever
``rate`` has earned it.  Rate None leaves the pace to the sink's reader.  Never more than ``window`` bytes are
asked for and not yet taken, so that a snapshot of the VM or a stopped consumer strands little.

What the host could not deliver in time is asked for as long as it is missing, and what ``rate`` earns
meanwhile is kept up to one window: a slow host always finds something asked of it, and an absent one is not
met with a flood when it returns.
"""

from typing import Optional

from .wire import SEED_SIZE

BLOCK_SIZE = 2500  # what rngd tests at a time: FIPS 140-2's 20,000 bits
DEFAULT_WINDOW = 4096
ASKS_PER_SECOND = 16
SECOND_NS = 10**9


class Demand:
    """The demand of one session, which opened at ``now_ns``.

    ``rate``: bytes per second or None; ``window``: bytes; ``piece``: bytes that the sink takes at once.
    Fewer than 64 bytes, or than a sixteenth of a second's worth, are not asked for, unless half of the
    window is less: each time costs the host a frame. So at 1 byte per second a pipe's reader waits 64 s.
    """

    def __init__(self, rate: Optional[int], window: int, piece: int, now_ns: int) -> None:
        self._rate = rate
        self._window = window
        self._piece = max(piece, min(max((rate or 0) // ASKS_PER_SECOND, SEED_SIZE), window // 2))
        self._cap_ns = max(window, self._piece) * SECOND_NS
        self._earned_ns = 0  # byte nanoseconds, so that nothing is lost to rounding
        self._since_ns = now_ns
        self._allowed = SEED_SIZE + BLOCK_SIZE  # bytes of the session, seed included

    def ask(self, now_ns: int, delivered: int, outstanding: int, needed: int) -> int:
        """How many more bytes to ask for now.

        ``delivered``: bytes of this session that arrived; ``outstanding``: those of them not settled yet;
        ``needed``: how many more the sink wants before it takes any, 0 if it is not particular.  If they are
        just a few beyond what the rate earned, they are lent: an rngd reads a few bytes extra at its start.
        """
        room = max(self._window - outstanding, 0)
        if self._rate is None:
            return room
        self._earn(now_ns)
        while self._earned_ns >= self._piece * SECOND_NS and self._allowed - delivered < room:
            self._earned_ns -= self._piece * SECOND_NS
            self._allowed += self._piece
        missing = delivered + needed - self._allowed
        if 0 < missing <= SEED_SIZE:
            self._earned_ns -= missing * SECOND_NS
            self._allowed += missing
        return min(max(self._allowed - delivered, 0), room)

    def next_ns(self, delivered: int, outstanding: int) -> Optional[int]:
        """When time alone will make ``ask`` return more; None if it will not."""
        if self._rate is None or self._allowed - delivered >= self._window - outstanding:
            return None
        missing_ns = max(self._piece * SECOND_NS - self._earned_ns, 0)
        return self._since_ns + -(-missing_ns // self._rate)

    def _earn(self, now_ns: int) -> None:
        elapsed_ns = max(now_ns - self._since_ns, 0)
        self._earned_ns = min(self._earned_ns + elapsed_ns * self._rate, self._cap_ns) if self._rate else 0
        self._since_ns += elapsed_ns
