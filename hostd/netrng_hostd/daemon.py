# SPDX-License-Identifier: Apache-2.0
"""The daemon, top down, in the order of one sample's journey:

source.read → health.check → reservoir.put → scheduler.pick → reservoir.take → wire.encode → channel.write

Each source's reader does the first two steps in a thread of its own; all that follows happens in the event
loop: supply.py takes the sources' bytes by the policy, dispatch.py gives them away.
Discovery tells the roster which domains there are; the roster keeps one channel for each.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any

from netrng_hostd.config import Config, ConfigError, load
from netrng_hostd.core.ledger import Ledger
from netrng_hostd.core.mistake import where_raised
from netrng_hostd.core.reservoir import Reservoir
from netrng_hostd.core.scheduler import Scheduler
from netrng_hostd.discovery.sockets import SocketWatcher
from netrng_hostd.discovery.watcher import UriState, Watcher
from netrng_hostd.dispatch import Dispatcher
from netrng_hostd.hypervisor.domain_xml import LiveDomain
from netrng_hostd.operate import systemd
from netrng_hostd.operate.control import ControlServer
from netrng_hostd.operate.status import DaemonStatus
from netrng_hostd.roster import Roster
from netrng_hostd.snapshot import Meters, take_snapshot
from netrng_hostd.sources.identity import refuse_circles, refuse_sources
from netrng_hostd.sources.reader import MAX_READ
from netrng_hostd.supervision import SourceWatch
from netrng_hostd.supply import Supply

log = logging.getLogger("netrng.daemon")

TICK_S = 0.5
STOP_S = 1.0  # for the sources' threads to end
FIXED = {  # what needs a restart, and its name in hostd.toml
    "control": "control",
    "reservoir": "[reservoir]",
    "libvirt": "[libvirt]",
    "sources": "[[source]]",
    "policy": "[sources] policy",
    "min_sources": "[sources] min_sources",
}


class Daemon:
    """One run of `netrng-hostd run`; the lock is held by the caller."""

    def __init__(self, config: Config, config_path: str | None) -> None:
        self._config = config
        self._config_path = config_path
        self.ledger = Ledger()
        self.reservoir = Reservoir(
            config.reservoir.size, config.reservoir.seed_reserve, config.admission.headroom_thousandths
        )
        names = [source.name for source in config.sources]
        self.supply = Supply(names, config.policy, config.min_sources, self.reservoir, self.ledger)
        self.dispatcher = Dispatcher(self.supply, Scheduler(config.sample_size))
        self.roster = Roster(
            self.dispatcher,
            config.quotas,
            config.admission,
            config.libvirt.trust_metadata,
            control=config.control,
        )
        self.watches = [
            SourceWatch(
                source,
                self.supply,
                changed=self._review,
                failed=lambda error: self._fail("a source's reader", error),
                max_read=max(64, min(MAX_READ, self.reservoir.general_size // 4 // len(names))),
            )
            for source in config.sources
        ]
        self.uris: dict[str, UriState] = {}
        self._watchers: list[Watcher] = []
        self._sockets = SocketWatcher(
            config.channels,
            appeared=self.roster.add_static,
            vanished=lambda channel: self.roster.remove_static(channel.name),
        )
        self._meters = Meters()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.failed = False

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT.  Source or libvirt trouble is a state, not an end.

        ``failed`` afterwards: a mistake of ours ended it.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_exception)
        async with AsyncExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop.set)
                stack.callback(loop.remove_signal_handler, number)
            loop.add_signal_handler(signal.SIGHUP, self.reload)
            stack.callback(loop.remove_signal_handler, signal.SIGHUP)
            await stack.enter_async_context(ControlServer(self._config.control, self.snapshot))
            stack.callback(self.dispatcher.stop)
            stack.callback(self._stop_sources)
            self._review()  # before the first byte comes, so that what it begins with is not thrown away
            for watch in self.watches:
                watch.start()
            stack.push_async_callback(self.roster.close)
            stack.push_async_callback(_cancel, self._tasks)
            self._start_discovery()
            self._start_task(self._tick(), "the clock")
            await asyncio.sleep(0)  # each [[serve]] listens before anybody is told that we are ready
            systemd.notify("READY=1")
            described = ", ".join(watch.describe() for watch in self.watches)
            log.info("ready: source %s, control %s", described, self._config.control)
            await self._stop.wait()
            systemd.notify("STOPPING=1")
            log.info("stopping")

    def snapshot(self) -> DaemonStatus:
        """All of `status`, now."""
        return take_snapshot(
            self.watches, self.dispatcher, self.roster, self.uris.values(), self._meters, self._config
        )  # fmt: skip

    def reload(self) -> None:
        """SIGHUP: new quotas and static sockets at once; what needs a restart is named.

        A bad file changes nothing and is said.
        """
        if self._stop.is_set():
            return
        systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            config = load(self._config_path)
            refuse_sources(config)
            refuse_circles(self._in_force(config))
        except ConfigError as error:
            log.error("configuration not reloaded, the running one is kept: %s", error)
        else:
            self._apply(config)
        systemd.notify("READY=1")

    def _apply(self, config: Config) -> None:
        old = self._config
        waiting = [name for name in FIXED if getattr(old, name) != getattr(config, name)]
        self._config = self._in_force(config)
        self.reservoir.headroom = config.admission.headroom_thousandths
        self.roster.use(config.quotas, config.admission)
        self._sockets.use(config.channels)
        for served in set(old.serves) - set(config.serves):
            self.roster.remove_serve(served.name)
        for served in set(config.serves) - set(old.serves):
            self.roster.add_serve(served)
        named = ", ".join(FIXED[name] for name in waiting)
        later = f"; takes effect after a restart: {named}" if waiting else ""
        log.info("configuration reloaded%s", later)

    def _in_force(self, config: Config) -> Config:
        """What needs a restart stays as it is, and is said again at the next reload."""
        return dataclasses.replace(config, **{name: getattr(self._config, name) for name in FIXED})

    def _review(self) -> None:
        """Which sources serve follows from how they are."""
        self.supply.review([watch.standing for watch in self.watches])

    def _stop_sources(self) -> None:
        """All at once: however many hang, they take no longer than one."""
        for watch in self.watches:
            watch.end()
        end_ns = time.monotonic_ns() + int(STOP_S * 1e9)
        for watch in self.watches:
            watch.stop(max(0, end_ns - time.monotonic_ns()) / 1e9)

    def _start_discovery(self) -> None:
        self._start_task(self._sockets.run(), "discovery of sockets")
        for served in self._config.serves:
            self.roster.add_serve(served)
        for uri in self._config.libvirt.uris:
            self._watch(uri)

    def _watch(self, uri: str) -> None:
        streams = self._config.libvirt.transport == "stream"
        open_stream = None

        def appeared(domain: LiveDomain) -> None:
            self.roster.appeared(domain, open_stream)

        def changed(old: LiveDomain, new: LiveDomain) -> None:
            self.roster.changed(old, new, open_stream)

        watcher = Watcher(
            uri,
            self._config.libvirt.transport,
            appeared=appeared,
            changed=changed,
            vanished=self.roster.vanished,
            renewed=self.roster.renewed,
            state_changed=self._uri_changed,
        )
        if streams:
            open_stream = watcher.open_stream
        self._start_task(watcher.run(), f"discovery at {uri}")

    def _start_task(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """A task without which there is no daemon: better started anew than deaf and READY."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._fail(task.get_name(), task.exception())

    def _fail(self, what: str, error: BaseException | None) -> None:
        log.critical("%s has ended: %s", what, where_raised(error))
        self.failed = True
        self._stop.set()

    def _uri_changed(self, state: UriState) -> None:
        self.uris[state.uri] = state
        level = logging.WARNING if state.state == "down" else logging.INFO
        detail = f": {state.detail}" if state.detail else ""
        log.log(level, "libvirt %s: %s%s", state.uri, state.state, detail)

    async def _tick(self) -> None:
        told = ""
        while True:
            now_ns = time.monotonic_ns()
            self.roster.tick(now_ns)
            for watch in self.watches:
                watch.tick(now_ns)
            self._review()
            capacity = self.supply.capacity
            self.roster.promises.learn(capacity)
            self.dispatcher.adapt(capacity, self._config.sample_size)
            names = [watch.config.name for watch in self.watches]
            self._meters.tick(now_ns, names, self.ledger, self.roster)
            systemd.notify("WATCHDOG=1")
            if (summary := self._summary()) != told:
                told = summary
                systemd.notify(f"STATUS={summary}")
            await asyncio.sleep(TICK_S)

    def _summary(self) -> str:
        """One line for `systemctl status`."""
        states = [entry.channel.state for entry in self.roster.entries]
        sources = ", ".join(watch.state.name for watch in self.watches)
        n_open = sum(state in ("open", "listening") for state in states)
        return f"source {sources}, {n_open} of {len(states)} channels open"


def _log_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """One line for a mistake of ours, in the place of asyncio's traceback."""
    log.error("%s", where_raised(context.get("exception")))


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    """All at once: one that waits for a libvirtd that hangs holds up no other."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
