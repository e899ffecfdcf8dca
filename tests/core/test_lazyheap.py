# SPDX-License-Identifier: Apache-2.0
"""The heap with movable items, beside a plain sorted list."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from netrng_hostd.core.lazyheap import LazyHeap


class BesideASortedList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.heap: LazyHeap[str] = LazyHeap()
        self.model: dict[str, tuple[int, int]] = {}
        self.puts = 0

    @rule(item=st.sampled_from("abcdefgh"), key=st.integers(-3, 3))
    def put(self, item: str, key: int) -> None:
        self.puts += 1
        self.heap.put(item, key)
        if self.model.get(item, (None, 0))[0] != key:
            self.model[item] = (key, self.puts)

    @rule(item=st.sampled_from("abcdefgh"))
    def discard(self, item: str) -> None:
        self.heap.discard(item)
        self.model.pop(item, None)

    @precondition(lambda self: self.model)
    @rule()
    def pop(self) -> None:
        self.heap.top()
        del self.model[self.heap.pop()]

    @invariant()
    def same(self) -> None:
        top = self.heap.top()
        assert (None if top is None else top[2]) == min(self.model, key=lambda i: self.model[i], default=None)
        assert len(self.heap) == len(self.model)
        assert all((item in self.heap) == (item in self.model) for item in "abcdefgh")


TestBesideASortedList = BesideASortedList.TestCase


def test_equal_keys_are_first_come_first_served_and_an_unchanged_key_keeps_its_place() -> None:
    heap: LazyHeap[str] = LazyHeap()
    for item in "abc":
        heap.put(item, 1)
    heap.put("a", 1)
    order = []
    while heap.top() is not None:
        order.append(heap.pop())
    assert order == ["a", "b", "c"]


def test_dead_entries_are_bounded_by_the_living_however_items_move_and_go() -> None:
    heap: LazyHeap[int] = LazyHeap()
    for item in range(100):
        heap.put(item, 0)
    for key in range(1, 50):
        for item in range(100):
            heap.put(item, key)
        assert len(heap._entries) <= 2 * len(heap) + 65
    for item in range(99):
        heap.discard(item)
        assert len(heap._entries) <= 2 * len(heap) + 65
    assert heap.top() == (49, 5000, 99)


def test_the_cost_of_a_move_grows_like_the_logarithm() -> None:
    cost = {}
    for size in (10, 100, 1000, 10_000):
        heap: LazyHeap[int] = LazyHeap()
        for item in range(size):
            heap.put(item, item)
        before = heap.operations
        for key in range(size, 2 * size + 5000):  # each move sends the first to the end
            top = heap.top()
            assert top is not None
            heap.put(top[2], key)
        cost[size] = (heap.operations - before) / (size + 5000)
    assert cost[10_000] <= 3 * (10_000).bit_length()
    assert cost[10_000] - cost[1000] <= 3 * (cost[1000] - cost[100])
