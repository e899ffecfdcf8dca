# SPDX-License-Identifier: Apache-2.0
"""What everybody is due, worked out exactly and in another way than the scheduler does it."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from netrng_hostd.core.quota import Quota


def exact_shares(quotas: Mapping[str, Quota], capacity: Fraction | int) -> dict[str, Fraction]:
    """clamp(λ · weight, reservation, limit) that sums to the capacity, by search over λ's break points.

    Bytes per second.
    """

    def share(level: Fraction, quota: Quota) -> Fraction:
        low = max(level * quota.weight, Fraction(quota.reservation))
        return low if quota.limit is None else min(low, Fraction(quota.limit))

    def total(level: Fraction) -> Fraction:
        return sum((share(level, quota) for quota in quotas.values()), Fraction())

    points = {Fraction(0)}
    for quota in quotas.values():
        points |= {
            Fraction(rate, quota.weight) for rate in (quota.reservation, quota.limit) if rate is not None
        }
    low = max(point for point in points if total(point) <= capacity)
    slope = total(low + Fraction(1, 10**9)) - total(low)  # linear up to the next break point
    level = low + (capacity - total(low)) / (slope * 10**9) if slope else low
    return {uuid: share(level, quota) for uuid, quota in quotas.items()}
