# SPDX-License-Identifier: Apache-2.0
"""The reservoir: vetted bytes that no domain has yet, each given out once and overwritten as it goes.

It has two parts, each first in, first out: general, and the seed reserve, which is spent only on seeds so
that a domain can boot while others drain the rest. The reserve is refilled from the headroom, the part of the
source that is promised to nobody.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from .ledger import Origin

SEED = 64  # bytes: a seed goes to the reserve whole, so that what a source gave is cut at few places


class Part(NamedTuple):
    """`n` bytes of one origin."""

    origin: Origin
    n: int


class Reservoir:
    """At most `size` bytes, `seed_reserve` of them for seeds; it gets `headroom` in a thousand until full.

    ValueError unless 0 <= seed_reserve <= size.
    """

    def __init__(self, size: int, seed_reserve: int, headroom: int = 100) -> None:
        if not 0 <= seed_reserve <= size:
            raise ValueError(f"seed reserve of {seed_reserve} bytes does not fit a reservoir of {size}")
        self._general = _Ring(size - seed_reserve)
        self._seed = _Ring(seed_reserve)
        self.headroom = headroom
        self.general_size = size - seed_reserve
        self._remainder = 0  # thousandths of bytes for the reserve since a seed was last due to it
        self._due = 0  # bytes due to the reserve, as far as it had room

    @property
    def room(self) -> int:
        """How many bytes the next put can accept."""
        return self._general.room + self._seed.room

    @property
    def available(self) -> int:
        """Bytes in the general part."""
        return self._general.count

    @property
    def seed_available(self) -> int:
        """Bytes in the seed reserve."""
        return self._seed.count

    def __repr__(self) -> str:
        return (
            f"Reservoir(available={self.available}, seed_available={self.seed_available}, room={self.room})"
        )

    @property
    def stored(self) -> dict[Origin, int]:
        """Bytes in both parts, by their origin."""
        return _sum(self._general.parts + self._seed.parts)

    def put(self, data: bytearray, origin: Origin, keep: int = 0) -> int:
        """Copies in as much as there is room for, from the front; returns how much. The caller wipes `data`.

        The headroom's share of all puts goes to the seed reserve, a seed at a time, until that is full, and
        with it what the general part has no room for. But first the general part has, with what it gets now,
        the `keep` bytes that reservations rest on.
        """
        accepted = min(len(data), self.room)
        rest = accepted * (1000 - self.headroom) // 1000
        share = self.headroom if self.available + rest >= keep else 0
        newly_due, self._remainder = divmod(self._remainder + accepted * share, SEED * 1000)
        self._due = min(self._due + newly_due * SEED, self._seed.room)
        seeds = min(max(self._due, accepted - self._general.room), self._seed.room, accepted)
        self._due -= min(seeds, self._due)
        with memoryview(data) as view:
            self._general.put(view[: accepted - seeds], origin)
            self._seed.put(view[accepted - seeds : accepted], origin)
        return accepted

    def take(self, n: int, from_seed_reserve: bool = False) -> tuple[bytearray, list[Part]]:
        """The oldest `n` bytes of one part, and where they come from, in their order.

        They are zeroed here: the caller has the only copy, and wipes it.

        ValueError, and nothing taken, when that part has fewer.
        """
        part = self._seed if from_seed_reserve else self._general
        if not 0 <= n <= part.count:
            raise ValueError(f"cannot take {n} bytes of {part.count}")
        return part.take(n)

    def drop_oldest(self, n: int) -> dict[Origin, int]:
        """Zeroes the oldest `n` bytes of the general part, or all that it has; returns what is gone."""
        return _sum(self._general.drop(min(n, self._general.count)))

    def destroy(self, source: str | None = None) -> dict[Origin, int]:
        """Zeroes everything that `source` had a part in, or simply everything; returns what is gone."""
        return _sum(self._general.destroy(source) + self._seed.destroy(source))


def _sum(parts: list[Part]) -> dict[Origin, int]:
    by_origin: dict[Origin, int] = {}
    for origin, n in parts:
        by_origin[origin] = by_origin.get(origin, 0) + n
    return by_origin


class _Ring:
    """A first-in, first-out store of bytes in place; unused places are zero."""

    def __init__(self, size: int) -> None:
        self._places = bytearray(size)
        self._first = 0  # where the oldest byte lies
        self._parts: deque[Part] = deque()  # what is stored, oldest first; neighbours differ in origin
        self.count = 0

    @property
    def room(self) -> int:
        return len(self._places) - self.count

    @property
    def parts(self) -> list[Part]:
        return list(self._parts)

    def put(self, data: memoryview, origin: Origin) -> None:
        """Appends; the caller has seen to it that there is room."""
        if not data:
            return
        end = self._first + self.count
        if end >= len(self._places):
            end -= len(self._places)
        before_wrap = min(len(data), len(self._places) - end)
        # Through views: assigning to a bytearray's slice would make a copy that nobody overwrites.
        with memoryview(self._places) as places:
            places[end : end + before_wrap] = data[:before_wrap]
            places[: len(data) - before_wrap] = data[before_wrap:]
        self.count += len(data)
        same = self._parts.pop().n if self._parts and self._parts[-1].origin == origin else 0
        self._parts.append(Part(origin, same + len(data)))

    def take(self, n: int) -> tuple[bytearray, list[Part]]:
        """The oldest n bytes; the caller has seen to it that there are so many."""
        taken = bytearray(n)
        before_wrap = min(n, len(self._places) - self._first)
        with memoryview(self._places) as places, memoryview(taken) as target:
            target[:before_wrap] = places[self._first : self._first + before_wrap]
            target[before_wrap:] = places[: n - before_wrap]
        return taken, self.drop(n)

    def drop(self, n: int) -> list[Part]:
        """Zeroes the oldest n bytes; the caller has seen to it that there are so many."""
        before_wrap = min(n, len(self._places) - self._first)
        end = self._first + before_wrap
        with memoryview(self._places) as places:
            places[self._first : end] = bytes(before_wrap)
            places[: n - before_wrap] = bytes(n - before_wrap)
        self._first = n - before_wrap if n > before_wrap else end
        self.count -= n
        dropped: list[Part] = []
        while n:
            origin, there = self._parts.popleft()
            dropped.append(Part(origin, min(n, there)))
            if there > n:
                self._parts.appendleft(Part(origin, there - n))
            n -= dropped[-1].n
        return dropped

    def destroy(self, source: str | None) -> list[Part]:
        """Zeroes what `source` had a part in, or everything; the rest stays in its order."""
        destroyed: list[Part] = []
        for origin, n in self.parts:
            if source is None or source in origin:
                destroyed += self.drop(n)
                continue
            rest, _ = self.take(n)  # to the other end: after one round they are in their order again
            with memoryview(rest) as view:
                self.put(view, origin)
            rest[:] = bytes(n)
        return destroyed
