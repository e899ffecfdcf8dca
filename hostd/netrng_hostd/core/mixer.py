# SPDX-License-Identifier: Apache-2.0
"""Mixes sources: equal lengths of vetted bytes of all of them, XORed.

What comes out is as hard to guess as the best of what went in, as long as the sources know nothing of each
other. A byte goes into one mixed byte and no other.
"""

from __future__ import annotations

import numpy as np

from .ledger import Origin
from .reservoir import Reservoir


class Mixer:
    """Keeps up to `size` bytes of each source until the others have as many."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._queues: dict[str, Reservoir] = {}

    def __repr__(self) -> str:
        return f"Mixer({', '.join(f'{name}={queue.available}' for name, queue in self._queues.items())})"

    def use(self, origin: Origin) -> dict[str, int]:
        """These sources from now on. What waits of others is zeroed; returns how much, by source."""
        gone = {name: self.destroy(name) for name in self._queues if name not in origin}
        self._queues = {name: self._queues.get(name) or Reservoir(self._size, 0) for name in origin}
        return gone

    def room(self, source: str) -> int:
        """How many bytes the next put of a source in use can accept."""
        return self._queues[source].room

    def held(self, source: str) -> int:
        """How many bytes of it wait; 0 for one that is not in use."""
        return self._queues[source].available if source in self._queues else 0

    def put(self, source: str, data: bytearray) -> int:
        """Copies in as much as there is room for, from the front; returns how much. The caller wipes it."""
        return self._queues[source].put(data, (source,))

    def take(self) -> bytearray:
        """The XOR of as many bytes as all of them have; the caller has the only copy, and wipes it."""
        n = min((queue.available for queue in self._queues.values()), default=0)
        mixed = np.zeros(n, np.uint8)
        for queue in self._queues.values():
            taken, _ = queue.take(n)
            np.bitwise_xor(mixed, np.frombuffer(taken, np.uint8), out=mixed)
            taken[:] = bytes(n)
        result = bytearray(mixed.data)
        mixed[:] = 0
        return result

    def destroy(self, source: str) -> int:
        """Zeroes what waits of a source in use; returns how much."""
        return sum(self._queues[source].destroy().values())
