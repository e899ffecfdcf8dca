# SPDX-License-Identifier: Apache-2.0
"""What a series of arrivals says about limits, reservations and shares.  Pure, in integers.

A series is two sequences of one length: instants in nanoseconds, ascending, and sizes in bytes.  Both passes
look at every interval there is, in linear time: the worst interval that ends at an arrival begins where a
running minimum lies, as in Kadane's pass over sums.
"""

from __future__ import annotations

from collections.abc import Sequence

from netrng_hostd.core.bucket import NS_PER_S


def most_above(times_ns: Sequence[int], sizes: Sequence[int], rate: int) -> int:
    """The most bytes that any closed interval w holds beyond rate · w, rounded up; 0 without arrivals.

    A limit is kept if this is at most its burst, and one sample where a seed may overdraw it.
    """
    total, least, most = 0, None, 0
    for time_ns, size in zip(times_ns, sizes):
        before = total * NS_PER_S - rate * time_ns
        least = before if least is None else min(least, before)
        total += size
        most = max(most, total * NS_PER_S - rate * time_ns - least)
    return -(-most // NS_PER_S)


def left_of_burst(times_ns: Sequence[int], sizes: Sequence[int], limit: int, burst: int, now_ns: int) -> int:
    """Bytes left at now_ns of a burst that was whole at the first arrival, rounded up; below 0: overdrawn."""
    left, then_ns = burst * NS_PER_S, times_ns[0] if times_ns else now_ns
    for time_ns, size in [*zip(times_ns, sizes), (now_ns, 0)]:
        left = min(burst * NS_PER_S, left + limit * (time_ns - then_ns)) - size * NS_PER_S
        then_ns = time_ns
    return -(-left // NS_PER_S)


def most_below(times_ns: Sequence[int], sizes: Sequence[int], rate: int, begun_ns: int, ended_ns: int) -> int:
    """The most bytes that any open interval w from begun_ns to ended_ns lacks of rate · w, rounded up.

    Arrivals outside are passed over.  A reservation is kept if this is at most one sample.
    """
    least, total, most = rate * begun_ns, 0, 0
    for time_ns, size in [*zip(times_ns, sizes), (ended_ns, 0)]:
        if begun_ns <= time_ns <= ended_ns:
            most = max(most, rate * time_ns - total * NS_PER_S - least)
            total += size
            least = min(least, rate * time_ns - total * NS_PER_S)
    return -(-most // NS_PER_S)


def leads(marks: Sequence[Sequence[int]], weights: Sequence[int]) -> list[list[float]]:
    """How far each is ahead of its exact share at each mark, in bytes, up to a constant of its own.

    ``marks[k][i]`` is what rival i had at mark k, in bytes.  The exact share of what all of them got is by
    ``weights``: they all ask all the time.
    """
    whole = sum(weights)
    return [[have - sum(mark) * weight / whole for have, weight in zip(mark, weights)] for mark in marks]


def error_since_first(marks: Sequence[Sequence[int]], weights: Sequence[int]) -> float:
    """How far anybody was from its exact share of what was given since the first mark, in bytes."""
    first, *later = leads(marks, weights)
    return max(abs(now - then) for mark in later for now, then in zip(mark, first))


def error_anywhere(marks: Sequence[Sequence[int]], weights: Sequence[int]) -> float:
    """How far anybody was from its exact share in any interval between two marks, in bytes."""
    return float(max(max(lead) - min(lead) for lead in zip(*leads(marks, weights))))
