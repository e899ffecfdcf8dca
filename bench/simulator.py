# SPDX-License-Identifier: Apache-2.0
"""hostd without a host: the real core, a virtual clock, a trace for a source, and generators for VMs.

No I/O, no real time; the same seed, the same run. What is real: `Scheduler`, `Reservoir`, `granularity`, and
the order in which dispatch.py calls them. What is left out: frames and the time they take. A VM takes a
sample the moment it is sent, and asks at once for what it lacks, at most a window beyond what it took.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush

from bench.traces import Trace
from netrng_hostd.core.bucket import NS_PER_S
from netrng_hostd.core.domain import SEED_SIZE
from netrng_hostd.core.granularity import sample_size
from netrng_hostd.core.quota import Quota
from netrng_hostd.core.reservoir import Reservoir
from netrng_hostd.core.scheduler import Pick, Scheduler

ORIGIN = ("trace",)
WINDOW = 4096  # bytes, as the agent's default
LOOK_NS = NS_PER_S // 2  # how often the sample size is looked at
MEMORY_NS = 10 * NS_PER_S  # over which the source's rate is averaged


class Watch:
    """Sees what happens; measures and pictures are made of these."""

    def asked(self, vm: Vm, now_ns: int, amount: int | None) -> None:
        """It asks for so many bytes more, seeds apart; None: without end."""

    def began(self, vm: Vm, now_ns: int) -> None:
        """It asked for nothing, and now does."""

    def sent(self, vm: Vm, now_ns: int, pick: Pick) -> None:
        """It was given a sample."""

    def ended(self, vm: Vm, now_ns: int) -> None:
        """It has had all that it asked for, or asks no more."""

    def stopped(self, vm: Vm, now_ns: int) -> None:
        """It asks no more, whatever it has had."""


class Vm:
    """One domain: `seed` and `body` are what it wants and was not given; `body` None is without end."""

    def __init__(self, host: Simulation, name: str, quota: Quota) -> None:
        self.host = host
        self.name = name
        self.quota = quota
        self.here = False
        self.seed = 0
        self.body: int | None = 0

    @property
    def wanted(self) -> tuple[int, int]:
        """What is granted and not sent, as a guest's agent would: the seed first."""
        return self.seed, WINDOW if self.body is None else min(self.body, WINDOW)

    @property
    def asks(self) -> bool:
        return any(self.wanted)

    def come(self, seed: int = SEED_SIZE) -> None:
        """The domain appears, and a session opens."""
        self.here = True
        self.host.scheduler.set_quota(self.name, self.quota, self.host.now_ns)
        self._change(seed, 0)

    def use(self, quota: Quota) -> None:
        """Its quota changes."""
        self.quota = quota
        self.host.scheduler.set_quota(self.name, quota, self.host.now_ns)

    def ask(self, amount: int | None = None) -> None:
        """For so many bytes more; None: without end."""
        host = self.host
        for watch in host.watches:
            watch.asked(self, host.now_ns, amount)
        self._change(self.seed, None if amount is None or self.body is None else self.body + amount)

    def stop(self) -> None:
        """Asks for nothing any more."""
        self._change(0, 0)
        for watch in self.host.watches:
            watch.stopped(self, self.host.now_ns)

    def go(self) -> None:
        """The domain is gone."""
        self.stop()
        self.here = False
        self.host.scheduler.forget(self.name, self.host.now_ns)

    def _change(self, seed: int, body: int | None) -> None:
        host, asked = self.host, self.asks
        self.seed, self.body = seed, body
        if self.asks != asked:
            for watch in host.watches:
                (watch.ended if asked else watch.began)(self, host.now_ns)
        host.scheduler.want(self.name, *self.wanted, host.now_ns)

    def take(self, pick: Pick) -> None:
        """A sample arrives."""
        host = self.host
        if self.seed:
            self.seed -= pick.n_bytes
        elif self.body is not None:
            self.body -= pick.n_bytes
        for watch in host.watches:
            watch.sent(self, host.now_ns, pick)
        if not self.asks:
            for watch in host.watches:
                watch.ended(self, host.now_ns)
        host.scheduler.want(self.name, *self.wanted, host.now_ns)


