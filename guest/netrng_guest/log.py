# SPDX-License-Identifier: Apache-2.0
"""One line to standard error for each event; never data.  Under systemd with its priority."""

import os
import sys

NOTICE, WARNING, ERROR = 5, 4, 3
_BURST, _REFILL_NS = 30, 2 * 10**9


class Log:
    """Lines beyond 30 at once, and one every two seconds after that, are counted and not printed."""

    def __init__(self) -> None:
        self._prefixed = "JOURNAL_STREAM" in os.environ
        self._tokens = _BURST
        self._since_ns = 0
        self._skipped = 0

    def line(self, text: str, now_ns: int, priority: int = NOTICE) -> None:
        """Prints ``text`` as one line."""
        earned = max(now_ns - self._since_ns, 0) // _REFILL_NS
        self._since_ns += earned * _REFILL_NS
        self._tokens = min(self._tokens + earned, _BURST)
        if not self._tokens:
            self._skipped += 1
            return
        self._tokens -= 1
        if self._skipped:
            text, self._skipped = "{} ({} lines left out before)".format(text, self._skipped), 0
        start = "<{}>".format(priority) if self._prefixed else ""
        try:
            sys.stderr.write("{}netrng-guest: {}\n".format(start, " ".join(text.split())))
            sys.stderr.flush()
        except (OSError, ValueError):
            pass  # nobody to tell
