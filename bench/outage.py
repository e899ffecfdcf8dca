# SPDX-License-Identifier: Apache-2.0
"""One of two sources goes bad while VMs are served from it: what of it they still got, and who serves then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bed.libvirtd import PrivateLibvirtd

from bench import feeds
from bench.feeds import DeviceFeed, Feed, FifoFeed
from bench.finder import Part, twice, unknown
from bench.fleet import BenchError
from bench.hostd import Say, folder
from bench.journal import Entry
from bench.line import Line
from bench.trial import Trial, config, plugged, trial
from bench.watched import WatchedVM
from netrng_hostd.core.vetting import Vetting

A, B = "first", "second"
WITHIN_S = 1.0
MANY = 6  # lines of the log about one failure


class Fault(NamedTuple):
    """`make` is the feed's class; `turns` what it then writes, "" where it is unplugged.

    `state`: what the status shows then; `told`: how the first line of the log begins.
    """

    what: str
    make: type[Feed]
    turns: str
    states: tuple[str, ...]
    told: str

    @property
    def tested(self) -> bool:
        """Whether it is the health tests that notice."""
        return self.turns not in ("", feeds.SILENT)


ALARM = f"source {A}: health test alarm: "
FAULTS = {
    "zeros": Fault("zeros", FifoFeed, feeds.ZEROS, ("failed", "starting"), ALARM),
    "unplugged": Fault("unplugged", DeviceFeed, "", ("absent",), f"source {A}: "),
    "bias": Fault("bias 0.7", FifoFeed, feeds.BIASED, ("failed", "starting"), ALARM),
    "hung": Fault("hung", DeviceFeed, feeds.SILENT, ("stalled",), f"source {A}: stalled"),
    "counter": Fault("00..ff counter", FifoFeed, feeds.COUNTER, ("failed", "starting"), ALARM),
}


class Outcome(NamedTuple):
    """What was seen.

    `good`: how many bytes the source gave before the fault; `failed_at`: after how many the test failed, or
    how many were read of it; `last`: the offset after the last of its bytes that came to a VM; `after`: how
    many came that were read after the test, `of_fault` that were written after the fault; `taken`: by the
    VMs, of both; `unknown`: of no source; `doubled`: more than once; `detected_s` after the fault; `serves_s`
    after the detection, to the first byte of the other in the VM that waited longest; `status`, `check`: what
    they say; `told`: the log's lines about the source.
    """

    good: int
    failed_at: int
    last: int
    after: int
    of_fault: int
    taken: int
    unknown: int
    doubled: int
    detected_s: float
    serves_s: float
    status: str
    check: tuple[int, str]
    told: list[Entry]


def measure(fault: Fault, host: PrivateLibvirtd, vms: list[WatchedVM], say: Say) -> Outcome:
    """Raises BenchError."""
    key = str(time.monotonic_ns()).encode()
    with folder() as place:
        a, b = fault.make(place / A, b"a" + key), FifoFeed(place / B, b"b" + key)
        toml = config(host.uri, [(A, a.kind, a.path), (B, b.kind, b.path)])
        with plugged(a, b), trial(place, toml, vms, say) as run:
            return _measure(fault, run, a, b)


def _measure(fault: Fault, run: Trial, a: Feed, b: Feed) -> Outcome:
    run.wait_ready([A, B])
    run.wait_served(A)
    run.say(f"{A} goes bad: {fault.what}")
    begun = time.time()
    good = a.turn(fault.turns) if fault.turns else a.unplug()
    detected = run.wait_log(fault.told, begun)
    run.say(f"told: {detected.text}")
    run.wait_served(B)
    status, check = _told_by_status(run, fault), run.check(A)
    told = [entry for entry in run.log(begun) if f"source {A}: " in entry.text]
    run.say("the books are compared with what came")
    b.turn(feeds.SILENT)
    run.settle()
    read = run.source(A)["bytes_read"]
    streams = {A: bytes(a.written), B: bytes(b.written)}
    per_vm = run.taken(streams)
    failed_at = _failed_at(streams[A], detected.text) if fault.tested else read
    ends = [part.end for parts in per_vm for part in parts if part.name == A]
    return Outcome(
        good=good,
        failed_at=failed_at,
        last=max(ends),
        after=sum(_beyond(part, failed_at) for parts in per_vm for part in parts),
        of_fault=sum(_beyond(part, good) for parts in per_vm for part in parts),
        taken=sum(part.length for parts in per_vm for part in parts),
        unknown=sum(map(unknown, per_vm)),
        doubled=twice([part for parts in per_vm for part in parts]),
        detected_s=detected.time - begun,
        serves_s=max(_first(run, number, parts) for number, parts in enumerate(per_vm)) - detected.time,
        status=status,
        check=check,
        told=told,
    )


def _failed_at(stream: bytes, told: str) -> int:
    """After how many bytes the daemon's test failed: the same tests say it of the same bytes."""
    alarms = Vetting().feed(stream).alarms
    if not alarms or alarms[0].detail not in told:
        raise BenchError(f"the log tells of another alarm than the stream gives: {told}")
    return alarms[0].offset


def _beyond(part: Part, offset: int) -> int:
    """How many bytes of it the first source gave after so many."""
    return max(0, part.end - max(offset, part.offset)) if part.name == A else 0


def _first(run: Trial, number: int, parts: list[Part]) -> float:
    """When the first byte of the second source came to that VM after the last of the first one."""
    last = max(part.position for part in parts if part.name == A)
    position = min(part.position for part in parts if part.name == B and part.position > last)
    return run.vms[number].arrival(run.marks[number].n_bytes + position)


def _told_by_status(run: Trial, fault: Fault) -> str:
    """The state of the first source, if that is what it should be, and the other serves; else ""."""
    first, second = run.source(A), run.source(B)
    said = first["state"] in fault.states and first["detail"] and not first["serving"] and second["serving"]
    return str(first["state"]) if said else ""


def lines(name: str, host: PrivateLibvirtd, vms: list[WatchedVM], say: Say) -> Iterator[Line]:
    """Three of that fault."""
    fault = FAULTS[name]
    yield from judge(fault, measure(fault, host, vms, say))


def judge(fault: Fault, seen: Outcome) -> Iterator[Line]:
    """What was promised of it, line by line."""
    read = "failed test" if fault.tested else "end of what was read"
    strange = "".join(
        f", {count} {of}" for count, of in ((seen.unknown, "of no source"), (seen.doubled, "twice")) if count
    )
    yield Line(
        f"{fault.what}: of it in VMs, read after the {'test failed' if fault.tested else 'fault'}",
        f"{seen.after} of {seen.taken:,} B{strange} (fault at {seen.good:,}, {read} {seen.failed_at:,}, "
        f"last in a VM {seen.last:,})",
        "0 B", not (seen.after or seen.unknown or seen.doubled),
    )  # fmt: skip
    yield Line(
        f"{fault.what}: the other serves all VMs, from the detection on",
        f"{seen.serves_s:.3f} s (detected after {seen.detected_s:.3f} s)",
        f"≤ {WITHIN_S:g} s", seen.serves_s <= WITHIN_S,
    )  # fmt: skip
    code, wrong = seen.check
    yield Line(
        f"{fault.what}: status, log and check say so",
        f"{seen.status or 'nothing'}; {len(seen.told)} lines; exit {code}, {'a line' if wrong else 'no line'}",
        f"its state; 1 to {MANY} lines; exit 1, a line",
        bool(seen.status and wrong) and code == 1 and 1 <= len(seen.told) <= MANY,
    )  # fmt: skip
