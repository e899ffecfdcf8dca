# SPDX-License-Identifier: Apache-2.0
"""Which of several sources give the bytes that VMs get now.

- `failover`: the first in order that is healthy. One that was in trouble takes its place back when it has
  proved itself again; until then a worse one that is healthy goes on. While none is healthy, the first that
  has begun its start-up test: what passes it may be used.
- `combine`: all that are healthy, side by side: their rates add up.
- `xor`: all that are healthy, mixed into one, as long as enough of those that have credit are among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .ledger import Origin

FAILOVER = "failover"
COMBINE = "combine"
XOR = "xor"


class Standing(NamedTuple):
    """What is known of a source.

    `healthy`: its bytes pass the health tests; `proved`: and have done so, since it was last in trouble, for
    as long as it takes to measure its capacity; `starting`: it has begun its start-up test; `credit`: whether
    it counts; `prng`: it is a pseudo-random stream, which whoever names it says.
    """

    name: str
    healthy: bool
    proved: bool = False
    starting: bool = False
    credit: bool = True
    prng: bool = False


def serving(policy: str, min_sources: int, standings: Sequence[Standing], current: Origin) -> Origin:
    """The names of those that serve, in their order; none: nothing is given out.

    `standings`: all sources in their order; `current`: those that serve now; `min_sources`: for `xor`.
    """
    healthy = [standing for standing in standings if standing.healthy]
    if policy == FAILOVER:
        settled = [standing for standing in healthy if standing.proved or standing.name in current]
        starting = [standing for standing in standings if standing.starting]
        healthy = (settled or healthy or starting)[:1]
    elif policy == XOR and sum(standing.credit for standing in healthy) < min_sources:
        healthy = []
    return tuple(standing.name for standing in healthy)
