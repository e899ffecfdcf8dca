# SPDX-License-Identifier: Apache-2.0
"""One of two sources goes bad while VMs are served from it: what they still got of it, and who serves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bed.entropy_broker import unmixed
from bed.libvirtd import PrivateLibvirtd

from bench import feeds
from bench.feeds import DeviceFeed, Feed, FifoFeed
from bench.finder import Part, beyond, twice, unknown
from bench.fleet import BenchError
from bench.hardware import DEVICE, unusable
from bench.hostd import Say, folder
from bench.line import Line, skipped
from bench.trial import STALL_S, WARM, Trial, config, plugged, trial
from bench.watched import WatchedVM
from netrng_hostd.core.vetting import Vetting
from netrng_hostd.sources.pace import LAST_ALARM_RETRY_NS

A, B = "first", "second"
WITHIN_S = 1.0
TOLD_S = 0.4  # before it is tried again
ASKED_S = 30.0  # on a busy machine the daemon may be late with an answer, or a good source be silent
MANY = 5  # lines of the log about one failure
LATE = 256  # bytes, fewer than a start-up test takes: what a read that hung brings in the end
BACK_S = LAST_ALARM_RETRY_NS / 1e9 + 5


class Fault(NamedTuple):
    """`make` is the feed's class, and `turns` what it writes then, "" where it is unplugged.

    `states`: one of them is what the status shows then; `told`: how the first line of the log begins.
    """

    what: str
    make: type[Feed]
    turns: str
    states: tuple[str, ...]
    told: str

    @property
    def tested(self) -> bool:
        """Whether it is the health tests that notice."""
        return self.turns in (feeds.ZEROS, feeds.BIASED, feeds.COUNTER)


ALARM = f"source {A}: health test alarm: "
FAILED = ("failed", "starting")
FAULTS = {
    "zeros": Fault("zeros", FifoFeed, feeds.ZEROS, FAILED, ALARM),
    "unplugged": Fault("unplugged", DeviceFeed, "", ("absent",), f"source {A}: "),
    "bias": Fault("bias 0.7", FifoFeed, feeds.BIASED, FAILED, ALARM),
    "hung": Fault("hung", DeviceFeed, feeds.SILENT, ("stalled",), f"source {A}: stalled"),
    "counter": Fault("00..ff counter, by EntropyBroker's feeder", FifoFeed, feeds.COUNTER, FAILED, ALARM),
}


class Outcome(NamedTuple):
    """What was seen of a fault of the first source.

    `good`: how many bytes it gave before; `failed_at`: after how many the test failed, the same where it was
    none; `last`: the offset after the last of them that came to a VM; `after`: how many came that were read
    after the test; `taken`: by the VMs, of both sources; `unknown`: of no source; `doubled`: more than once;
    `lost`: sent, and never acknowledged; `detected_s` after the fault; `serves_s` after the detection, to the
    first byte of the other in the VM that waited longest; `status`, `check`: what they say; `told`: how many
    lines of the log about the source within a second; `back_s`: from when it was good until it serves again.
    """

    good: int
    failed_at: int
    last: int
    after: int
    taken: int
    unknown: int
    doubled: int
    lost: int
    detected_s: float
    serves_s: float
    status: str
    check: tuple[int, str]
    told: int
    back_s: float | None


Through = Callable[[Path, Path], contextlib.AbstractContextManager[Path]]


def measure(
    fault: Fault, host: PrivateLibvirtd, vms: list[WatchedVM], say: Say, *,
    through: Through | None = None, device: str = "", back: bool = False, stall_s: float = STALL_S,
) -> Outcome:  # fmt: skip
    """Raises BenchError.

    ``through``: what the first source's bytes go through, from the path of its feed to that of the source;
    ``device``: the other source, if it is to be a real one; ``back``: whether the first is to serve again.
    """
    key = str(time.monotonic_ns()).encode()
    with folder() as place, contextlib.ExitStack() as stack:
        a, b = fault.make(place / A, b"a" + key), FifoFeed(place / B, b"b" + key)
        stack.enter_context(plugged(a) if device else plugged(a, b))
        path = stack.enter_context(through(place, a.path)) if through else a.path
        other = (B, "device", Path(device)) if device else (B, b.kind, b.path)
        toml = config(host.uri, [(A, a.kind, path), other], stall_s)
        run = stack.enter_context(trial(place, toml, vms, say))
        return _measure(fault, run, a, None if device else b, back)


def _measure(fault: Fault, run: Trial, a: Feed, b: Feed | None, back: bool) -> Outcome:
    run.wait_ready([A, B])
    run.wait_served(A)
    run.say(f"{A} goes bad: {fault.what}")
    begun = time.time()
    good = a.turn(fault.turns) if fault.turns else a.unplug()
    detected = run.wait_log(fault.told, begun)
    run.say(f"told: {detected.text}")
    run.wait_served(B, WARM if b else WARM // 8)
    status, check = _told(run, fault)
    about = (entry for entry in run.log(begun) if entry.text.startswith(f"source {A}: "))
    told = sum(entry.time <= detected.time + TOLD_S for entry in about)
    if fault.turns == feeds.SILENT:
        a.late(LATE)
    run.say("what came is compared with what was written")
    if b is not None:
        b.turn(feeds.SILENT)
        run.settle()
    else:
        run.stop()
    streams = {A: bytes(a.written)} if b is None else {A: bytes(a.written), B: bytes(b.written)}
    per_vm = run.taken(streams)
    failed_at = _failed_at(streams[A], detected.text) if fault.tested else good
    every = [part for parts in per_vm for part in parts]
    serves_s = max(_first(run, number, parts, B if b else "") for number, parts in enumerate(per_vm))
    return Outcome(
        good=good,
        failed_at=failed_at,
        last=max(part.end for part in every if part.name == A),
        after=beyond(every, A, failed_at),
        taken=sum(part.length for part in every),
        unknown=unknown(every) if b else 0,
        doubled=twice(every),
        lost=run.unseen(),
        detected_s=max(0.0, detected.time - begun),  # a line's time is cut off to the millisecond
        serves_s=serves_s - detected.time,
        status=status,
        check=check,
        told=told,
        back_s=_back_s(fault, run, a, b) if b and back else None,
    )


def _back_s(fault: Fault, run: Trial, a: Feed, b: Feed) -> float:
    b.turn(feeds.GOOD)
    run.wait_served(B)  # so that the first has to prove itself
    run.say(f"{A} is good again")
    begun = time.time()
    if not fault.turns:
        a.plug()
    a.turn(feeds.GOOD)
    serves = run.wait_log(f"failover: VMs are served from the source {A}", begun)
    run.wait_served(A)
    return serves.time - begun


def _failed_at(stream: bytes, told: str) -> int:
    """After how many bytes the daemon's test failed: the same tests say it of the same bytes."""
    alarms = Vetting().feed(stream).alarms
    if not alarms or alarms[0].detail not in told:
        raise BenchError(f"the log tells of another alarm than the stream gives: {told}")
    return alarms[0].offset


