# SPDX-License-Identifier: Apache-2.0
"""What VMs do with their channel. Each is a generator that yields when it goes on, in nanoseconds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random

from bench.simulator import WINDOW, Behaviour, Vm
from netrng_hostd.core.bucket import NS_PER_S
from netrng_hostd.core.domain import SEED_SIZE


def greedy(start_ns: int = 0, seed: int = 0) -> Behaviour:
    """Takes all that it is given."""

    def act(vm: Vm) -> Iterator[int]:
        if start_ns > vm.host.now_ns:
            yield start_ns
        vm.come(seed)
        vm.ask()

    return act


def reloaded(every_ns: int) -> Behaviour:
    """Greedy, and its quota is set anew again and again, unchanged: a reload, or an event of its metadata."""

    def act(vm: Vm) -> Iterator[int]:
        vm.come(0)
        vm.ask()
        while True:
            yield vm.host.now_ns + every_ns
            vm.use(vm.quota)

    return act


def modest(first: int, piece: int, every_ns: int, start_ns: int = 0, seed: int = 0) -> Behaviour:
    """An agent: `first` bytes at once, `piece` bytes more every so often, whether it was served or not."""

    def act(vm: Vm) -> Iterator[int]:
        if start_ns > vm.host.now_ns:
            yield start_ns
        vm.come(seed)
        if first:
            vm.ask(first)
        for k in count(1):
            yield start_ns + k * every_ns
            vm.ask(piece)

    return act


def bursty(random: Random, on_s: float, off_s: float, seed: int = 0) -> Behaviour:
    """Greedy for a while and silent for a while, of so many seconds in the mean."""

    def act(vm: Vm) -> Iterator[int]:
        yield vm.host.now_ns + _about(random, off_s)
        vm.come(seed)
        while True:
            vm.ask()
            yield vm.host.now_ns + _about(random, on_s)
            vm.stop()
            yield vm.host.now_ns + _about(random, off_s)

    return act


def vanishing(random: Random, here_s: float, gone_s: float) -> Behaviour:
    """Greedy while it is there; boots, and is gone again, reboots."""

    def act(vm: Vm) -> Iterator[int]:
        while True:
            yield vm.host.now_ns + _about(random, gone_s)
            vm.come()
            vm.ask()
            yield vm.host.now_ns + _about(random, here_s)
            vm.go()

    return act


def reconnecting(every_ns: int) -> Behaviour:
    """Hostile: starts over and over, and wants a seed and a window each time."""

    def act(vm: Vm) -> Iterator[int]:
        while True:
            vm.come()
            vm.ask()
            yield vm.host.now_ns + every_ns
            vm.go()

    return act


def flooding(random: Random, every_ns: int) -> Behaviour:
    """Hostile: changes what it wants all the time."""

    def act(vm: Vm) -> Iterator[int]:
        vm.come(random.choice([0, 1, SEED_SIZE]))
        while True:
            vm.ask(random.choice([1, 33, 600, WINDOW]))
            yield vm.host.now_ns + random.randint(1, every_ns)
            vm.stop()

    return act


def never_reading() -> Behaviour:
    """Hostile: has a window sent to it, acknowledges nothing, and so is sent nothing more."""

    def act(vm: Vm) -> Iterator[int]:
        vm.come()
        vm.ask(WINDOW - SEED_SIZE)
        yield from ()

    return act


def _about(random: Random, seconds: float) -> int:
    return int(random.uniform(0.5, 1.5) * seconds * NS_PER_S)
