# SPDX-License-Identifier: Apache-2.0
"""libvirtd absent, refusing, hanging, dying and coming back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.edge.lab import IMPATIENT, UUID_A, Recorder, domain_xml, fake_hypervisor, running, until

from netrng_hostd.hypervisor import LiveDomain, UnreachableError
from netrng_hostd.hypervisor.connection import Connection

NOBODY = 65534


pytestmark = pytest.mark.usefixtures("libvirt_events")


def uri_of(path: Path) -> str:
    return f"qemu+unix:///session?socket={path}"


@contextlib.contextmanager
def hung_libvirtd(path: Path) -> Iterator[socket.socket]:
    """Takes connections and never answers; what it accepted is closed at the end."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        listener.setblocking(False)
        yield listener


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Without the rights of root, which ignores file modes."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_absent_libvirtd_is_a_state_told_once_and_retried(tmp_path: Path) -> None:
    path = tmp_path / "libvirt-sock"

    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(uri_of(path))
        attempts = 0
        connect = watcher._watch

        async def counted(*arguments: object) -> None:
            nonlocal attempts
            attempts += 1
            await connect(*arguments)  # type: ignore[arg-type]

        watcher._watch = counted  # type: ignore[method-assign, assignment]
        async with running(watcher):
            await until(lambda: attempts >= 4)
            assert recorder.state_names == ["connecting", "down"], "one report for the same reason"
            down = recorder.states[-1]
            assert down.uri in down.detail
            assert "No such file or directory" in down.detail
            assert "is libvirtd" in down.detail
            assert "\n" not in down.detail

    asyncio.run(scenario(), debug=True)


def test_a_changed_reason_is_told_and_keeps_the_time_of_the_loss(tmp_path: Path) -> None:
    path = tmp_path / "libvirt-sock"

    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(uri_of(path))
        async with running(watcher):
            await until(lambda: watcher.state.state == "down")
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(str(path))  # and never listens: connection refused
                await until(lambda: "refused" in watcher.state.detail)
        assert recorder.state_names == ["connecting", "down", "down"]
        assert recorder.states[1].since_ns == recorder.states[2].since_ns

    asyncio.run(scenario(), debug=True)


def test_a_refused_permission_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "libvirt-sock"

    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(uri_of(path))
        async with running(watcher):
            await until(lambda: watcher.state.state == "down")
            assert "Permission denied" in watcher.state.detail
            assert "group libvirt" in watcher.state.detail

    with hung_libvirtd(path), unprivileged():
        if os.geteuid() != NOBODY:
            path.chmod(0)
        asyncio.run(scenario(), debug=True)


def test_a_hung_libvirtd_stops_neither_the_loop_nor_the_end(tmp_path: Path) -> None:
    path = tmp_path / "libvirt-sock"

    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(uri_of(path), timing=IMPATIENT)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        with hung_libvirtd(path) as listener:
            task = asyncio.create_task(watcher.run())
            accepted: list[socket.socket] = []

            def connected() -> bool:
                with contextlib.suppress(BlockingIOError):
                    accepted.append(listener.accept()[0])
                return bool(accepted)

            await until(connected)
            seen = ticks
            await until(lambda: ticks > seen + 100, "the loop goes on")
            await until(lambda: watcher.state.state == "down")
            assert "does not answer" in watcher.state.detail
            with pytest.raises(UnreachableError):
                await watcher.open_stream(LiveDomain("a", UUID_A, watcher.uri, 1, None))
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert recorder.state_names == ["connecting", "down"]
            for end in accepted:  # only now does the thread inside libvirt come back, and it ends
                end.close()
        ticking.cancel()

    asyncio.run(scenario(), debug=True)


def test_a_hung_libvirtd_that_wakes_up_again_is_served_without_a_new_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first listing takes longer than the patience; then everything goes on."""
    from tests.edge.lab import UUID_A

    from netrng_hostd.hypervisor.connection import Connection

    active = Connection.active
    slow = [True]

    def slowly(self: Connection) -> list[tuple[str, int]]:
        while slow[0]:
            time.sleep(0.005)
        return active(self)

    monkeypatch.setattr(Connection, "active", slowly)

    async def scenario() -> None:
        recorder = Recorder()
        with fake_hypervisor() as libvirtd:
            libvirtd.createXML(domain_xml("a", UUID_A), 0)
            watcher = recorder.watcher("test:///default", timing=IMPATIENT)
            async with running(watcher):
                await until(lambda: watcher.state.state == "down")
                slow[0] = False
                await until(lambda: watcher.state.state == "connected")
                assert recorder.calls == [("appeared", "a")]
                assert recorder.state_names == ["connecting", "down", "connected"]

    asyncio.run(scenario(), debug=True)


def test_a_missing_libvirt_module_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netrng_hostd.hypervisor.errors.libvirt", None)

    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher("test:///default")
        async with running(watcher):
            await until(lambda: watcher.state.state == "down")
            assert "python3-libvirt" in watcher.state.detail

    asyncio.run(scenario(), debug=True)


def test_a_uri_that_libvirt_does_not_know_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(f"nonsense+unix:///system?socket={tmp_path / 'none'}")
        async with running(watcher):
            await until(lambda: watcher.state.state == "down")
            assert "nonsense" in watcher.state.detail

    asyncio.run(scenario(), debug=True)


