# SPDX-License-Identifier: Apache-2.0
"""What is measured while a simulation runs. Bytes and nanoseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction

from bench.exact import Ask, Fluid
from bench.simulator import Vm, Watch
from netrng_hostd.core.bucket import NS_PER_S
from netrng_hostd.core.scheduler import Pick


def jain(shares: Iterable[float]) -> float:
    """Jain, Chiu and Hawe's index (DEC-TR-301, 1984): (Σx)² / (n · Σx²), 1 if all are equal."""
    values = list(shares)
    squares = len(values) * sum(value * value for value in values)
    return sum(values) ** 2 / squares if squares else 1.0


class Shares(Watch):
    """How far each is from what it was due, at the worst instants: before and after each of its samples.

    `rate` None compares with bytes handed out, whenever they came, and is for weights alone. Otherwise it is
    what the source gives in bytes per second, and the comparison is with what was due by the clock.
    Seeds come before all weights and are no part of it. Whoever stops begins anew.
    """

    def __init__(self, rate: int | None = None, judged: Callable[[str], bool] = lambda name: True) -> None:
        self._rate = rate
        self._unit_per_s = NS_PER_S if rate is not None else 1
        self.fluid = Fluid(Fraction(1) if rate is None else Fraction(rate, NS_PER_S))
        self.handed_out = 0
        self.got: dict[str, int] = {}
        self.worst_samples = 0.0  # of all instants, in the sample size then
        self.worst_part = 0.0  # of what may be: see `_judge`
        self._taken = 0  # bytes: a sample for each that stopped before it had what it asked for
        self._judged = judged

    def clock(self, now_ns: int) -> int:
        return self.handed_out if self._rate is None else now_ns

    def due(self, name: str, now_ns: int) -> float:
        return self.fluid.due(name, self.clock(now_ns))

    def errors(self, now_ns: int, due_at_least: float) -> list[float]:
        """|got − due| / due of those who ask since long enough to be due so much."""
        found = []
        for name, got in self.got.items():
            due = self.due(name, now_ns)
            if due >= due_at_least and self._judged(name):
                found.append(abs(got - due) / due)
        return found

    def asked(self, vm: Vm, now_ns: int, amount: int | None) -> None:
        if vm.name in self.fluid:
            self.fluid.more(vm.name, amount, self.clock(now_ns))
        else:
            self.got[vm.name] = 0
            self.fluid.join(vm.name, Ask.of(vm.quota, self._unit_per_s), amount, self.clock(now_ns))

    def sent(self, vm: Vm, now_ns: int, pick: Pick) -> None:
        if pick.reason == "seed" or vm.name not in self.got:
            return
        judged = self._judged(vm.name)
        if judged:
            self._judge(vm, now_ns)
        self.got[vm.name] += pick.n_bytes
        self.handed_out += pick.n_bytes
        if judged:
            self._judge(vm, now_ns)

    def stopped(self, vm: Vm, now_ns: int) -> None:
        if vm.name in self.fluid:
            if self.fluid.asks(vm.name, self.clock(now_ns)):
                self._taken += vm.host.scheduler.sample_size
            self.fluid.leave(vm.name, self.clock(now_ns))
            del self.got[vm.name]

    def _judge(self, vm: Vm, now_ns: int) -> None:
        """A sample of its own; and its share of what others may be off that are not there all the time.

        They are a sample off at most while they ask, and may leave with it: for all the others together.
        """
        size: float = vm.host.scheduler.sample_size
        due = self.due(vm.name, now_ns)
        error = abs(self.got[vm.name] - due)
        self.worst_samples = max(self.worst_samples, error / size)
        if error > size and self.handed_out:
            fickle = sum(not self._judged(name) for name in self.got)
            size += (self._taken + fickle * size) * due / self.handed_out
        self.worst_part = max(self.worst_part, error / size)


