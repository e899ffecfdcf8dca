# SPDX-License-Identifier: Apache-2.0
"""From noise to vetted bytes: every noise byte is released, discarded, compressed away or held."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netrng_hostd.core.health import HealthTests, Verdict
from netrng_hostd.core.vetting import Vetting


def noise(length: int) -> bytes:
    return hashlib.shake_256(b"vetting").digest(length)


def test_at_full_entropy_what_passes_is_released_as_it_is() -> None:
    vetting, data = Vetting(), noise(2_000)
    vetted = vetting.feed(data)
    assert vetted.released == data[:1_536]
    assert (vetted.discarded, vetted.conditioned, vetted.alarms, vetting.held) == (0, 0, (), 464)
    assert (vetting.noise_for(100), vetting.output_of(100)) == (100, 100)
    assert not vetting.starting
    assert vetting.restart() == 464
    assert vetting.starting


def test_at_less_blocks_of_what_passes_are_hashed() -> None:
    vetting, data = Vetting(4.0), noise(2_000)  # 80 noise bytes for each 32
    vetted = vetting.feed(data)
    blocks = [hashlib.sha256(data[start : start + 80]).digest() for start in range(0, 1_520, 80)]
    assert vetted.released == b"".join(blocks)
    assert vetted.conditioned == 1_520 - 19 * 32
    assert vetting.held == 464 + 16
    assert (vetting.noise_for(32), vetting.output_of(10_000)) == (80, 4_000)
    assert vetting.restart() == 480
    assert vetting.held == 0


@pytest.mark.parametrize("min_entropy", [8.0, 4.0])
def test_an_alarm_leaves_nothing_of_its_feed_or_of_what_was_held(min_entropy: float) -> None:
    vetting = Vetting(min_entropy)
    first = vetting.feed(noise(1_600))
    held = vetting.held
    vetted = vetting.feed(noise(600) + bytes(1_000) + noise(3_000))
    assert vetted.released == b""
    assert vetted.conditioned == 0
    assert vetted.alarms
    assert len(first.released) + first.conditioned + held == 1_600
    assert vetted.discarded == held + 4_600 - vetting.held


def test_after_an_alarm_blocks_begin_anew() -> None:
    vetting = Vetting(4.0)
    vetting.feed(noise(1_536))
    assert vetting.held == 16, "of a block of 80"
    assert vetting.feed(bytes(512)).alarms
    assert vetting.held == 0
    fresh = noise(3_000)[1_536:2_560]
    assert vetting.feed(fresh).released[:32] == hashlib.sha256(fresh[:80]).digest()


@pytest.mark.parametrize("min_entropy", [8.0, 4.0])
@pytest.mark.parametrize("stuck", [0, 600])
def test_what_is_not_released_as_it_is_is_wiped(
    min_entropy: float, stuck: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = list[bytearray]()
    feed = HealthTests.feed

    def remember(*arguments: Any) -> Verdict:
        verdict = feed(*arguments)
        passed.append(verdict.released)
        return verdict

    monkeypatch.setattr(HealthTests, "feed", remember)
    vetted = Vetting(min_entropy).feed(noise(2_048) + bytes(stuck))
    assert len(passed[0]) >= 2_048
    assert any(passed[0]) == (vetted.released is passed[0])
    assert bool(vetted.released) == (not stuck)


def test_the_claim_must_be_one_that_the_tests_can_use() -> None:
    with pytest.raises(ValueError, match="min_entropy"):
        Vetting(0.1)


def test_no_bytes_in_words() -> None:
    vetted = Vetting().feed(noise(1_024))
    assert repr(vetted) == "Vetted(released=1024 bytes, discarded=0, conditioned=0, alarms=())"


@settings(max_examples=30)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 1_500), st.booleans()), max_size=12),
    min_entropy=st.sampled_from([8.0, 6.5, 4.0]),
)
def test_no_byte_is_lost_or_counted_twice(pieces: list[tuple[int, bool]], min_entropy: float) -> None:
    vetting = Vetting(min_entropy)
    fed = released = discarded = conditioned = 0
    for size, stuck in pieces:
        vetted = vetting.feed(bytes(size) if stuck else noise(size))
        fed += size
        released += len(vetted.released)
        discarded += vetted.discarded
        conditioned += vetted.conditioned
        assert fed == released + discarded + conditioned + vetting.held
    assert conditioned == vetting.noise_for(released) - released
