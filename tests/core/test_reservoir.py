# SPDX-License-Identifier: Apache-2.0
"""No byte twice, none lost, none left behind: the reservoir against two plain queues."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import netrng_hostd.core.reservoir as reservoir_module
from netrng_hostd.core.ledger import Origin
from netrng_hostd.core.reservoir import Part, Reservoir

RNG = ("rng",)


def numbers(start: int, count: int) -> bytearray:
    """Distinct and never zero, so that a zeroed place can be told from a spent byte (up to 255 of them)."""
    return bytearray(range(start, start + count))


def places(reservoir: Reservoir) -> bytearray:
    return reservoir._general._places + reservoir._seed._places


def test_a_new_one_is_empty() -> None:
    reservoir = Reservoir(100, 20)
    assert (reservoir.room, reservoir.available, reservoir.seed_available) == (100, 0, 0)


@pytest.mark.parametrize(("size", "seed_reserve"), [(10, 11), (10, -1), (-1, 0)])
def test_a_seed_reserve_must_fit(size: int, seed_reserve: int) -> None:
    with pytest.raises(ValueError, match=f"seed reserve of {seed_reserve} bytes does not fit .* {size}"):
        Reservoir(size, seed_reserve)


def test_put_copies_and_leaves_the_data_to_the_caller() -> None:
    reservoir, data = Reservoir(100, 0), numbers(1, 20)
    assert reservoir.put(data, RNG) == 20
    assert data == numbers(1, 20)
    data[:] = bytes(20)
    assert reservoir.take(20)[0] == numbers(1, 20)


def test_one_seed_in_ten_goes_to_the_seed_reserve_whole() -> None:
    reservoir = Reservoir(2000, 200)
    data = bytearray(random.Random(1).randbytes(640))
    reservoir.put(data, RNG)
    assert (reservoir.available, reservoir.seed_available) == (576, 64)
    assert reservoir.take(576)[0] == data[:576]
    assert reservoir.take(64, from_seed_reserve=True)[0] == data[576:]


@pytest.mark.parametrize(("headroom", "reserve"), [(0, 0), (1, 0), (50, 320), (500, 3200)])
def test_the_headroom_is_the_part_that_refills_the_seed_reserve(headroom: int, reserve: int) -> None:
    reservoir = Reservoir(20_000, 6400, headroom)
    for _ in range(64):
        reservoir.put(bytearray(100), RNG)
    assert reservoir.seed_available == reserve


def test_what_reservations_rest_on_comes_before_the_seed_reserve() -> None:
    reservoir = Reservoir(10_000, 2_000, headroom=500)
    reservoir.put(bytearray(640), RNG, keep=900)
    assert reservoir.seed_available == 0
    reservoir.put(bytearray(640), RNG, keep=900)
    assert reservoir.seed_available == 320, "960 bytes are there with half of it"
    reservoir.take(reservoir.available - 570)
    reservoir.put(bytearray(640), RNG, keep=900)
    assert reservoir.seed_available == 320, "890 would be: what is left out is not made up for"
    reservoir.take(reservoir.available - 580)
    reservoir.put(bytearray(640), RNG, keep=900)
    assert reservoir.seed_available == 640, "fewer are there before, and enough with what comes"


def test_without_headroom_the_seed_reserve_gets_what_nobody_asks_for() -> None:
    reservoir = Reservoir(100, 20, headroom=0)
    reservoir.put(bytearray(90), RNG)
    assert (reservoir.available, reservoir.seed_available) == (80, 10)


def test_the_oldest_bytes_make_room_and_are_zeroed() -> None:
    reservoir = Reservoir(100, 20, headroom=0)
    reservoir.put(numbers(1, 100), RNG)
    assert reservoir.drop_oldest(30) == {RNG: 30}
    assert (reservoir.room, reservoir.available, reservoir.seed_available) == (30, 50, 20)
    assert not any(byte in places(reservoir) for byte in range(1, 31))
    reservoir.put(numbers(101, 30), RNG)
    assert reservoir.take(80)[0] == numbers(31, 50) + numbers(101, 30)
    assert reservoir.drop_oldest(5) == {}


def test_what_is_due_to_the_seed_reserve_is_carried_over_small_puts() -> None:
    reservoir = Reservoir(3000, 500)
    for _ in range(49):
        reservoir.put(bytearray(40), RNG)
    assert (reservoir.available, reservoir.seed_available) == (1960 - 192, 192)


def test_a_full_seed_reserve_leaves_the_rest_to_general() -> None:
    reservoir = Reservoir(2000, 50)
    reservoir.put(bytearray(1000), RNG)
    assert (reservoir.available, reservoir.seed_available) == (950, 50)


def test_what_general_has_no_room_for_goes_to_the_seed_reserve() -> None:
    reservoir = Reservoir(50, 30)
    reservoir.put(numbers(1, 40), RNG)
    assert (reservoir.available, reservoir.seed_available) == (20, 20)
    assert reservoir.take(20, from_seed_reserve=True)[0] == numbers(21, 20)


def test_put_never_accepts_more_than_room() -> None:
    reservoir = Reservoir(30, 10)
    assert reservoir.put(numbers(1, 40), RNG) == 30
    assert (reservoir.room, reservoir.put(numbers(41, 5), RNG)) == (0, 0)
    assert reservoir.take(20)[0] + reservoir.take(10, from_seed_reserve=True)[0] == numbers(1, 30)


def test_no_seed_reserve_and_nothing_but_seed_reserve() -> None:
    reservoir = Reservoir(30, 0)
    assert reservoir.put(numbers(1, 30), RNG) == reservoir.available == 30
    assert reservoir.take(0, from_seed_reserve=True)[0] == b""
    reservoir = Reservoir(30, 30)
    assert reservoir.put(numbers(1, 40), RNG) == reservoir.seed_available == 30
    assert Reservoir(0, 0).put(numbers(1, 5), RNG) == 0


@pytest.mark.parametrize("n", [-1, 10, 1000])
@pytest.mark.parametrize("from_seed_reserve", [False, True])
def test_taking_what_is_not_there_is_refused_and_takes_nothing(n: int, from_seed_reserve: bool) -> None:
    reservoir = Reservoir(12, 6)
    reservoir.put(numbers(1, 12), RNG)
    with pytest.raises(ValueError, match=f"^cannot take {n} bytes of 6$"):
        reservoir.take(n, from_seed_reserve)
    assert reservoir.take(6)[0] + reservoir.take(6, True)[0] == numbers(1, 12)


def test_the_general_part_never_draws_on_the_seed_reserve() -> None:
    reservoir = Reservoir(100, 50)
    reservoir.put(numbers(1, 60), RNG)
    reservoir.take(reservoir.available)
    assert reservoir.seed_available > 0
    with pytest.raises(ValueError, match="cannot take 1 bytes of 0"):
        reservoir.take(1)


@pytest.mark.parametrize("from_seed_reserve", [False, True])
@pytest.mark.parametrize("step", range(1, 8))
def test_round_the_ring_in_order_and_zeroed(step: int, from_seed_reserve: bool) -> None:
    reservoir = Reservoir(7, 7 if from_seed_reserve else 0)
    for start in range(1, 200, step):
        assert reservoir.put(numbers(start, step), RNG) == step
        ahead = min(2, step - 1)  # leave some in the ring, so that it is not empty when it wraps
        assert reservoir.take(step - ahead, from_seed_reserve)[0] == numbers(start, step - ahead)
        assert sorted(filter(None, places(reservoir))) == list(range(start + step - ahead, start + step))
        assert reservoir.take(ahead, from_seed_reserve)[0] == numbers(start + step - ahead, ahead)
        assert not any(places(reservoir))


def test_destroy_zeroes_all_and_counts() -> None:
    reservoir = Reservoir(30, 10)
    reservoir.put(numbers(1, 25), RNG)
    reservoir.take(3)
    assert reservoir.destroy() == {RNG: 22}
    assert not any(places(reservoir))
    assert (reservoir.room, reservoir.available, reservoir.seed_available) == (30, 0, 0)
    assert reservoir.destroy() == {}


def test_what_stays_when_others_are_destroyed_is_copied_and_the_copies_are_wiped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies = list[bytearray]()
    ring = reservoir_module._Ring
    take = ring.take

    def remember(*arguments: Any) -> tuple[bytearray, list[Part]]:
        result = take(*arguments)
        copies.append(result[0])
        return result

    monkeypatch.setattr(ring, "take", remember)
    reservoir = Reservoir(30, 0)
    reservoir.put(numbers(1, 10), ("a",))
    reservoir.put(numbers(11, 10), ("b",))
    assert reservoir.destroy("b") == {("b",): 10}
    assert copies == [bytearray(10)]
    assert reservoir.take(10)[0] == numbers(1, 10)


def test_no_bytes_in_words() -> None:
    reservoir = Reservoir(60, 20)
    reservoir.put(bytearray(b"\xde\xad" * 20), RNG)
    assert repr(reservoir) == "Reservoir(available=40, seed_available=0, room=20)"


class ReservoirMachine(RuleBasedStateMachine):
    """Random puts and takes beside two lists; every byte value in use is distinct and not zero.

    Seeds of one byte, so that a hundred bytes hold many.
    """

    origins = st.sampled_from([("a",), ("b",), ("a", "b"), ("a", "c")])

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(reservoir_module, "SEED", 1)

    def teardown(self) -> None:
        self.patch.undo()

    @initialize(size=st.integers(0, 100), seed_percent=st.sampled_from([0, 20, 25, 50, 100]))
    def start(self, size: int, seed_percent: int) -> None:
        self.seed_reserve = size * seed_percent // 100
        self.general_size = size - self.seed_reserve
        self.reservoir = Reservoir(size, self.seed_reserve)
        self.general: list[tuple[int, Origin]] = []
        self.seed: list[tuple[int, Origin]] = []
        self.next = 0
        self.accepted = self.taken = self.destroyed = self.due = 0

    def fresh(self, count: int) -> bytearray:
        """The next values, 1 to 255 in turn: with at most 100 stored no two stored ones are equal."""
        data = bytearray((self.next + i) % 255 + 1 for i in range(count))
        self.next += count
        return data

    @rule(count=st.one_of(st.integers(0, 130), st.integers(1, 30)), origin=origins)
    def put(self, count: int, origin: Origin) -> None:
        data = self.fresh(count)
        room = self.reservoir.room
        tenths = (self.accepted + min(count, room)) // 10 - self.accepted // 10
        accepted = self.reservoir.put(data, origin)
        assert accepted == min(count, room)
        self.next -= count - accepted
        self.accepted += accepted
        seed_room = self.seed_reserve - len(self.seed)
        general_room = self.general_size - len(self.general)
        self.due = min(self.due + tenths, seed_room)
        to_seed = min(seed_room, max(self.due, accepted - general_room))
        self.due -= min(self.due, to_seed)
        self.general += [(value, origin) for value in data[: accepted - to_seed]]
        self.seed += [(value, origin) for value in data[accepted - to_seed : accepted]]

    @rule(data=st.data(), from_seed_reserve=st.booleans())
    def take(self, data: st.DataObject, from_seed_reserve: bool) -> None:
        queue = self.seed if from_seed_reserve else self.general
        n = data.draw(st.integers(0, len(queue)))
        taken, parts = self.reservoir.take(n, from_seed_reserve)
        assert list(taken) == [value for value, _ in queue[:n]]
        origins = [origin for origin, count in parts for _ in range(count)]
        assert origins == [origin for _, origin in queue[:n]]
        assert all(before.origin != after.origin for before, after in zip(parts, parts[1:]))
        del queue[:n]
        self.taken += n

    @rule(extra=st.integers(1, 50), from_seed_reserve=st.booleans())
    def take_too_much(self, extra: int, from_seed_reserve: bool) -> None:
        queue = self.seed if from_seed_reserve else self.general
        with pytest.raises(ValueError, match="cannot take"):
            self.reservoir.take(len(queue) + extra, from_seed_reserve)

    @rule(n=st.integers(0, 60))
    def drop_oldest(self, n: int) -> None:
        count = min(n, len(self.general))
        assert self.reservoir.drop_oldest(n) == Counter(origin for _, origin in self.general[:count])
        del self.general[:count]
        self.destroyed += count

    @rule()
    def destroy(self) -> None:
        count = len(self.general) + len(self.seed)
        assert self.reservoir.destroy() == Counter(origin for _, origin in self.general + self.seed)
        self.destroyed += count
        self.general, self.seed = [], []

    @rule(source=st.sampled_from(["a", "b", "c"]))
    def destroy_all_of(self, source: str) -> None:
        gone = Counter(origin for _, origin in self.general + self.seed if source in origin)
        assert self.reservoir.destroy(source) == gone
        self.destroyed += sum(gone.values())
        self.general = [item for item in self.general if source not in item[1]]
        self.seed = [item for item in self.seed if source not in item[1]]

    @invariant()
    def the_parts_are_the_queues(self) -> None:
        stored = Counter(origin for _, origin in self.general + self.seed)
        assert self.reservoir.stored == stored
        assert self.reservoir.available == len(self.general)
        assert self.reservoir.seed_available == len(self.seed)
        assert len(self.general) <= self.general_size
        assert len(self.seed) <= self.seed_reserve

    @invariant()
    def every_byte_is_somewhere(self) -> None:
        stored = self.reservoir.available + self.reservoir.seed_available
        assert self.accepted == self.taken + self.destroyed + stored
        assert self.reservoir.room == self.general_size + self.seed_reserve - stored

    @invariant()
    def nothing_spent_is_left_in_memory(self) -> None:
        for ring, queue in ((self.reservoir._general, self.general), (self.reservoir._seed, self.seed)):
            assert sorted(filter(None, ring._places)) == sorted(value for value, _ in queue)


ReservoirMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestReservoir = ReservoirMachine.TestCase
