# SPDX-License-Identifier: Apache-2.0
"""One domain's three buckets, and when they let it be served."""

from __future__ import annotations

from netrng_hostd.core.bucket import NS_PER_S
from netrng_hostd.core.domain import SEED_SIZE, Domain
from netrng_hostd.core.quota import Quota

SAMPLE, GRAIN = 512, 128


def make(**quota: int) -> Domain:
    domain = Domain("vm", Quota("test", **quota), 0)
    domain.apply(domain.quota, SAMPLE, 0)
    return domain


def test_one_sample_never_holds_bytes_of_both_sides_of_offset_64() -> None:
    domain = make()
    domain.seed, domain.body = 20, 4096
    assert domain.wanted == 20
    domain.seed = 0
    assert domain.wanted == 4096


def unblocked_ns(domain: Domain) -> int:
    return domain.unblocked_ns(domain.next_bytes(SAMPLE, GRAIN), 0)


def test_without_a_limit_nothing_blocks() -> None:
    domain = make()
    domain.body = 4096
    assert domain.next_bytes(SAMPLE, GRAIN) == SAMPLE
    assert unblocked_ns(domain) == 0
    assert domain.fresh_ns() == 0


def test_a_limit_blocks_until_it_covers_a_sample() -> None:
    domain = make(limit=1000, burst=4096)
    assert domain.limit is not None
    domain.body = 9999
    assert unblocked_ns(domain) == 0
    domain.limit.spend(4096, 0)
    assert unblocked_ns(domain) == 512 * NS_PER_S // 1000
    domain.body = 100
    assert unblocked_ns(domain) == 100 * NS_PER_S // 1000


def test_a_reserved_domain_waits_for_a_grain_only() -> None:
    domain = make(limit=1000, burst=4096, reservation=500)
    assert domain.limit is not None
    domain.body = 9999
    domain.limit.spend(4096, 0)
    assert unblocked_ns(domain) == GRAIN * NS_PER_S // 1000


def test_a_small_bucket_need_not_be_full() -> None:
    domain = make(limit=1000, burst=64)
    assert domain.limit is not None
    domain.body = 9999
    domain.limit.spend(64, 0)
    assert unblocked_ns(domain) == 32 * NS_PER_S // 1000


def test_a_seed_is_paid_by_its_own_bucket_at_a_byte_a_second() -> None:
    domain = make()
    domain.seed = SEED_SIZE
    assert domain.seeded_ns(SAMPLE, 0) == 0
    domain.seeds.spend(SEED_SIZE, 0)
    assert domain.seeded_ns(SAMPLE, 0) == domain.fresh_ns() == SEED_SIZE * NS_PER_S


def test_a_seed_may_overdraw_the_limit_by_one_sample_and_no_more() -> None:
    domain = make(limit=10, burst=64)
    assert domain.limit is not None
    domain.seed = SEED_SIZE
    domain.limit.spend(64 + SAMPLE - SEED_SIZE, 0)
    assert domain.seeded_ns(SAMPLE, 0) == 0
    domain.limit.spend(1, 0)
    assert domain.seeded_ns(SAMPLE, 0) == NS_PER_S // 10
    domain.seeds.spend(SEED_SIZE, 0)
    assert domain.seeded_ns(SAMPLE, 0) == 64 * NS_PER_S


def test_what_is_owed_grows_with_time_and_what_a_starved_source_owes_is_capped() -> None:
    domain = make(reservation=1000)
    assert domain.owed.holds(0) == 0
    domain.owed.spend(GRAIN, 0)
    assert domain.owed.when(0) == domain.fresh_ns() == GRAIN * NS_PER_S // 1000
    assert domain.owed.holds(3600 * NS_PER_S) == 1000 + SAMPLE


def test_the_deadline_is_when_a_whole_grain_is_owed() -> None:
    domain = make(reservation=1000)
    domain.owed.spend(28, 0)
    assert domain.deadline_ns(GRAIN, 0) == 156 * NS_PER_S // 1000


def test_one_that_begins_to_ask_is_owed_nothing_and_still_owes_what_it_owed() -> None:
    domain = make(reservation=10)
    domain.begin(100 * NS_PER_S)
    assert domain.owed.holds(100 * NS_PER_S) == 0
    domain.owed.spend(50, 100 * NS_PER_S)
    domain.begin(101 * NS_PER_S)
    assert domain.owed.holds(101 * NS_PER_S) == -40


def test_a_new_quota_keeps_levels_and_debts() -> None:
    domain = make(limit=100, burst=1000, reservation=10)
    assert domain.limit is not None
    domain.limit.spend(900, 0)
    domain.owed.spend(50, 0)
    domain.apply(Quota("new", reservation=5, limit=50, burst=64), SAMPLE, 0)
    assert domain.limit.holds(0) == 64
    assert domain.owed.holds(0) == -50
    assert domain.fresh_ns() == 10 * NS_PER_S


def test_a_limit_can_come_and_go() -> None:
    domain = make(limit=100)
    levels = []
    for quota in (Quota("free"), Quota("again", limit=7, burst=70)):
        domain.apply(quota, SAMPLE, 0)
        levels.append(domain.limit and domain.limit.holds(0))
    assert levels == [None, 70]


def test_without_a_reservation_nothing_is_ever_owed() -> None:
    domain = make(reservation=100)
    domain.owed.settle(NS_PER_S)
    domain.apply(Quota("none"), SAMPLE, NS_PER_S)
    assert domain.owed.holds(9 * NS_PER_S) == 0
