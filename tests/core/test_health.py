# SPDX-License-Identifier: Apache-2.0
"""What the health tests promise, held against a byte-by-byte and bit-by-bit reading of SP 800-90B 4.4.

Whether they raise as many false alarms as they should is in test_false_alarms.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netrng_hostd.core.blocktest import Cutoffs, block_cutoffs
from netrng_hostd.core.cutoffs import bits_cutoff
from netrng_hostd.core.health import (
    APT_BITS,
    APT_BYTES,
    BLOCK,
    BYTE_WINDOW,
    RCT,
    STARTUP,
    Alarm,
    HealthTests,
    Verdict,
    _popcount,
    _popcount_by_table,
    apt_cutoff,
    rct_cutoff,
)

BIT_WINDOW_BYTES = 128


def good(size: int, seed: int = 1) -> bytes:
    """Noise that passes every test at H = 8 and a = 40 (the tests below would say so if it did not)."""
    return random.Random(seed).randbytes(size)


def started(seed: int = 1) -> HealthTests:
    health = HealthTests()
    verdict = health.feed(good(STARTUP, seed))
    assert len(verdict.released) == STARTUP
    return health


def feed_all(health: HealthTests, pieces: Iterable[bytes]) -> tuple[bytes, int, list[Alarm]]:
    released, discarded, alarms = bytearray(), 0, list[Alarm]()
    for piece in pieces:
        verdict = health.feed(piece)
        assert verdict.alarm == (verdict.alarms[0] if verdict.alarms else None)
        released += verdict.released
        discarded += verdict.discarded
        alarms += verdict.alarms
    return bytes(released), discarded, alarms


class Found(NamedTuple):
    test: str
    offset: int


class Slow:
    """The same promises, one byte and one bit at a time, in the standard's own steps."""

    def __init__(self, min_entropy: float) -> None:
        self.rct = rct_cutoff(40, min_entropy)
        self.apt_bytes = apt_cutoff(40, min_entropy, 512)
        self.apt_bits = bits_cutoff(40, min_entropy)
        self.block = block_cutoffs(40, min_entropy)
        self.released, self.discarded, self.alarms = bytearray(), 0, list[Found]()
        self.offset = self.skip = 0
        self.start()

    def start(self) -> None:
        self.pending, self.window, self.need = bytearray(), bytearray(), STARTUP
        self.a, self.b = -1, 0

    def feed(self, byte: int) -> None:
        self.offset += 1
        if self.skip:
            self.skip -= 1
            self.discarded += 1
            return
        self.pending.append(byte)
        self.window.append(byte)
        test = self.failed(byte)
        if test:
            self.alarms.append(Found(test, self.offset))
            self.discarded += len(self.pending)
            self.skip = 512 - len(self.window)
            self.start()
        elif len(self.window) == 512:
            self.window = bytearray()
            if len(self.pending) >= self.need:
                self.released += self.pending
                self.pending, self.need = bytearray(), 512

    def failed(self, byte: int) -> str:
        self.a, self.b = (self.a, self.b + 1) if byte == self.a else (byte, 1)
        if len(self.window) % 128 == 0:
            bits = [byte >> shift & 1 for byte in self.window[-128:] for shift in range(7, -1, -1)]
            if sum(bit == bits[0] for bit in bits) >= self.apt_bits:
                return APT_BITS
        if self.b >= self.rct:
            return RCT
        if len(self.window) == 512 and sum(x == self.window[0] for x in self.window) >= self.apt_bytes:
            return APT_BYTES
        if len(self.window) == 512:
            total = sum(self.window.count(value) ** 2 for value in set(self.window))
            if total <= self.block.low or total >= self.block.high:
                return BLOCK
        return ""


# --- cutoffs -------------------------------------------------------------------------------------------


