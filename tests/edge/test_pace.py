# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from netrng_hostd.sources.pace import (
    ALARM_MEMORY_NS,
    FIRST_RETRY_NS,
    LAST_ALARM_RETRY_NS,
    LAST_RETRY_NS,
    MIN_READ,
    SETTLED_NS,
    CapacityMeter,
    ReadSize,
    Retry,
)

MS = 1_000_000
S = 1_000_000_000


def test_reads_grow_while_they_are_fast_and_shrink_when_they_are_slow() -> None:
    size = ReadSize(4096)
    for _ in range(20):
        size.took(size.bytes, size.bytes, MS)
    assert size.bytes == 4096
    size.took(4096, 4096, 70 * MS)
    assert size.bytes == 4096
    for _ in range(20):
        size.took(size.bytes, size.bytes, 90 * MS)
    assert size.bytes == MIN_READ


def test_short_reads_and_reads_limited_by_room_do_not_grow_the_size() -> None:
    size = ReadSize(4096)
    size.took(10, 64, MS)
    size.took(8, 8, MS)
    assert size.bytes == 64


def read_on(meter: CapacityMeter, start_ns: int, rate: int, seconds: int) -> list[bool]:
    """Reading on end, ten reads a second: first for as long as is not counted, then for so many seconds."""
    steps = range(-3, 10 * seconds + 1)
    return [meter.add(rate // 10, start_ns + step * 100 * MS) for step in steps]


def test_capacity_is_the_rate_over_a_second_of_reading_on_end() -> None:
    meter = CapacityMeter()
    assert read_on(meter, S, 10_000, 1) == [False] * 13 + [True]
    assert (meter.rate, meter.measured_ns) == (10_000, 2 * S)


def test_what_was_saved_up_while_nobody_read_is_no_capacity() -> None:
    meter = CapacityMeter()
    for step in range(50):
        meter.add(4096, S + step * 1000)
    read_on(meter, S + 400 * MS, 1_000, 1)
    assert meter.rate == 1_000


def test_capacity_learns_nothing_from_time_spent_waiting_for_space() -> None:
    meter = CapacityMeter()
    for second in range(20):
        for tenth in range(10):
            meter.add(1000, second * S + tenth * 100 * MS)
        meter.waited()
    assert meter.rate is None


def test_capacity_is_a_mean_over_the_last_ten_seconds() -> None:
    meter = CapacityMeter()
    read_on(meter, S, 10_000, 2)
    meter.waited()
    read_on(meter, 5 * S, 40_000, 1)
    assert (meter.rate, meter.measured_ns) == (20_000, 6 * S)
    meter.waited()
    read_on(meter, 14 * S, 1_000, 1)  # of those before, the one that ended at 6 s counts still
    assert meter.rate == (40_000 + 1_000) // 2
    meter.waited()
    read_on(meter, 100 * S, 500, 1)
    assert meter.rate == 500


def test_a_read_that_hung_says_nothing_of_the_source_before_and_after() -> None:
    meter = CapacityMeter()
    read_on(meter, S, 10_000, 3)
    assert not meter.add(1_000, 34 * S)
    assert meter.rate == 10_000
    assert [meter.add(1_000, 34 * S + step * 100 * MS) for step in range(1, 11)] == [False] * 9 + [True]
    assert (meter.rate, meter.measured_ns) == (10_000, 35 * S)


def test_one_hung_read_a_minute_is_left_out() -> None:
    meter = CapacityMeter()
    read_on(meter, S, 10_000, 3)
    for hang in (1, 2, 3):
        assert not meter.add(1_000, (70 * hang + 34) * S)
        assert read_on(meter, (70 * hang + 34) * S, 10_000, 62).count(True) == 62
        assert meter.rate == 10_000


def test_a_source_that_hangs_for_more_than_a_minute_each_time_is_as_slow_as_that() -> None:
    meter = CapacityMeter()
    read_on(meter, S, 10_000, 3)
    assert [meter.add(64, (4 + 64 * read) * S) for read in (1, 2, 3)] == [False, True, True]
    assert meter.rate == 1


def test_a_source_that_hangs_again_and_again_is_as_slow_as_that() -> None:
    meter = CapacityMeter()
    now_ns = S
    rates = []
    for _ in range(20):  # three seconds of 10,000 bytes each, and then two and a half of nothing
        for _ in range(30):
            now_ns += 100 * MS
            meter.add(1_000, now_ns)
        now_ns += 2_500 * MS
        meter.add(1_000, now_ns)
        rates.append(meter.rate or 0)
    assert rates[0] == 10_000
    assert max(rates[1:]) < 8_000
    meter.failed()
    read_on(meter, now_ns + S, 10_000, 1)
    assert not meter.add(1_000, now_ns + 60 * S)
    assert meter.rate == 10_000


def test_a_source_that_is_always_slow_is_measured() -> None:
    meter = CapacityMeter()
    assert [meter.add(32, step * 4 * S) for step in range(1, 7)] == [False, False, False, True, True, True]
    assert meter.rate == 8


def test_what_was_measured_before_a_failure_is_mixed_with_nothing() -> None:
    meter = CapacityMeter()
    read_on(meter, S, 10_000, 2)
    meter.failed()
    assert meter.rate == 10_000
    read_on(meter, 5 * S, 500, 1)
    assert meter.rate == 500


def delays(retry: Retry, count: int, now_ns: int = 0) -> list[int]:
    return [retry.delay_ns(now_ns) for _ in range(count)]


def test_retries_back_off_and_start_anew_after_a_minute_of_success() -> None:
    retry = Retry()
    waits = delays(retry, 12)
    assert waits[:3] == [FIRST_RETRY_NS, 2 * FIRST_RETRY_NS, 4 * FIRST_RETRY_NS]
    assert waits[-1] == LAST_RETRY_NS
    retry.succeeded(SETTLED_NS - 1)  # a source that fails again and again passes its start-up each time
    assert retry.delay_ns(SETTLED_NS) == LAST_RETRY_NS
    retry.succeeded(2 * SETTLED_NS)
    assert retry.delay_ns(2 * SETTLED_NS) == FIRST_RETRY_NS


def test_one_alarm_in_an_hour_is_chance_and_two_are_proof() -> None:
    retry = Retry()
    assert not retry.alarmed(1, 5 * S)
    assert retry.alarmed(1, 5 * S + ALARM_MEMORY_NS - 1)
    assert retry.alarmed(1, 5 * S + 2 * ALARM_MEMORY_NS - 2)  # an hour since the last one, not the first
    assert not retry.alarmed(1, 5 * S + 3 * ALARM_MEMORY_NS - 2)


def test_two_alarms_in_one_read_are_two() -> None:
    assert Retry().alarmed(2, 0)


def test_success_does_not_shorten_the_waits_while_alarms_are_remembered() -> None:
    retry = Retry()
    retry.alarmed(2, 0)
    waits = []
    for second in range(0, 1_000, 100):
        waits.append(retry.delay_ns(second * S))
        retry.succeeded((second + 99) * S)
    assert waits[:3] == [FIRST_RETRY_NS, 2 * FIRST_RETRY_NS, 4 * FIRST_RETRY_NS]
    assert waits[-1] == LAST_ALARM_RETRY_NS
    retry.succeeded(ALARM_MEMORY_NS - 1)
    assert retry.delay_ns(ALARM_MEMORY_NS - 1) == LAST_ALARM_RETRY_NS
    retry.succeeded(ALARM_MEMORY_NS + SETTLED_NS)
    assert retry.delay_ns(ALARM_MEMORY_NS + SETTLED_NS) == FIRST_RETRY_NS
