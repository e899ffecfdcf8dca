# SPDX-License-Identifier: Apache-2.0
"""The real daemon on sources that can be made to fail, with real VMs: what a run does, step by step."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.edge.rig import PATIENCE_S, run_command

from bench.feeds import Feed
from bench.finder import Finder, Part
from bench.fleet import BenchError
from bench.hostd import Hostd, Say
from bench.journal import Entry, entries
from bench.watched import Mark, WatchedVM

WARM = 16_384  # bytes that each VM gets before a source is made to fail
STALL_S = 0.5  # the least that may be configured
SMALL = '[reservoir]\nsize = "16KiB"\nseed_reserve = "1KiB"\n'


def config(uri: str, sources: Sequence[tuple[str, str, Path]], stall_s: float = STALL_S) -> str:
    """hostd.toml; ``sources``: name, kind and path of each."""
    described = "".join(
        f'[[source]]\nname = "{name}"\nkind = "{kind}"\npath = "{path}"\nstall_timeout = {stall_s}\n'
        for name, kind, path in sources
    )
    return f'{SMALL}[libvirt]\nuris = ["{uri}"]\n{described}'


@dataclass
class Trial:
    """One daemon and what it gives the VMs since it was started."""

    hostd: Hostd
    vms: Sequence[WatchedVM]
    marks: Sequence[Mark]
    say: Say
    books: Sequence[dict[str, Any]] = ()  # what the daemon says that the VMs have got, at the end

    def source(self, name: str) -> dict[str, Any]:
        """Its part of `status --json`."""
        return next(source for source in self.hostd.status()["sources"] if source["name"] == name)

    def domains(self) -> list[dict[str, Any]]:
        """Those of the VMs, in their order."""
        known = {domain["name"]: domain for domain in self.hostd.status()["domains"]}
        return [known.get(vm.name, {"origins": {}, "bytes_sent": 0}) for vm in self.vms]

    def sent(self) -> int:
        """Bytes given to all VMs so far."""
        return sum(domain["bytes_sent"] for domain in self.domains())

    def wait_served(self, name: str, more: int = WARM) -> None:
        """Until each VM was given so many bytes more of that source."""
        before = [domain["origins"].get(name, 0) for domain in self.domains()]

        def served() -> bool:
            now = [domain["origins"].get(name, 0) for domain in self.domains()]
            return all(n >= b + more for n, b in zip(now, before))

        self._wait_for(served, f"{more} bytes of {name} in each VM")

    def wait_ready(self, names: Sequence[str]) -> None:
        """Until those sources are healthy and their capacities known."""

        def ready() -> bool:
            sources = map(self.source, names)
            return all(one["state"] == "healthy" and one["capacity"] is not None for one in sources)

        self.say("waits until all sources have proved themselves")
        self._wait_for(ready, f"healthy sources {', '.join(names)}")

    def wait_unhealthy(self, names: Sequence[str]) -> None:
        """Until none of those sources is healthy."""

        def bad() -> bool:
            return all(self.source(name)["state"] != "healthy" for name in names)

        self._wait_for(bad, f"sources {', '.join(names)} in trouble")

    def wait_arrived(self, before: Sequence[int], deadline_s: float) -> None:
        """Until each VM has got more than so many bytes."""
        self._wait_for(
            lambda: all(vm.n_bytes > n for vm, n in zip(self.vms, before)),
            "bytes in all VMs", deadline_s,
        )  # fmt: skip

    def wait_log(self, begins: str, since: float) -> Entry:
        """The first line that begins so, written at ``since`` or later."""

        def found() -> Entry | None:
            return next((entry for entry in self.log(since) if entry.text.startswith(begins)), None)

        entry: Entry = self._wait_for(found, f"a line {begins!r}")
        return entry

    def log(self, since: float) -> list[Entry]:
        """Lines written then or later."""
        # A line's time is cut off to the millisecond.
        return [entry for entry in entries(self.hostd.log) if entry.time >= since - 0.001]

    def check(self, name: str) -> tuple[int, str]:
        """What `netrng-hostd check` ends with, and its line of what is wrong with that source, if any."""
        done = run_command("check", "--config", str(self.hostd.config))
        wrong = (line for line in done.stdout.splitlines() if line.startswith(f"WRONG  source {name}: "))
        return done.returncode, next(wrong, "")

    def told_by_status(self) -> dict[str, dict[str, Any]]:
        """What `netrng-hostd status --json` says of each source, by name."""

        def told() -> str:  # "" where the daemon had no time for the question
            done = run_command("status", "--json", "--config", str(self.hostd.config))
            return "" if done.returncode else done.stdout

        status = json.loads(self._wait_for(told, "a status"))
        return {source["name"]: source for source in status["sources"]}

    def settle(self) -> None:
        """Until all that was sent has come: there must be nothing more to send."""

        def settled() -> bool:
            before, self.books = self.books, self.domains()
            return not any(now["in_flight"] for now in self.books) and [
                one["bytes_sent"] for one in before
            ] == [one["bytes_sent"] for one in self.books]

        self._wait_for(settled, "the VMs to have all that was sent")
        for vm in self.vms:
            vm.settle()

    def stop(self) -> None:
        """Ends the daemon, where a source cannot be made to give nothing."""
        self.books = self.domains()
        self.hostd.stop()
        for vm in self.vms:
            vm.settle()

    def taken(self, streams: dict[str, bytes]) -> list[list[Part]]:
        """What each VM has got, by streams; the seeds' parts last, at position -1.

        BenchError where less comes than the daemon's books say.
        """
        finder = Finder(streams)
        found = []
        for vm, mark, book in zip(self.vms, self.marks, self.books):
            body, seeds = self._got(vm, mark, book["bytes_acked"])
            parts = finder.parts(body)
            for seed in seeds:
                parts += [part._replace(position=-1) for part in finder.parts(seed)]
            found.append(parts)
        return found

    def _got(self, vm: WatchedVM, mark: Mark, acked: int) -> tuple[bytes, list[bytes]]:
        """What `WatchedVM.since` says once all that it acknowledged is there: QEMU may be late with it."""

        def got() -> tuple[bytes, list[bytes]] | None:
            body, seeds = vm.since(mark)
            return (body, seeds) if len(body) + sum(map(len, seeds)) >= acked else None

        found: tuple[bytes, list[bytes]] = self._wait_for(got, f"{acked} bytes in {vm.name}, as acknowledged")
        return found

    def unseen(self) -> int:
        """How many bytes the daemon sent that came nowhere, as far as it knows."""
        return sum(book["bytes_lost"] for book in self.books)

    def _wait_for(self, condition: Callable[[], Any], what: str, deadline_s: float = PATIENCE_S) -> Any:
        """The first true value. BenchError after the deadline."""
        end = time.monotonic() + deadline_s
        while not (value := condition()):
            if time.monotonic() > end:
                words = " | ".join(self.hostd.log.strip().splitlines()[-4:])
                raise BenchError(f"waited {deadline_s:.0f} s in vain for {what}; the log ends: {words}")
            time.sleep(0.02)
        return value


@contextlib.contextmanager
def trial(place: Path, toml: str, vms: Sequence[WatchedVM], say: Say) -> Iterator[Trial]:
    """Starts the daemon; the VMs have got nothing of it yet."""
    for vm in vms:
        vm.settle()
    marks = [vm.mark() for vm in vms]
    with Hostd(place, toml) as hostd:
        hostd.start()
        yield Trial(hostd, vms, marks, say)


@contextlib.contextmanager
def plugged(*feeds: Feed) -> Iterator[None]:
    """The feeds run."""
    with contextlib.ExitStack() as stack:
        for feed in feeds:
            stack.enter_context(feed)
        yield
