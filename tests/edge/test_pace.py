# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from netrng_hostd.sources.pace import FIRST_RETRY_S, LAST_RETRY_S, MIN_READ, CapacityMeter, ReadSize, Retry

MS = 1_000_000
S = 1_000_000_000


def test_reads_grow_while_they_are_fast_and_shrink_when_they_are_slow() -> None:
    size = ReadSize(4096)
    for _ in range(20):
        size.took(size.bytes, size.bytes, MS)
    assert size.bytes == 4096
    size.took(4096, 4096, 10 * MS)
    assert size.bytes == 4096
    for _ in range(20):
        size.took(size.bytes, size.bytes, 50 * MS)
    assert size.bytes == MIN_READ


def test_short_reads_and_reads_limited_by_room_do_not_grow_the_size() -> None:
    size = ReadSize(4096)
    size.took(10, 64, MS)
    size.took(8, 8, MS)
    assert size.bytes == 64


def test_capacity_is_the_rate_over_a_second_of_reading_on_end() -> None:
    meter = CapacityMeter()
    for tick in range(10):
        meter.add(1000, tick * 100 * MS, (tick + 1) * 100 * MS)
    assert meter.rate == 10_000
    assert meter.measured_ns == S


def test_capacity_learns_nothing_from_time_spent_waiting_for_space() -> None:
    meter = CapacityMeter()
    for tick in range(9):
        meter.add(1000, tick * 100 * MS, (tick + 1) * 100 * MS)
        meter.waited()
    assert meter.rate is None
    meter.add(5, 100 * S, 100 * S + 1)
    assert meter.rate is None


def test_a_new_measurement_replaces_the_old() -> None:
    meter = CapacityMeter()
    meter.add(500, 0, S)
    meter.add(900, S, 2 * S)
    assert (meter.rate, meter.measured_ns) == (900, 2 * S)


def test_retries_back_off_and_start_anew_after_success() -> None:
    retry = Retry()
    delays = [retry.delay_s() for _ in range(12)]
    assert delays[:3] == [FIRST_RETRY_S, 2 * FIRST_RETRY_S, 4 * FIRST_RETRY_S]
    assert delays[-1] == LAST_RETRY_S
    retry.succeeded()
    assert retry.delay_s() == FIRST_RETRY_S
