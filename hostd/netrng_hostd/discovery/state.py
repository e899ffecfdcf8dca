# SPDX-License-Identifier: Apache-2.0
"""What the watcher of a URI says about itself, and its patience.

States of a URI::

    connecting ──► connected ──► down ──► connected …
         └──────────────────────► down

- connecting: the first attempt is under way.
- connected: the last listing succeeded.
- down: no connection, or no answer; ``detail`` says why.  The domains known so far stay known, because they
  run on and are served on; after the reconnection a listing tells what changed.
"""

from __future__ import annotations

from typing import NamedTuple


class UriState(NamedTuple):
    """``state``: "connecting", "connected" or "down"; ``detail``: one line, "" unless down; ``since_ns``: of
    time.monotonic_ns(), when the URI entered the state (a new reason does not begin a new one).
    """

    uri: str
    state: str
    detail: str
    since_ns: int


class Timing(NamedTuple):
    """Seconds.  Several events within ``debounce_s`` make one listing; while they go on coming (a guest
    makes events at will), that time doubles up to ``max_debounce_s``; a change of a quota in metadata,
    which an administrator made, is looked at ``debounce_s`` after it all the same.  A reconnection waits
    ``backoff_s``, doubling up to ``max_backoff_s``, beginning anew after ``steady_s`` of connection.  A
    call that takes longer than ``answer_s`` is shown as down.  Stopping waits ``stop_s`` for such a call.
    A domain gets a new stream ``reopen_s`` after the one before at the earliest: a guest that is cut off
    for flooding over and over costs libvirtd no more than that.
    """

    relist_s: float = 30.0
    debounce_s: float = 0.1
    max_debounce_s: float = 2.0
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    steady_s: float = 10.0
    answer_s: float = 10.0
    stop_s: float = 2.0
    reopen_s: float = 5.0