Behaviour = Callable[[Vm], Iterator[int]]  # yields when it goes on, in nanoseconds, and acts on its Vm


class Simulation:
    """`adaptive`: samples of 32 bytes to `sample`; `rate`: what was measured of the source until now, in
    bytes per second; `gap_ns`: over which reservations are paid between two deliveries.
    """

    def __init__(
        self,
        trace: Trace,
        sample: int = 512,
        adaptive: bool = False,
        gap_ns: int = 0,
        rate: int | None = None,
        reservoir: Reservoir | None = None,
    ) -> None:
        self.now_ns = 0
        self.scheduler = Scheduler(sample)
        self.scheduler.gap_ns = gap_ns
        self.reservoir = reservoir or Reservoir(65536, 0)
        self.vms: dict[str, Vm] = {}
        self.watches: list[Watch] = []
        self.picks = 0
        self._trace = trace
        self._arrival = next(trace)
        self._maximum = sample if adaptive else None
        self._look_ns = 0
        self._rate = rate
        self._arrived: deque[tuple[int, int]] = deque()
        self._arrived_sum = 0
        self._acts: list[tuple[int, int, Iterator[int]]] = []
        self._order = 0

    def add(self, name: str, quota: Quota, behaviour: Behaviour) -> Vm:
        """A VM that behaves like that from now on."""
        vm = self.vms[name] = Vm(self, name, quota)
        self._go_on(self.now_ns, behaviour(vm))
        return vm

    def run(self, seconds: float) -> None:
        """Time passes from one event to the next."""
        end_ns = self.now_ns + int(seconds * NS_PER_S)
        self._hand_out()
        while True:
            due_ns = self.scheduler.next_ns(self.now_ns)
            now_ns = self._arrival[0] if due_ns is None or due_ns <= self.now_ns else due_ns
            now_ns = min(now_ns, self._arrival[0])
            if self._acts:
                now_ns = min(now_ns, self._acts[0][0])
            if self._maximum is not None:
                now_ns = min(now_ns, self._look_ns)
            if now_ns > end_ns:
                self.now_ns = end_ns
                return
            self.now_ns = now_ns
            self._happen()
            self._hand_out()

    def _happen(self) -> None:
        now_ns = self.now_ns
        while self._arrival[0] <= now_ns:
            lump = min(self._arrival[1], self.reservoir.room)  # what there is no room for is not read
            self.reservoir.put(bytearray(lump), ORIGIN, self.scheduler.kept)
            if self._maximum is not None:
                self._arrived.append(self._arrival)
                self._arrived_sum += self._arrival[1]
            self._arrival = next(self._trace)
        while self._acts and self._acts[0][0] <= now_ns:
            _, _, acting = heappop(self._acts)
            next_ns = next(acting, None)
            if next_ns is not None:
                self._go_on(max(next_ns, now_ns + 1), acting)
        if self._maximum is not None and self._look_ns <= now_ns:
            self._look(self._maximum)

    def _go_on(self, at_ns: int, acting: Iterator[int]) -> None:
        self._order += 1
        heappush(self._acts, (at_ns, self._order, acting))

    def _look(self, maximum: int) -> None:
        """What the daemon does twice a second."""
        self._look_ns = self.now_ns + LOOK_NS
        while self._arrived and self._arrived[0][0] <= self.now_ns - MEMORY_NS:
            self._arrived_sum -= self._arrived.popleft()[1]
        known_ns = min(self.now_ns, MEMORY_NS)
        if known_ns >= NS_PER_S:
            self._rate = self._arrived_sum * NS_PER_S // known_ns
        scheduler = self.scheduler
        size = sample_size(self._rate, scheduler.askers, scheduler.sample_size, maximum)
        if size != scheduler.sample_size:
            scheduler.sample_size = size

    def _hand_out(self) -> None:
        scheduler, reservoir, vms = self.scheduler, self.reservoir, self.vms
        while True:
            pick = scheduler.pick(self.now_ns, reservoir.available, reservoir.seed_available)
            if pick is None:
                return
            reservoir.take(pick.n_bytes, pick.from_seed_reserve)
            self.picks += 1
            vms[pick.uuid].take(pick)
