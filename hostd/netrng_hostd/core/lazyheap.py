# SPDX-License-Identifier: Apache-2.0
"""A heap whose items can be re-keyed and removed: dead entries are skipped when they reach the top.

Every call costs O(log n), amortised: an entry is pushed once and popped once, and when dead entries
outnumber the live ones the heap is rebuilt, which the pushes that made them have paid for.
`operations` counts pushes, pops and the levels of the tree that each may walk, so that a test can hold the
cost to log n without a clock.
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
_SLACK = 64  # below this many dead entries a rebuild is not worth it


class LazyHeap(Generic[Item]):
    """Smallest key first; first come first among equal keys."""

    __slots__ = ("_entries", "_live", "_order", "operations")

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, Item]] = []
        self._live: dict[Item, tuple[int, int, Item]] = {}
        self._order = 0
        self.operations = 0

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, item: Item) -> bool:
        return item in self._live

    def put(self, item: Item, key: int) -> None:
        """Adds the item, or moves it. An item put again with its own key keeps its place."""
        live, entries = self._live, self._entries
        known = live.get(item)
        if known is not None and known[0] == key:
            return
        self._order += 1
        entry = (key, self._order, item)
        live[item] = entry
        heappush(entries, entry)
        self.operations += 1 + len(entries).bit_length()
        if len(entries) > 2 * len(live) + _SLACK:
            self._rebuild()

    def discard(self, item: Item) -> None:
        """Removes the item if it is there."""
        self._live.pop(item, None)
        if len(self._entries) > 2 * len(self._live) + _SLACK:
            self._rebuild()

    def top(self) -> tuple[int, int, Item] | None:
        """(key, order, item) of the first, or None."""
        live, entries = self._live, self._entries
        while entries:
            entry = entries[0]
            if live.get(entry[2]) is entry:
                return entry
            self.operations += 1 + len(entries).bit_length()
            heappop(entries)
        return None

    def pop(self) -> Item:
        """Removes and returns the item that `top` has just shown."""
        entries = self._entries
        self.operations += 1 + len(entries).bit_length()
        item = heappop(entries)[2]
        del self._live[item]
        return item

    def _rebuild(self) -> None:
        self.operations += len(self._entries)
        self._entries = list(self._live.values())
        heapify(self._entries)