def test_cutoffs_follow_the_claim() -> None:
    health = HealthTests(min_entropy=4.0, alpha_exponent=20)
    assert health.rct_cutoff == rct_cutoff(20, 4.0) == 6
    assert health.apt_byte_cutoff == apt_cutoff(20, 4.0, 512)
    assert health.apt_bit_cutoff == bits_cutoff(20, 4.0)
    assert health.block_cutoffs == block_cutoffs(20, 4.0)
    assert HealthTests().block_cutoffs == Cutoffs(1278, 1976)


@pytest.mark.parametrize("claim", [0.3124, 0.0, -1.0, 8.1, math.nan, math.inf])
def test_claims_that_a_test_could_not_check_are_refused(claim: float) -> None:
    with pytest.raises(ValueError, match=r"must be 0\.3125 to 8\.0 bits per byte"):
        HealthTests(claim)


def test_a_false_alarm_rate_beyond_the_standards_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha_exponent is 41, must be at most 40"):
        HealthTests(8.0, 41)


def test_the_least_claim_leaves_every_test_able_to_fail() -> None:
    health = HealthTests(0.3125)
    assert health.apt_bit_cutoff == 1024
    assert health.apt_byte_cutoff <= 512
    assert health.block_cutoffs.high <= 512 * 512


# --- release -------------------------------------------------------------------------------------------


def test_start_up_holds_everything_until_1024_bytes_have_passed() -> None:
    noise = good(STARTUP)
    health = HealthTests()
    verdict = health.feed(noise[:-1])
    assert (len(verdict.released), verdict.discarded, health.held, health.starting) == (0, 0, 1023, True)
    verdict = health.feed(noise[-1:])
    assert verdict == Verdict(bytearray(noise), 0)
    assert (health.held, health.starting) == (0, False)


def test_afterwards_a_byte_is_held_until_its_window_has_passed() -> None:
    health = started()
    noise = good(BYTE_WINDOW, seed=2)
    assert health.feed(noise[:511]).released == b""
    assert health.held == 511
    assert health.feed(noise[511:]).released == noise
    assert health.held == 0


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_taken_and_left_alone(kind: type[bytes]) -> None:
    noise = good(3000)
    given_ = kind(bytearray(noise))
    assert HealthTests().feed(given_).released == noise[:2560]
    assert given_ == noise


def test_an_empty_feed_changes_nothing() -> None:
    health = HealthTests()
    assert health.feed(b"") == Verdict(bytearray(), 0)
    assert health.held == 0


def test_noise_of_two_megabytes_passes_whole() -> None:
    noise = good(1 << 21)
    assert HealthTests().feed(noise) == Verdict(bytearray(noise), 0)


# --- each test at its cutoff ---------------------------------------------------------------------------


def test_zeros_are_an_alarm_at_the_sixth_byte() -> None:
    health = HealthTests()
    assert health.feed(bytes(5)).alarm is None
    verdict = health.feed(bytes(1))
    assert verdict.alarm == Alarm(RCT, "6 equal bytes in a row, alarm from 6", 6)
    assert (len(verdict.released), verdict.discarded, health.held) == (0, 6, 0)


