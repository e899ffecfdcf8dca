# SPDX-License-Identifier: Apache-2.0
"""A supply whose sources are all healthy, for tests that deliver for them."""

from __future__ import annotations

from netrng_hostd.core.ledger import Ledger
from netrng_hostd.core.policy import FAILOVER, Standing
from netrng_hostd.core.reservoir import Reservoir
from netrng_hostd.sources.reader import Delivery
from netrng_hostd.supply import Supply

SOURCE = "source"
ORIGIN = (SOURCE,)


def make_supply(
    *names: str, policy: str = FAILOVER, min_sources: int = 1, size: int = 65536, seed_reserve: int = 1024
) -> Supply:
    """Its reservoir is empty; ``names``: just SOURCE if none is given."""
    known = names or ORIGIN
    supply = Supply(known, policy, min_sources, Reservoir(size, seed_reserve), Ledger())
    supply.review([Standing(name, healthy=True, proved=True) for name in known])
    return supply


def delivered(released: bytes, discarded: int = 0) -> Delivery:
    """A read whose bytes all passed, but those discarded."""
    return Delivery(len(released) + discarded, bytearray(released), discarded, 0)
