# SPDX-License-Identifier: Apache-2.0
"""What a guest may cost its host: inbound bytes and log lines, per channel."""

from __future__ import annotations

import logging

INBOUND_DEPTH = 65536  # bytes
INBOUND_RATE = 16384  # bytes per second, for whatever a guest has to say
INBOUND_PER_READ = 64  # bytes at least: one at a time, each costs a turn of the loop; so does each answer
INBOUND_PER_SAMPLE = 128  # bytes: two GRANT frames and some for each sample that it was sent
# 1.25 MiB, once: on Xen what was written while nobody was connected comes first, and only then the agent's
# answer, a minute later at INBOUND_RATE. QEMU keeps as much as max_capacity (hw/char/xen_console.c,
# buffer_append(): of more, the middle is dropped), which libxl sets to 1 MiB (LIBXL_XENCONSOLE_LIMIT); with
# what the socket holds, 1.1 MiB came.
PARKED = 1_310_720  # bytes
LOG_DEPTH = 20  # lines
LOG_INTERVAL_NS = 6_000_000_000  # one more line every six seconds


class InboundBudget:
    """A token bucket over the bytes that a guest sends; a sample sent to it pays for its answers.

    It begins with ``parked`` bytes more than it is ever filled to again. There is one for each Channel,
    whatever its connections and sessions: nothing that a guest does brings another but a full restart of
    its domain.  Depth and rate are a ``share``-th of a Channel's.
    """

    def __init__(self, now_ns: int, parked: int = 0, share: int = 1) -> None:
        self._depth, self._rate = INBOUND_DEPTH // share, INBOUND_RATE // share
        self._level = self._depth + parked
        self._last_ns = now_ns

    def sample_sent(self, n_bytes: int) -> None:
        """Small ones pay less: a guest that grants byte by byte buys no turn of the event loop for each."""
        self._fill(min(INBOUND_PER_SAMPLE, 4 * n_bytes))

    def spend(self, count: int, now_ns: int, answers: int = 0) -> int:
        """Charges one read of ``count`` bytes, which calls for so many answers.

        Returns for how many ns to stop reading (0: go on).
        """
        earned = (now_ns - self._last_ns) * self._rate // 1_000_000_000
        if earned:
            self._fill(earned)
            self._last_ns = now_ns
        self._level -= max(count, INBOUND_PER_READ * max(1, answers))
        if self._level >= 0:
            return 0
        return -self._level * 1_000_000_000 // self._rate + 250_000_000

    def _fill(self, count: int) -> None:
        """Up to the depth; what is left of ``parked`` stays, and stays out of it."""
        self._level = max(self._level, min(self._depth, self._level + count))


class LogBudget:
    """At most twenty lines at once and one every six seconds on; says how many were left out."""

    def __init__(self, now_ns: int) -> None:
        self._lines = LOG_DEPTH
        self._last_ns = now_ns
        self._left_out = 0

    def tell(self, log: logging.Logger, now_ns: int, level: int, name: str, text: str, *args: object) -> None:
        """Logs ``text`` about the channel ``name``, unless there were too many."""
        left_out = self.admit(now_ns)
        if left_out is not None:
            more = f" ({left_out} more lines left out)" if left_out else ""
            log.log(level, "%s: " + text + "%s", name, *args, more)

    def admit(self, now_ns: int) -> int | None:
        """None: leave this line out.  Else how many were left out before it."""
        earned = (now_ns - self._last_ns) // LOG_INTERVAL_NS
        if earned:
            self._lines = min(LOG_DEPTH, self._lines + earned)
            self._last_ns += earned * LOG_INTERVAL_NS
        if self._lines == 0:
            self._left_out += 1
            return None
        self._lines -= 1
        left_out, self._left_out = self._left_out, 0
        return left_out
