# SPDX-License-Identifier: Apache-2.0
"""What each domain is due, if bytes could be split as finely as one likes: clamped max-min shares.

Independent of the scheduler, and in another way: it knows nothing of samples, tags or buckets, only rates.
While a domain asks, its rate is clamp(λ · weight, reservation, limit), with the one λ at which all rates
add up to what there is (Bertsekas and Gallager, Data Networks, 6.5.2; the words are mClock's). Where not
even the reservations are covered, they shrink in proportion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from heapq import heappop, heappush
from typing import NamedTuple

from netrng_hostd.core.quota import Quota

_SCALE = 1 << 64  # what has flowed is counted in 2⁻⁶⁴ bytes, so that it stays exact beyond any sum seen here


class Ask(NamedTuple):
    """Weight, and bytes per unit of the clock: reservation and limit (None: none)."""

    weight: int
    reservation: Fraction = Fraction(0)
    limit: Fraction | None = None

    @classmethod
    def of(cls, quota: Quota, unit_per_s: int) -> Ask:
        limit = None if quota.limit is None else Fraction(quota.limit, unit_per_s)
        return cls(quota.weight, Fraction(quota.reservation, unit_per_s), limit)

    def rate(self, level: Fraction) -> Fraction:
        rate = max(level * self.weight, self.reservation)
        return rate if self.limit is None else min(rate, self.limit)


def water_level(asks: Iterable[Ask], capacity: Fraction) -> Fraction:
    """λ: where the rates add up to the capacity, or where all have their limit, if that is less.

    The rates' sum is piecewise linear in λ: each begins to rise where λ · weight passes the reservation, and
    ceases to where it passes the limit. 0 if the reservations come to the capacity or more.
    """
    bends: list[tuple[Fraction, int]] = []
    total, slope, level = Fraction(0), 0, Fraction(0)
    for ask in asks:
        total += ask.reservation
        bends.append((ask.reservation / ask.weight, ask.weight))
        if ask.limit is not None:
            bends.append((ask.limit / ask.weight, -ask.weight))
    if total >= capacity:
        return Fraction(0)
    for bend, change in sorted(bends):
        reached = total + slope * (bend - level)
        if reached >= capacity:
            break
        total, level = reached, bend
        slope += change
    return level + (capacity - total) / slope if slope else level


def shares(asks: Mapping[str, Ask], capacity: Fraction) -> dict[str, Fraction]:
    """The exact rate of each while all of them ask."""
    promised = sum((ask.reservation for ask in asks.values()), Fraction(0))
    if promised > capacity:
        return {name: ask.reservation * capacity / promised for name, ask in asks.items()}
    level = water_level(asks.values(), capacity)
    return {name: ask.rate(level) for name, ask in asks.items()}


def exact_shares(quotas: Mapping[str, Quota], capacity: Fraction | int) -> dict[str, Fraction]:
    """The same for quotas; bytes per second."""
    return shares({name: Ask.of(quota, 1) for name, quota in quotas.items()}, Fraction(capacity))


class _Flow:
    """One who asks, for `amount` in all, None without end. It has had `due` by `since`, scaled.

    `since` and `end` are levels for those who have only a weight; `since` is an instant for the others.
    """

    __slots__ = ("active", "amount", "ask", "due", "end", "plain", "rate", "since")

    def __init__(self, ask: Ask) -> None:
        self.amount: int | None = 0
        self.ask = ask
        self.plain = not ask.reservation and ask.limit is None
        self.active = False
        self.due = self.since = self.end = 0
        self.rate = Fraction(0)


class Fluid:
    """Integrates the exact rates over time, between one change of who asks and the next.

    The clock may be nanoseconds, with what the source gives as the capacity; or, where there are weights
    alone, bytes handed out, with a capacity of 1: then it does not matter when they came. Who asks for a
    bounded amount takes part until the *fluid* has given it that, whenever its samples come.
    """

    def __init__(self, capacity: Fraction) -> None:
        self._capacity = capacity
        self._at = 0
        self._level = 0  # bytes per unit of weight that have flowed, scaled
        self._rise = Fraction(0)  # of the level, per unit of the clock
        self._weight = 0  # of those who have only a weight, and take part
        self._flows: dict[str, _Flow] = {}
        self._clamped: list[_Flow] = []  # those who take part and have more than a weight
        self._ends: list[tuple[int, int, _Flow]] = []  # (level, order, flow), a heap; some are out of date
        self._order = 0
        self._next_end: int | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._flows

    def join(self, name: str, ask: Ask, amount: int | None, at: int) -> None:
        """It begins to ask, for so many bytes, and is due nothing yet."""
        self._flows[name] = _Flow(ask)
        self.more(name, amount, at)

    def more(self, name: str, amount: int | None, at: int) -> None:
        """It asks for so many bytes on top; None: without end."""
        self.advance(at)
        flow = self._flows[name]
        flow.due = self._due(flow)
        flow.amount = None if amount is None or flow.amount is None else flow.amount + amount
        if not flow.active:
            flow.active = True
            if flow.plain:
                self._weight += flow.ask.weight
            else:
                self._clamped.append(flow)
        flow.since = self._level if flow.plain else self._at
        if flow.plain and flow.amount is not None:
            flow.end = self._level - (flow.due - flow.amount * _SCALE) // flow.ask.weight
            self._order += 1
            heappush(self._ends, (flow.end, self._order, flow))
        self._balance()

    def leave(self, name: str, at: int) -> None:
        """It asks no more, whatever it has had."""
        self.advance(at)
        self._stop(self._flows.pop(name))
        self._balance()

    def asks(self, name: str, at: int) -> bool:
        """Whether it is still due more."""
        self.advance(at)
        return self._flows[name].active

    def set_capacity(self, capacity: Fraction, at: int) -> None:
        self.advance(at)
        self._capacity = capacity
        self._balance()

    def due(self, name: str, at: int) -> float:
        """Bytes that it was due since it joined."""
        self.advance(at)
        return self._due(self._flows[name]) / _SCALE

    def advance(self, at: int) -> None:
        """Lets flow what flows until then."""
        while self._next_end is not None and self._next_end <= at:
            self._flow_until(self._next_end)
            while self._ends and self._ends[0][0] <= self._level:
                end, _, flow = heappop(self._ends)
                if flow.active and flow.end == end:
                    self._stop(flow)
            for flow in list(self._clamped):
                if flow.amount is not None and self._due(flow) >= flow.amount * _SCALE:
                    self._stop(flow)
            self._balance()
        self._flow_until(at)

    def _flow_until(self, at: int) -> None:
        rise = self._rise
        self._level += (at - self._at) * rise.numerator * _SCALE // rise.denominator
        self._at = at

    def _due(self, flow: _Flow) -> int:
        due, rate = flow.due, flow.rate
        if flow.active and flow.plain:
            due += (self._level - flow.since) * flow.ask.weight
        elif flow.active:
            due += (self._at - flow.since) * rate.numerator * _SCALE // rate.denominator
        return due if flow.amount is None else min(due, flow.amount * _SCALE)

    def _stop(self, flow: _Flow) -> None:
        flow.due = self._due(flow)
        if flow.active:
            flow.active = False
            if flow.plain:
                self._weight -= flow.ask.weight
            else:
                self._clamped.remove(flow)

    def _balance(self) -> None:
        """The rates from now on, and when the first will have had what it asks for."""
        everybody = {str(place): flow.ask for place, flow in enumerate(self._clamped)}
        if self._weight:
            everybody["plain"] = Ask(self._weight)
        rates = shares(everybody, self._capacity) if self._clamped else {"plain": self._capacity}
        self._rise = rates["plain"] / self._weight if self._weight else Fraction(0)
        ends: list[int] = []
        for place, flow in enumerate(self._clamped):
            flow.due, flow.since, flow.rate = self._due(flow), self._at, rates[str(place)]
            if flow.amount is not None and flow.rate:
                ends.append(self._when(flow.amount * _SCALE - flow.due, flow.rate))
        while self._ends and not (self._ends[0][2].active and self._ends[0][2].end == self._ends[0][0]):
            heappop(self._ends)
        if self._ends and self._rise:
            ends.append(self._when(self._ends[0][0] - self._level, self._rise))
        self._next_end = min(ends, default=None)

    def _when(self, scaled_bytes: int, rate: Fraction) -> int:
        """When so much more will have flowed at that rate."""
        return self._at - -scaled_bytes * rate.denominator // (rate.numerator * _SCALE)