@pytest.mark.parametrize("value", [0x00, 0x37, 0xFF])
@pytest.mark.parametrize("end", [STARTUP // 2, STARTUP, STARTUP + BYTE_WINDOW])
def test_runs_are_carried_across_windows(value: int, end: int) -> None:
    other = bytes([value ^ 0xA5])
    noise = good(end - 4) + other + bytes([value]) * 3
    health = HealthTests()
    assert not health.feed(noise).alarms
    assert not health.feed(bytes([value]) * 2).alarms
    alarm = health.feed(bytes([value])).alarm
    assert alarm is not None
    assert (alarm.test, alarm.offset) == (RCT, end + 3)


def test_a_run_below_the_cutoff_passes_wherever_it_begins() -> None:
    for begin in (0, 1, 100, 508, 510, 1019):
        noise = bytearray(good(STARTUP + BYTE_WINDOW, seed=begin + 10))
        noise[begin : begin + 5] = b"\xa7" * 5
        noise[begin + 5] = 0
        verdict = HealthTests().feed(noise)
        assert (verdict.alarms, len(verdict.released)) == ((), len(noise)), begin


def byte_window(count: int, seed: int) -> bytearray:
    """512 bytes, the first of which occurs `count` times, never twice in a row."""
    window = bytearray(b for b in good(3 * BYTE_WINDOW, seed) if b != 0x5A)[:BYTE_WINDOW]
    for i in range(count):
        window[i * 2] = 0x5A
    return window


def test_byte_apt_counts_the_first_byte_of_each_window() -> None:
    health = started()
    assert health.feed(byte_window(18, seed=3)).alarm is None
    window = byte_window(19, seed=4)
    assert health.feed(window[:-1]).alarm is None
    verdict = health.feed(window[-1:])
    assert verdict.alarm == Alarm(APT_BYTES, "one value 19 times in 512 bytes, alarm from 19", 2048)
    assert (len(verdict.released), verdict.discarded) == (0, 512)


def test_byte_apt_sees_the_second_window_of_start_up_by_itself() -> None:
    """The first window's most frequent byte, 19 times in the second one, is not that window's first."""
    first, second = byte_window(18, seed=3), byte_window(20, seed=4)
    second[0] = 0x11
    assert not HealthTests().feed(first + second).alarms
    assert not HealthTests().feed(first + byte_window(18, seed=4)).alarms
    verdict = HealthTests().feed(good(BYTE_WINDOW, seed=18) + byte_window(19, seed=4))
    assert verdict.alarm is not None
    assert (verdict.alarm.test, verdict.alarm.offset, verdict.discarded) == (APT_BYTES, 1024, 1024)


def test_byte_apt_windows_do_not_overlap() -> None:
    """Eighteen at one window's end and eighteen at the next one's start are no alarm."""
    first = byte_window(18, seed=5)
    first = first[:1] + first[:0:-1]  # the first byte stays, the others move to the end
    assert not started().feed(first + byte_window(18, seed=6)).alarms


def test_byte_apt_ignores_a_frequent_byte_that_is_not_the_first() -> None:
    window = byte_window(23, seed=7)
    window[0] = 0x11
    assert not started().feed(window).alarms


def window_of(total: int, seed: int) -> bytes:
    """512 bytes with this sum of squared counts, an even number from 1,024; no value is frequent."""
    rng = random.Random(seed)
    counts, left = [2] * 256, total - 1024
    while left:  # one byte turns into one of another value
        old, new = rng.sample(range(256), 2)
        step = 2 * (counts[new] - counts[old] + 1)
        if 0 < step <= left and counts[old] and counts[new] < 12:
            left -= step
            counts[new] += 1
            counts[old] -= 1
    window = [value for value in range(256) for _ in range(counts[value])]
    rng.shuffle(window)
    assert sum(window.count(value) ** 2 for value in range(256)) == total
    return bytes(window)


@pytest.mark.parametrize("windows_after", [0, 7])  # alone, and among many that are tested at once
@pytest.mark.parametrize(("failing", "passing"), [(1278, 1280), (1976, 1974), (1024, 1282), (3000, 1500)])
def test_the_block_test_at_its_cutoffs(failing: int, passing: int, windows_after: int) -> None:
    rest = good(windows_after * BYTE_WINDOW, seed=21)
    verdict = started().feed(window_of(passing, seed=22) + rest)
    assert (verdict.alarms, len(verdict.released)) == ((), BYTE_WINDOW + len(rest))
    verdict = started().feed(window_of(failing, seed=22) + rest)
    detail = f"squared counts of the byte values add up to {failing}, alarm up to 1278 and from 1976"
    assert verdict.alarms == (Alarm(BLOCK, detail, STARTUP + BYTE_WINDOW),)
    assert (len(verdict.released), verdict.discarded) == (len(rest), BYTE_WINDOW)


def test_block_windows_begin_where_byte_windows_do() -> None:
    """Half of one even window and half of the next do not make one."""
    even = window_of(1024, seed=23)
    noise = good(256, seed=24) + even + good(256, seed=25)
    assert not started().feed(noise).alarms
    assert started().feed(even).alarms


def test_a_counter_is_caught_in_its_first_window_at_every_phase() -> None:
    counter = bytes(range(256)) * 18
    for phase in range(256):
        alarms = HealthTests().feed(counter[phase : phase + STARTUP]).alarms
        assert [(alarm.test, alarm.offset) for alarm in alarms] == [(BLOCK, 512), (BLOCK, 1024)]
        health = started()
        before = health.feed(good(phase * 2, seed=phase))
        verdict = health.feed(counter[phase : phase + 4096])
        assert not before.alarms
        assert verdict.alarm is not None
        assert verdict.alarm.test == BLOCK
        assert verdict.alarm.offset <= STARTUP + phase * 2 + 1024
        assert len(verdict.released) <= BYTE_WINDOW


def bit_window(count: int, first: int, seed: int) -> bytes:
    """128 bytes, the first bit of which (most significant first) is `first` and occurs `count` times."""
    bits = [first] * (count - 1) + [1 - first] * (1024 - count)
    random.Random(seed).shuffle(bits)
    bits = [first, *bits]
    return int("".join(map(str, bits)), 2).to_bytes(128, "big")


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("place", range(4))
def test_bit_apt_counts_the_first_bit_of_each_1024(first: int, place: int) -> None:
    before = good(place * BIT_WINDOW_BYTES, seed=8)
    health = started()
    assert not health.feed(before + bit_window(624, first, seed=9)).alarms
    health = started()
    verdict = health.feed(before + bit_window(625, first, seed=9))
    alarm = Alarm(APT_BITS, "one value 625 times in 1024 bits, alarm from 625", 1024 + len(before) + 128)
    assert verdict.alarm == alarm
    assert (len(verdict.released), verdict.discarded) == (0, len(before) + 128)


@given(bits=st.integers(0, 2**1024 - 1))
@settings(max_examples=30)
def test_both_popcounts_count_ones(bits: int) -> None:
    assert _popcount_by_table(bits) == _popcount(bits) == bin(bits).count("1")


def test_the_earlier_of_two_alarms_counts() -> None:
    verdict = started().feed(bit_window(700, 1, seed=9) + good(50, seed=19) + bytes(6))
    assert [(alarm.test, alarm.offset) for alarm in verdict.alarms] == [(APT_BITS, STARTUP + 128)]
    verdict = started().feed(bytes(6) + good(122, seed=19) + bit_window(700, 1, seed=9))
    assert [(alarm.test, alarm.offset) for alarm in verdict.alarms] == [(RCT, STARTUP + 6)]


def test_bit_apt_ignores_a_window_short_of_its_first_bit() -> None:
    assert not started().feed(bit_window(300, 0, seed=10)).alarms
    assert not started().feed(bit_window(300, 1, seed=11)).alarms


# --- many windows at once ------------------------------------------------------------------------------


def test_a_run_is_carried_through_windows_that_are_tested_at_once() -> None:
    windows = bytearray(good(8 * BYTE_WINDOW, seed=26))
    windows[-4:] = b"\x10\x77\x77\x77"
    rest = bytearray(good(8 * BYTE_WINDOW, seed=27))
    rest[:4] = b"\x77\x77\x10\x11"
    health = started()
    assert not health.feed(windows).alarms
    assert not health.feed(rest).alarms
    rest[:3] = b"\x77\x77\x77"
    for before in (b"", good(100, seed=28)):  # where a window begins, and amid one
        health = started()
        alarm = health.feed(before + windows).alarm or health.feed(rest).alarm
        assert alarm is not None
        assert (alarm.test, alarm.offset) == (RCT, STARTUP + len(before) + len(windows) + 3)


@pytest.mark.parametrize("windows", [0, 1, 5])
def test_a_run_is_carried_into_them_from_a_window_that_was_tested_by_itself(windows: int) -> None:
    begin = STARTUP + windows * BYTE_WINDOW
    noise = bytearray(good(begin + 8 * BYTE_WINDOW, seed=40))
    noise[begin - 4 : begin + 5] = b"\x10\x77\x77\x77\x77\x77\x10\x11\x12"
    for run, offsets in ((5, []), (6, [begin + 3])):
        noise[begin - 3 : begin - 3 + run] = b"\x77" * run
        first = [bytes(noise[:STARTUP]), *chop(bytes(noise[STARTUP:begin]), [BYTE_WINDOW])]
        alarms = feed_all(HealthTests(), [*first, bytes(noise[begin:])])[2]
        assert [alarm.offset for alarm in alarms] == offsets


def test_what_was_held_before_them_is_released_first() -> None:
    health = started()
    noise = good(300 + 7 * BYTE_WINDOW + 100, seed=29)
    assert health.feed(noise[:300]).released == b""
    assert health.feed(noise[300:]).released == noise[: 7 * BYTE_WINDOW]
    assert health.held == 400
    assert health._buffer[:400] == noise[7 * BYTE_WINDOW :]


def test_a_bit_window_after_them_is_looked_at_from_its_beginning() -> None:
    health = started()
    health.feed(good(300, seed=30))
    assert not health.feed(good(4 * BYTE_WINDOW - 300, seed=31)).alarms
    assert not any(health._buffer), "what was held is wiped"
    alarm = health.feed(bit_window(700, 1, seed=32)).alarm
    assert alarm is not None
    assert (alarm.test, alarm.offset) == (APT_BITS, STARTUP + 4 * BYTE_WINDOW + BIT_WINDOW_BYTES)


def test_what_is_refused_leaves_no_copy() -> None:
    windows = bytearray(4 * BYTE_WINDOW)
    noise = bytes(range(256)) * 8
    assert not started()._screen_windows(memoryview(noise), memoryview(windows))
    assert not any(windows)


# --- after an alarm ------------------------------------------------------------------------------------


def test_an_alarm_destroys_its_window_and_start_up_begins_again() -> None:
    health = started()
    spoilt = good(100, seed=12) + b"\x99" * 6
    verdict = health.feed(spoilt)
    assert verdict.alarm is not None
    assert (len(verdict.released), verdict.discarded, health.held, health.starting) == (0, 106, 0, True)
    rest = good(BYTE_WINDOW - 106, seed=13)
    verdict = health.feed(rest)
    assert (len(verdict.released), verdict.discarded, health.held) == (0, len(rest), 0)
    clean = good(STARTUP, seed=14)
    assert health.feed(clean[:-1]).released == b""
    assert health.feed(clean[-1:]).released == clean


def test_an_alarm_in_start_up_destroys_the_first_window_too() -> None:
    health = HealthTests()
    verdict = health.feed(good(600) + bytes(6))
    assert (len(verdict.released), verdict.discarded, health.held) == (0, 606, 0)


def test_a_run_does_not_count_on_across_an_alarm() -> None:
    health = started()
    health.feed(byte_window(19, seed=4)[:-5] + b"\x5a" * 5)
    assert health.starting
    assert not health.feed(b"\x5a" * 5).alarms
    assert health.feed(b"\x5a").alarm is not None


def test_a_dead_source_raises_one_alarm_per_window() -> None:
    verdict = HealthTests().feed(bytes(64 * 1024))
    assert [alarm.offset for alarm in verdict.alarms] == [512 * i + 6 for i in range(128)]
    assert (len(verdict.released), verdict.discarded) == (0, 64 * 1024)


def test_one_feed_releases_what_passed_around_an_alarm() -> None:
    before, after = good(STARTUP), good(STARTUP, seed=15)
    verdict = HealthTests().feed(before + bytes(BYTE_WINDOW) + after)
    assert verdict.released == before + after
    assert (verdict.discarded, len(verdict.alarms)) == (BYTE_WINDOW, 1)


def test_restart_wipes_and_begins_at_start_up() -> None:
    health = started()
    health.feed(good(300, seed=16) + b"\x42" * 5)
    assert health.restart() == 305
    assert (health.held, health.starting) == (0, True)
    assert not any(health._buffer)
    health.feed(bytes(6))  # what would have been left of this failed window is not the new noise's
    assert health.restart() == 0
    noise = b"\x42" + good(STARTUP - 1, seed=17)
    assert health.feed(noise).released == noise


# --- quiet ---------------------------------------------------------------------------------------------


def test_the_buffer_is_zeroed_once_spent() -> None:
    health = HealthTests()
    health.feed(good(1000))
    assert any(health._buffer)
    health.feed(good(24))
    assert not any(health._buffer)
    health.feed(good(100))
    health.feed(bytes(6))
    assert not any(health._buffer)


def test_no_noise_in_words() -> None:
    health = HealthTests()
    noise = b"\xde\xad" * (STARTUP // 2)
    verdict = health.feed(noise)
    assert verdict.alarms
    text = repr(health) + repr(verdict) + repr(health.feed(b"\xde" * 6))
    text += repr(started().feed(good(BYTE_WINDOW)))
    for secret in ("xde", "xad", "222", "173", "dead", "bytearray"):
        assert secret not in text
    assert repr(started().feed(good(512))) == "Verdict(released=512 bytes, discarded=0, alarms=())"


# --- however it is chopped -----------------------------------------------------------------------------


def segment(kind: str, size: int, seed: int) -> bytes:
    rng = random.Random(seed)
    if kind == "good":
        return rng.randbytes(size)
    if kind == "run":
        return bytes([rng.randrange(256)]) * (size % 12)
    if kind == "zeros":
        return bytes(size)
    if kind == "counter":
        return (bytes(range(256)) * 12)[seed % 256 : seed % 256 + size]
    if kind == "biased":  # 0.62 ones: near the bit APT's cutoff
        return bytes(sum((rng.random() < 0.62) << i for i in range(8)) for _ in range(size))
    favourite = rng.randrange(256)  # near the byte APT's cutoff
    return bytes(favourite if rng.random() < 0.045 else rng.randrange(256) for _ in range(size))


segments = st.lists(
    st.tuples(
        st.sampled_from(["good", "good", "good", "run", "zeros", "biased", "favourite", "counter"]),
        st.one_of(st.integers(0, 1600), st.just(2600)),
        st.integers(0, 2**32),
    ),
    max_size=5,
)
choppings = st.one_of(
    st.just([1]), st.just([1 << 20]), st.lists(st.integers(0, 2500), min_size=1, max_size=8).filter(any)
)


def chop(noise: bytes, sizes: list[int]) -> Iterable[bytes]:
    position, turn = 0, 0
    while position < len(noise):
        size = sizes[turn % len(sizes)]
        yield noise[position : position + size]
        position, turn = position + size, turn + 1


@given(parts=segments, sizes=choppings, claim=st.sampled_from([8.0, 8.0, 6.5, 2.0]))
@settings(max_examples=80)
def test_every_chopping_gives_what_the_slow_reading_gives(
    parts: list[tuple[str, int, int]], sizes: list[int], claim: float
) -> None:
    noise = b"".join(segment(*part) for part in parts)
    slow = Slow(claim)
    for byte in noise:
        slow.feed(byte)
    health = HealthTests(claim)
    released, discarded, alarms = feed_all(health, chop(noise, sizes))
    assert [Found(alarm.test, alarm.offset) for alarm in alarms] == slow.alarms
    assert released == slow.released
    assert (discarded, health.held) == (slow.discarded, len(slow.pending))
    assert len(noise) == len(released) + discarded + health.held
