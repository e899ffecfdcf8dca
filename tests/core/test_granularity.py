# SPDX-License-Identifier: Apache-2.0
"""How large samples are: everybody's turn within a second, at the least cost, and without flapping."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netrng_guest import wire
from netrng_hostd.core import granularity
from netrng_hostd.core.domain import MIN_SAMPLE
from netrng_hostd.core.granularity import sample_size
from netrng_hostd.core.scheduler import MAX_SAMPLE

rates = st.integers(1, 1 << 30) | st.integers(1, 20_000)
askers = st.integers(0, 10_000) | st.integers(0, 20)
maxima = st.integers(MIN_SAMPLE, MAX_SAMPLE) | st.sampled_from([32, 512, 4096])


def steps(maximum: int) -> list[int]:
    """Every size that there may be."""
    return sorted({32 << k for k in range(12) if 32 << k < maximum} | {maximum})


@given(st.none() | rates | st.just(0), askers, st.integers(MIN_SAMPLE, MAX_SAMPLE), maxima)
@example(100_000, 1, 65536, 500)
def test_it_is_a_step_whatever_it_was_before(rate: int | None, n: int, current: int, maximum: int) -> None:
    assert sample_size(rate, n, current, maximum) in steps(maximum)


@given(askers, maxima, st.integers(MIN_SAMPLE, MAX_SAMPLE))
def test_while_nobody_knows_the_rate_samples_are_the_smallest(n: int, maximum: int, current: int) -> None:
    assert sample_size(None, n, current, maximum) == sample_size(0, n, current, maximum) == 32


@given(rates, askers, st.integers(MIN_SAMPLE, MAX_SAMPLE), maxima)
def test_all_have_a_turn_within_a_second_where_the_smallest_sample_allows_it(
    rate: int, n: int, current: int, maximum: int
) -> None:
    size = sample_size(rate, n, current, maximum)
    assert max(n, 1) * size <= rate or size == 32


@given(rates, askers, st.integers(MIN_SAMPLE, MAX_SAMPLE), maxima)
def test_samples_are_no_smaller_than_that_takes(rate: int, n: int, current: int, maximum: int) -> None:
    """Below the maximum, fewer than 16/7 · (n + 1) per second."""
    size = sample_size(rate, n, current, maximum)
    if size < maximum:
        n = max(n, 1)
        larger = min(step for step in steps(maximum) if step > size)
        assert n * larger > rate or 8 * (n + 1) * larger > 7 * rate
        assert 7 * rate < 16 * (n + 1) * size


@given(rates, askers, st.integers(MIN_SAMPLE, MAX_SAMPLE), maxima)
def test_it_is_settled_at_once(rate: int, n: int, current: int, maximum: int) -> None:
    size = sample_size(rate, n, current, maximum)
    assert sample_size(rate, n, size, maximum) == size


@given(st.data(), rates, askers, st.integers(MIN_SAMPLE, MAX_SAMPLE), maxima)
def test_a_rate_within_an_eighth_and_one_that_comes_and_goes_change_it_in_one_direction_alone(
    data: st.DataObject, rate: int, n: int, current: int, maximum: int
) -> None:
    noise = st.tuples(st.integers(-(-7 * rate // 8), rate), st.sampled_from([n, n + 1]))
    sizes = []
    for noisy, asking in data.draw(st.lists(noise, min_size=2, max_size=12), label="(rate, askers)"):
        current = sample_size(noisy, asking, current, maximum)
        sizes.append(current)
    assert sizes in (sorted(sizes), sorted(sizes, reverse=True))


@given(rates, askers, st.integers(MIN_SAMPLE, MAX_SAMPLE), maxima, rates, askers)
def test_more_who_ask_or_a_slower_source_never_make_it_larger(
    rate: int, n: int, current: int, maximum: int, faster: int, more: int
) -> None:
    size = sample_size(rate, n, current, maximum)
    assert sample_size(rate, n + more, current, maximum) <= size
    assert sample_size(rate + faster, n, current, maximum) >= size


@pytest.mark.parametrize(
    ("rate", "n", "size"),
    [(10_000, 1, 512), (10_000, 16, 512), (10_000, 17, 256), (10_000, 20, 256), (10_000, 256, 32),
     (10_000, 1000, 32), (30_000_000, 1000, 512), (1000, 3, 128), (1000, 1, 256), (40, 1, 32), (7, 1, 32)],
)  # fmt: skip
def test_as_it_comes_out_from_the_smallest(rate: int, n: int, size: int) -> None:
    assert sample_size(rate, n, 32, 512) == size


def test_a_size_that_will_do_is_kept_although_it_would_not_be_taken_anew() -> None:
    assert [sample_size(rate, 16, 512, 512) for rate in (8192, 8191)] == [512, 256]
    assert [sample_size(rate, 16, 256, 512) for rate in (9947, 9948)] == [256, 512]


def test_a_maximum_that_is_no_doubling_of_32_is_a_step() -> None:
    assert sample_size(1 << 30, 1, 32, 500) == 500
    assert sample_size(999, 2, 500, 500) == 256
    assert sample_size(10**6, 1, 65536, 100) == 100


@pytest.mark.parametrize("maximum", [31, 0, -1])
def test_a_maximum_below_the_smallest_sample_is_refused(maximum: int) -> None:
    with pytest.raises(ValueError, match="allowed: 32 or more"):
        sample_size(1000, 1, 32, maximum)


def test_the_overhead_is_the_wire_formats() -> None:
    session = bytes(wire.NONCE_SIZE)
    sample = len(wire.encode_sample(session, 0, bytes(32))) - 32
    grant = len(wire.encode(wire.Grant(session, 0, 0, 0)))
    assert (sample, grant) == (32, 48)
    text = granularity.__doc__ or ""
    sizes, factors = (re.findall(r"\d[\d.]*", line) for line in text.splitlines() if line.startswith("    "))
    assert [f"{(int(size) + sample + grant) / int(size):.2f}" for size in sizes] == factors