def _first(run: Trial, number: int, parts: list[Part], other: str) -> float:
    """When the first byte of the other source came to that VM after the last of the first one."""
    last = max(part.position for part in parts if part.name == A)
    position = min(part.position for part in parts if part.name == other and part.position > last)
    return run.vms[number].arrival(run.marks[number].n_bytes + position)


def _told(run: Trial, fault: Fault) -> tuple[str, tuple[int, str]]:
    """What status and check say; asked again for a while where that is not what it should be."""
    end = time.monotonic() + ASKED_S
    while True:
        status, check = _told_by_status(run, fault), run.check(A)
        if (status and check[1]) or time.monotonic() > end:
            return status, check
        time.sleep(0.1)


def _told_by_status(run: Trial, fault: Fault) -> str:
    """The state of the first source, if that is what it should be, and the other serves; else ""."""
    told = run.told_by_status()
    first, second = told[A], told[B]
    said = first["state"] in fault.states and first["detail"] and not first["serving"] and second["serving"]
    return str(first["state"]) if said else ""


def lines(name: str, host: PrivateLibvirtd, vms: list[WatchedVM], say: Say) -> Iterator[Line]:
    """Four of that fault."""
    yield from judge(FAULTS[name], measure(FAULTS[name], host, vms, say, back=True))


def counter_lines(host: PrivateLibvirtd, vms: list[WatchedVM], say: Say) -> Iterator[Line]:
    """How soon a counter is caught that EntropyBroker's own program passes on, and the usual three."""
    fault = FAULTS["counter"]
    seen = measure(fault, host, vms, say, through=lambda place, feed: unmixed(place, str(feed)))
    caught = seen.failed_at - seen.good
    yield Line(f"{fault.what}: caught", f"after {caught:,} B of it", "≤ 4,096 B", caught <= 4096)
    yield from judge(fault, seen)


def hwrng_lines(host: PrivateLibvirtd, vms: list[WatchedVM], say: Say) -> Iterator[Line]:
    """A real hardware RNG is the other one."""
    fault = FAULTS["zeros"]._replace(what=f"zeros, and {DEVICE} takes over")
    if why := unusable():
        skipped(fault.what, why)
        return
    yield from judge(fault, measure(fault, host, vms, say, device=DEVICE))


def judge(fault: Fault, seen: Outcome) -> Iterator[Line]:
    """What was promised of it, line by line."""
    failed = f", failed at {seen.failed_at:,}" if fault.tested else ""
    strange = "".join(
        f", {count} {of}"
        for count, of in ((seen.unknown, "of no source"), (seen.doubled, "twice"), (seen.lost, "lost"))
        if count
    )
    yield Line(
        f"{fault.what}: of it in VMs, read after the {'test failed' if fault.tested else 'fault'}",
        f"{seen.after} of {seen.taken:,} B{strange} (fault at its {seen.good:,}{failed}, last in a VM "
        f"{seen.last:,})",
        "0 B", not (seen.after or seen.unknown or seen.doubled),
    )  # fmt: skip
    yield Line(
        f"{fault.what}: the other serves every VM, after the detection",
        f"{seen.serves_s:.3f} s (detected {seen.detected_s:.3f} s after the fault)",
        f"≤ {WITHIN_S:g} s", seen.serves_s <= WITHIN_S,
    )  # fmt: skip
    code, wrong = seen.check
    yield Line(
        f"{fault.what}: status, log and check say so",
        f"{seen.status or 'not so'}; log lines: {seen.told}; {'a line' if wrong else 'no line'}, exit {code}",
        f"its state; 1 to {MANY}; a line, exit 1",
        bool(seen.status and wrong) and code == 1 and 1 <= seen.told <= MANY,
    )  # fmt: skip
    if seen.back_s is not None:
        yield Line(
            f"{fault.what}: serves again by itself, once it is good and has proved itself",
            f"after {seen.back_s:.1f} s", f"≤ {BACK_S:.0f} s", seen.back_s <= BACK_S,
        )  # fmt: skip
