# SPDX-License-Identifier: Apache-2.0
"""Which sockets of the [[channel]] tables are there: looked for again and again, since nobody announces them.

Each pattern is looked for in a thread of its own.  A folder on a file system that hangs holds up that thread
alone: what was known there stays, and nothing waits for it, neither the event loop nor the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import heapq
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from functools import partial

from netrng_hostd.config import ChannelConfig
from netrng_hostd.discovery.globs import (
    MAX_SOCKETS,
    Found,
    Notice,
    Scan,
    assign,
    carried,
    component,
    difference,
    matched,
    oddness,
)
from netrng_hostd.hypervisor.worker import Worker

SCAN_S = 2.0
REST = 9  # times the CPU time of a look is the pause after it, if that is more: a tenth of a core at most
SLOW_S = 10.0  # a look that takes longer is said

_log = logging.getLogger(__name__)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class SocketWatcher:
    """Reports the channels that the configuration names; the callbacks run on the asyncio loop.

    One without wildcards is there as long as it is configured, whether it has a socket or not.  A socket that
    a pattern matches ``appeared`` and ``vanished`` as a channel of its own, with its own name and path.
    """

    def __init__(
        self,
        configs: Sequence[ChannelConfig],
        *,
        appeared: Callable[[ChannelConfig], None],
        vanished: Callable[[ChannelConfig], None],
        scan_s: float = SCAN_S,
        slow_s: float = SLOW_S,
    ) -> None:
        self.served: dict[str, ChannelConfig] = {}
        self._configs = tuple(configs)
        self._appeared, self._vanished = appeared, vanished
        self._scan_s, self._slow_s = scan_s, slow_s
        self._scans: dict[ChannelConfig, Scan] = {}
        self._workers: dict[str, Worker] = {}  # by path, like the looks that have not returned
        self._looks: dict[str, Future[tuple[Scan, float]]] = {}
        self._said: set[Notice] = set()
        self._changed: asyncio.Event | None = None  # while it runs

    def use(self, configs: Sequence[ChannelConfig]) -> None:
        """From a reload: what is configured as before goes on."""
        self._configs = tuple(configs)
        self._scans = {config: self._scans[config] for config in configs if config in self._scans}
        self._settle()
        if self._changed is not None:
            self._changed.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        self._changed = changed = asyncio.Event()
        tasks: dict[ChannelConfig, asyncio.Task[None]] = {}
        try:
            self._settle()
            while True:
                changed.clear()
                patterns = {config for config in self._configs if config.is_pattern}
                for gone in tasks.keys() - patterns:
                    tasks.pop(gone).cancel()
                for new in patterns - tasks.keys():
                    tasks[new] = asyncio.create_task(self._watch(new), name=f"sockets of {new.name}")
                    tasks[new].add_done_callback(lambda _: changed.set())
                await changed.wait()
                for task in tasks.values():
                    if task.done():
                        task.result()  # raises: only a mistake of ours ends it
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            for worker in self._workers.values():
                worker.stop()

    async def _watch(self, config: ChannelConfig) -> None:
        """One pattern.  Its worker outlives it while a look does not return, so that no second one starts."""
        path = config.path
        worker = self._workers.get(path) or Worker(f"sockets of {config.name}")
        self._workers[path] = worker
        if path in self._looks and self._looks[path].done():  # it returned while nobody wanted to know
            del self._looks[path]
        try:
            while True:
                before = self._scans.get(config, Scan())
                if path not in self._looks:  # from before a reload, of this path too
                    known = frozenset(found.path for found in before.found)
                    self._looks[path] = worker.submit(partial(_timed_scan, path, known))
                seen, cpu_s = await self._answer(config, self._looks[path])
                after = carried(before, seen)
                del self._looks[path]
                if self._scans.get(config) != after:
                    self._scans[config] = after
                    self._settle()
                await asyncio.sleep(max(self._scan_s, REST * cpu_s))
        finally:
            if path not in self._looks or self._looks[path].done():
                self._looks.pop(path, None)
                del self._workers[path]
                worker.stop()

    async def _answer(self, config: ChannelConfig, look: Future[tuple[Scan, float]]) -> tuple[Scan, float]:
        """However long it takes; who is cancelled meanwhile leaves the look to whoever comes next."""
        # Not asyncio.wrap_future: with it a look that waits for its thread is cancelled, but only after the
        # next one has begun to wait for it.
        loop, returned = asyncio.get_running_loop(), asyncio.Event()

        def wake(_: Future[tuple[Scan, float]]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(returned.set)

        look.add_done_callback(wake)
        waiting = asyncio.ensure_future(returned.wait())
        try:
            in_time, _ = await asyncio.wait([waiting], timeout=self._slow_s)
            if not in_time:
                slow = f"{config.name}: no answer from the file system of {config.path} in {self._slow_s:g} s"
                _log.warning("%s; what is known there stays", slow)
                await waiting
                _log.info("%s: the file system of %s answers again", config.name, config.path)
            return look.result()
        finally:
            waiting.cancel()

    def _settle(self) -> None:
        """Tells what is different now."""
        wanted, notices = assign(self._configs, self._scans, self.served)
        gone, new = difference(self.served, wanted)
        self.served = wanted
        for config in gone:
            self._vanished(config)
        for config in new:
            self._appeared(config)
        for notice in notices:
            if notice not in self._said:  # once, as long as it is so
                _log.log(logging.WARNING if notice.wrong else logging.INFO, "%s", notice.text)
        self._said = set(notices)


def _timed_scan(path: str, known: Collection[str]) -> tuple[Scan, float]:
    """And the CPU time that it took, in seconds."""
    began_s = time.thread_time()
    seen = scan(path, known)
    return seen, time.thread_time() - began_s


def scan(path: str, known: Collection[str] = frozenset()) -> Scan:
    """The sockets that match a pattern now, those of ``known`` paths first where they are too many.

    It may take long, or never return.  What cannot be read is no error.
    """
    walk = _Walk()
    parts = [(part, component(part)) for part in path.split("/") if part]
    # No more is kept than is needed, however many there are.
    found = heapq.nsmallest(
        MAX_SOCKETS + 1,
        walk.sockets("", parts, []),
        key=lambda one: (bool(oddness(one.path)), one.path not in known, one.path),
    )
    return Scan(
        tuple(sorted(found[:MAX_SOCKETS])),
        tuple(sorted(walk.unread.items())),
        walk.missing,
        len(found) > MAX_SOCKETS,
    )


class _Walk:
    """Through the folders that match, and what was in the way."""

    def __init__(self) -> None:
        self.unread: dict[str, str] = {}
        self.missing = ""

    def sockets(
        self, folder: str, parts: Sequence[tuple[str, re.Pattern[str] | None]], stem: list[str]
    ) -> Iterator[Found]:
        """Below ``folder``, whose wildcards matched ``stem``."""
        (part, expression), rest = parts[0], parts[1:]
        if expression is None:
            if rest:
                yield from self.sockets(f"{folder}/{part}", rest, stem)
            elif self._is_socket(folder, part):
                path = f"{folder}/{part}"
                yield Found(path, "-".join(filter(None, stem)), os.path.realpath(path))
            return
        real = os.path.realpath(folder or "/").rstrip("/")
        try:
            with os.scandir(folder or "/") as entries:
                for entry in entries:
                    wild = matched(expression, entry.name)
                    if wild is None:
                        continue
                    here, path = [*stem, *wild], f"{folder}/{entry.name}"
                    if rest:
                        if self._is_folder(entry):
                            yield from self.sockets(path, rest, here)
                    elif self._may_be_socket(entry) and self._is_socket(folder, entry.name):
                        link = entry.is_symlink()
                        yield Found(
                            path,
                            "-".join(filter(None, here)),
                            os.path.realpath(path) if link else f"{real}/{entry.name}",
                        )
        except OSError as error:
            self._in_the_way(folder or "/", error, first=not stem)

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:
            return False

    def _may_be_socket(self, entry: os.DirEntry[str]) -> bool:
        """What the listing tells; to ask for each file would take long where there are many."""
        return not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False))

    def _is_socket(self, folder: str, name: str) -> bool:
        try:
            return stat.S_ISSOCK(os.stat(f"{folder}/{name}").st_mode)  # noqa: PTH116
        except OSError as error:
            if error.errno not in _GONE:
                self._in_the_way(folder or "/", error, first=False)
            return False

    def _in_the_way(self, folder: str, error: OSError, *, first: bool) -> None:
        """``first``: no wildcard stands before it, so it is one folder that was meant."""
        if error.errno not in _GONE:
            if len(self.unread) < MAX_SOCKETS:
                self.unread[folder] = (error.strerror or str(error)).lower()
        elif first:
            self.missing = folder