class Shortfall(Watch):
    """The largest reservation · w − bytes over all intervals in which a domain asks."""

    def __init__(self, since_ns: int = 0) -> None:
        self.worst: dict[str, float] = {}
        self._since_ns = since_ns
        self._stays: dict[str, list[int]] = {}  # began, bytes · NS since, highest lead over the rate

    def began(self, vm: Vm, now_ns: int) -> None:
        if vm.quota.reservation:
            self._stays[vm.name] = [now_ns, 0, 0]

    def sent(self, vm: Vm, now_ns: int, pick: Pick) -> None:
        stay = self._stays.get(vm.name)
        if stay is None:
            return
        self._look(vm, stay, now_ns)
        stay[1] += pick.n_bytes * NS_PER_S
        stay[2] = max(stay[2], stay[1] - vm.quota.reservation * (now_ns - stay[0]))

    def ended(self, vm: Vm, now_ns: int) -> None:
        stay = self._stays.pop(vm.name, None)
        if stay is not None:
            self._look(vm, stay, now_ns)

    def close(self, vms: Iterable[Vm], now_ns: int) -> None:
        """The run is over."""
        for vm in vms:
            self.ended(vm, now_ns)

    def _look(self, vm: Vm, stay: list[int], now_ns: int) -> None:
        if now_ns < self._since_ns:
            return
        if stay[0] < self._since_ns:
            stay[:] = [self._since_ns, 0, 0]
        lead = stay[1] - vm.quota.reservation * (now_ns - stay[0])
        self.worst[vm.name] = max(self.worst.get(vm.name, 0.0), (stay[2] - lead) / NS_PER_S)


class Excess(Watch):
    """The largest bytes − limit · w over all intervals, their ends included."""

    def __init__(self) -> None:
        self.worst: dict[str, float] = {}
        self._books: dict[str, list[int]] = {}  # bytes · NS, lowest lead over the limit

    def sent(self, vm: Vm, now_ns: int, pick: Pick) -> None:
        limit = vm.quota.limit
        if limit is None:
            return
        lead = (book := self._books.setdefault(vm.name, [0, -limit * now_ns]))[0] - limit * now_ns
        book[1] = min(book[1], lead)
        book[0] += pick.n_bytes * NS_PER_S
        lead += pick.n_bytes * NS_PER_S
        self.worst[vm.name] = max(self.worst.get(vm.name, 0.0), (lead - book[1]) / NS_PER_S)


class Waits(Watch):
    """The longest that a domain asked and was sent nothing."""

    def __init__(self, judged: Callable[[str], bool] = lambda name: True) -> None:
        self.worst_ns = 0
        self._since: dict[str, int] = {}
        self._judged = judged

    def began(self, vm: Vm, now_ns: int) -> None:
        if self._judged(vm.name):
            self._since[vm.name] = now_ns

    def sent(self, vm: Vm, now_ns: int, pick: Pick) -> None:
        if vm.name in self._since:
            self._look(self._since[vm.name], now_ns)
            self._since[vm.name] = now_ns

    def ended(self, vm: Vm, now_ns: int) -> None:
        since = self._since.pop(vm.name, None)
        if since is not None:
            self._look(since, now_ns)

    def close(self, now_ns: int) -> None:
        """The run is over."""
        for since in self._since.values():
            self._look(since, now_ns)

    def _look(self, since_ns: int, now_ns: int) -> None:
        self.worst_ns = max(self.worst_ns, now_ns - since_ns)


class Totals(Watch):
    """Bytes sent to each, seeds included."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    def sent(self, vm: Vm, now_ns: int, pick: Pick) -> None:
        self.bytes[vm.name] = self.bytes.get(vm.name, 0) + pick.n_bytes


class Seeds(Watch):
    """How long each waited for the whole of its seed, and what anybody had had before the last was served."""

    def __init__(self) -> None:
        self.waits_ns: list[int] = []
        self.served_ns: list[int] = []
        self.most_before_last = 0
        self._waiting: dict[str, int] = {}
        self._got: dict[str, int] = {}

    def began(self, vm: Vm, now_ns: int) -> None:
        if vm.seed:
            self._waiting[vm.name] = now_ns

    def sent(self, vm: Vm, now_ns: int, pick: Pick) -> None:
        self._got[vm.name] = self._got.get(vm.name, 0) + pick.n_bytes
        if vm.name in self._waiting and not vm.seed:
            self.waits_ns.append(now_ns - self._waiting.pop(vm.name))
            self.served_ns.append(now_ns)
            self.most_before_last = max(self._got.values())
