# SPDX-License-Identifier: Apache-2.0
"""Streams through a real libvirtd: bytes both ways, every way to end, and a flood.

No guest is needed: with <source mode='connect'> QEMU connects to our socket at the domain's start, and
libvirtd connects to the same path when the stream is opened.  What it carries is then ours to see.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import libvirt
import psutil
import pytest
from bed.libvirtd import PrivateLibvirtd
from bed.rundir import RunDirectory
from tests.edge.lab import QUICK, UUID_A, UUID_B, Recorder, paused_domain, running, until

from netrng_hostd.discovery.watcher import Watcher
from netrng_hostd.hypervisor import DeniedError, HypervisorError, NoDomainError, event_thread
from netrng_hostd.hypervisor.connection import KEEPALIVE_COUNT, KEEPALIVE_INTERVAL_S, Connection
from netrng_hostd.hypervisor.stream import MAX_BACKLOG_BYTES
from netrng_hostd.operate.attach import attach, detach

pytestmark = [
    pytest.mark.shared_state,
    pytest.mark.skipif(
        not (shutil.which("libvirtd", path="/usr/sbin:/usr/bin") and shutil.which("qemu-system-x86_64")),
        reason="needs libvirt-daemon, libvirt-daemon-driver-qemu and qemu-system-x86",
    ),
]


class Hypervisor:
    """A private libvirtd, a paused domain "a", and the socket that stands for its channel's other end."""

    def __init__(self, run: RunDirectory) -> None:
        self.libvirtd = PrivateLibvirtd(run)
        self.path = run.path / "channel"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(8)
        self.listener.settimeout(20)
        self.path.chmod(0o666)
        self.qemu: socket.socket | None = None

    def start(self) -> None:
        self.libvirtd.start()
        self.libvirtd.connection().createXML(
            paused_domain("a", UUID_A, f"<source mode='connect' path='{self.path}'/>"), 1
        )
        self.qemu, _ = self.listener.accept()

    def accept(self) -> socket.socket:
        """The end of the stream that was just opened."""
        end, _ = self.listener.accept()
        end.setblocking(False)
        return end

    def stop(self) -> None:
        if self.qemu is not None:
            self.qemu.close()
        self.listener.close()
        self.libvirtd.stop()


@pytest.fixture(scope="module")
def hypervisor() -> Iterator[Hypervisor]:
    event_thread.start()
    with RunDirectory() as run:
        made = Hypervisor(run)
        try:
            made.start()
            yield made
        finally:
            made.stop()
    event_thread.shutdown()


@contextlib.asynccontextmanager
async def watching(hypervisor: Hypervisor) -> AsyncIterator[tuple[Watcher, Recorder]]:
    before = set(threading.enumerate())
    recorder = Recorder()
    watcher = recorder.watcher(hypervisor.libvirtd.uri, "stream")
    async with running(watcher):
        await until(lambda: UUID_A in watcher.domains)
        yield watcher, recorder
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name == f"libvirt {watcher.uri}"]


@contextlib.asynccontextmanager
async def stream(
    watcher: Watcher, hypervisor: Hypervisor
) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """(our end, the channel's end)"""
    ours = await watcher.open_stream(watcher.domains[UUID_A])
    theirs = hypervisor.accept()
    with ours, theirs:
        yield ours, theirs


async def closed(end: socket.socket) -> bytes:
    """Read to the end of file; what came before it."""
    loop, data = asyncio.get_running_loop(), b""
    while True:
        try:
            chunk = await asyncio.wait_for(loop.sock_recv(end, 65536), 20)
        except ConnectionResetError:
            return data
        if not chunk:
            return data
        data += chunk


def test_bytes_go_both_ways_unchanged_and_in_order(hypervisor: Hypervisor) -> None:
    down = bytes(range(256)) * 2048  # 512 KiB: more than any buffer on the way
    up = bytes(reversed(range(256))) * 128

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with watching(hypervisor) as (watcher, _), stream(watcher, hypervisor) as (ours, theirs):
            assert not ours.getblocking()

            async def pull(end: socket.socket, count: int) -> bytes:
                got = bytearray()
                while len(got) < count:
                    got += await asyncio.wait_for(loop.sock_recv(end, 65536), 20)
                return bytes(got)

            _, _, got_down, got_up = await asyncio.gather(
                loop.sock_sendall(ours, down),
                loop.sock_sendall(theirs, up),
                pull(theirs, len(down)),
                pull(ours, len(up)),
            )
            assert got_down == down
            assert got_up == up

    asyncio.run(scenario(), debug=True)


def test_little_is_parked_on_the_way_to_libvirt(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        async with watching(hypervisor) as (watcher, _), stream(watcher, hypervisor) as (ours, _):
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * 4608

    asyncio.run(scenario(), debug=True)


def test_closing_our_end_ends_the_stream(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        async with watching(hypervisor) as (watcher, _), stream(watcher, hypervisor) as (ours, theirs):
            ours.close()
            assert await closed(theirs) == b""

    asyncio.run(scenario(), debug=True)


def test_the_channels_end_is_our_end_of_file_and_it_can_be_opened_again(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        async with watching(hypervisor) as (watcher, _):
            for _ in range(3):
                async with stream(watcher, hypervisor) as (ours, theirs):
                    theirs.send(b"last words")
                    theirs.close()
                    assert await closed(ours) == b"last words"

    asyncio.run(scenario(), debug=True)


def test_a_channel_that_another_program_holds_is_an_error_in_one_line(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        async with (
            watching(hypervisor) as (other, _),
            stream(other, hypervisor),
            watching(hypervisor) as (watcher, _),
        ):
            with pytest.raises(HypervisorError, match="Active channel stream exists") as caught:
                await watcher.open_stream(watcher.domains[UUID_A])
            assert "\n" not in str(caught.value)

    asyncio.run(scenario(), debug=True)


def test_a_new_stream_takes_the_place_of_the_one_before(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        async with (
            watching(hypervisor) as (watcher, _),
            stream(watcher, hypervisor) as (old, _),
            stream(watcher, hypervisor) as (new, theirs),
        ):
            assert await closed(old) == b""
            theirs.send(b"to the new one")
            assert await asyncio.get_running_loop().sock_recv(new, 64) == b"to the new one"

    asyncio.run(scenario(), debug=True)


def test_a_read_only_watcher_opens_no_streams(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        watcher = Recorder().watcher(hypervisor.libvirtd.uri, "socket")
        async with running(watcher):
            await until(lambda: UUID_A in watcher.domains)
            with pytest.raises(DeniedError, match="read only"):
                await watcher.open_stream(watcher.domains[UUID_A])

    asyncio.run(scenario(), debug=True)


def test_a_stream_to_a_domain_that_is_gone_says_so(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        async with watching(hypervisor) as (watcher, _):
            from dataclasses import replace

            ghost = replace(watcher.domains[UUID_A], uuid="cccccccc-0000-4000-8000-000000000003")
            with pytest.raises(NoDomainError):
                await watcher.open_stream(ghost)

    asyncio.run(scenario(), debug=True)


def test_a_guest_that_floods_is_cut_off_and_costs_bounded_memory(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        async with watching(hypervisor) as (watcher, _), stream(watcher, hypervisor) as (ours, theirs):
            sent = 0
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                deadline = time.monotonic() + 20
                while time.monotonic() < deadline:  # and we never read
                    try:
                        sent += theirs.send(bytes(65536))
                    except BlockingIOError:
                        await asyncio.sleep(0.001)
            assert time.monotonic() < deadline, "the stream was never cut off"
            assert len(await closed(ours)) <= MAX_BACKLOG_BYTES
            assert sent > MAX_BACKLOG_BYTES

    asyncio.run(scenario(), debug=True)


def test_a_cancelled_opening_leaves_no_socket(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = threading.Event(), threading.Event()
    opened: list[socket.socket] = []
    open_channel = Connection.open_channel

    def slowly(self: Connection, uuid: str, name: str) -> socket.socket:
        begun.set()
        release.wait(20)
        opened.append(open_channel(self, uuid, name))
        return opened[0]

    monkeypatch.setattr(Connection, "open_channel", slowly)

    async def scenario() -> None:
        async with watching(hypervisor) as (watcher, _):
            opening = asyncio.create_task(watcher.open_stream(watcher.domains[UUID_A]))
            await until(begun.is_set)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            release.set()
            await until(lambda: opened and opened[0].fileno() == -1)
            with hypervisor.accept() as theirs:
                assert await closed(theirs) == b""

    asyncio.run(scenario(), debug=True)


def test_opening_a_hundred_streams_leaves_no_descriptor(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        for _ in range(5):
            async with watching(hypervisor) as (watcher, _):
                for _ in range(20):
                    async with stream(watcher, hypervisor) as (ours, theirs):
                        theirs.close()
                        assert await closed(ours) == b""

    asyncio.run(scenario(), debug=True)
    before = psutil.Process().num_fds()
    asyncio.run(scenario(), debug=True)
    # libvirt lets go of the last connection in its own thread.
    deadline = time.monotonic() + 20
    while psutil.Process().num_fds() > before:
        assert time.monotonic() < deadline, "descriptors are left"
        time.sleep(0.005)


def test_a_guest_that_has_its_stream_reopened_over_and_over_is_slowed_down(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        watcher = Recorder().watcher(hypervisor.libvirtd.uri, "stream", QUICK._replace(reopen_s=0.3))
        async with running(watcher):
            await until(lambda: UUID_A in watcher.domains)
            begun_s = loop.time()  # before the first is opened, however long that takes
            async with stream(watcher, hypervisor):
                pass
            async with stream(watcher, hypervisor):
                assert loop.time() - begun_s > 0.29

    asyncio.run(scenario(), debug=True)


def test_a_machine_reset_renews_and_changes_nothing_else(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        async with watching(hypervisor) as (_, recorder):
            hypervisor.libvirtd.connection().lookupByUUIDString(UUID_A).reset()
            await until(lambda: len(recorder.calls) > 1)
            assert recorder.calls == [("appeared", "a"), ("renewed", "a")]

    asyncio.run(scenario(), debug=True)


def test_a_channel_plugged_into_a_running_domain_is_a_change(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        async with watching(hypervisor) as (watcher, recorder):
            domain = hypervisor.libvirtd.connection().createXML(
                paused_domain("b", UUID_B, channel=False), libvirt.VIR_DOMAIN_START_PAUSED
            )
            await until(lambda: UUID_B in watcher.domains)
            assert watcher.domains[UUID_B].channel is None
            assert attach("b", watcher.uri).exit_code == 0
            await until(lambda: watcher.domains[UUID_B].channel is not None)
            channel = watcher.domains[UUID_B].channel
            assert channel is not None
            assert (channel.kind, channel.mode) == ("virtio", "bind")
            assert not channel.guest_open
            assert channel.path is not None
            assert channel.path.startswith(str(hypervisor.libvirtd.folder))
            assert detach("b", watcher.uri).exit_code == 0
            await until(lambda: watcher.domains[UUID_B].channel is None)
            domain.destroy()
            await until(lambda: UUID_B not in watcher.domains)
            assert [what for what, name in recorder.calls if name == "b"] == [
                "appeared", "changed", "changed", "vanished",
            ]  # fmt: skip

    asyncio.run(scenario(), debug=True)


def test_a_cancelled_watcher_ends_its_streams(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as later:
            async with watching(hypervisor) as (watcher, _):
                ours, theirs = await later.enter_async_context(stream(watcher, hypervisor))
            assert await closed(ours) == b""
            assert await closed(theirs) == b""

    asyncio.run(scenario(), debug=True)


def test_a_killed_libvirtd_ends_streams_keeps_domains_and_is_found_again(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        async with watching(hypervisor) as (watcher, recorder):
            async with stream(watcher, hypervisor) as (ours, theirs):
                await asyncio.to_thread(hypervisor.libvirtd.kill)
                try:
                    assert await closed(ours) == b""
                    assert await closed(theirs) == b""
                    await until(lambda: watcher.state.state == "down")
                    assert recorder.calls == [("appeared", "a")]
                finally:
                    await asyncio.to_thread(hypervisor.libvirtd.start)
            await until(lambda: watcher.state.state == "connected")
            async with stream(watcher, hypervisor) as (ours, theirs):
                ours.send(b"again")
                got = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(theirs, 64), 20)
                assert got == b"again"
            assert recorder.calls == [("appeared", "a")]

    asyncio.run(scenario(), debug=True)


def test_a_libvirtd_that_falls_silent_is_given_up_by_keepalive(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KEEPALIVE_INTERVAL_S * KEEPALIVE_COUNT <= 30
    monkeypatch.setattr("netrng_hostd.hypervisor.connection.KEEPALIVE_INTERVAL_S", 1)
    # A busy libvirtd is no silent one: it has some seconds.
    monkeypatch.setattr("netrng_hostd.hypervisor.connection.KEEPALIVE_COUNT", 4)

    async def scenario() -> None:
        async with watching(hypervisor) as (watcher, recorder):
            pid = hypervisor.libvirtd.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            try:
                await until(lambda: watcher.state.state == "down")
                assert "connection was lost: no answer to keepalives" in watcher.state.detail
                assert recorder.calls == [("appeared", "a")]
            finally:
                os.kill(pid, signal.SIGCONT)
            await until(lambda: watcher.state.state == "connected")
            assert recorder.calls == [("appeared", "a")]

    asyncio.run(scenario(), debug=True)


def test_a_saved_and_restored_domain_comes_back_as_a_new_one(hypervisor: Hypervisor) -> None:
    async def scenario() -> None:
        async with watching(hypervisor) as (watcher, recorder):
            first = watcher.domains[UUID_A].id
            image = hypervisor.libvirtd.folder / "saved"

            def save_and_restore() -> None:
                libvirtd = hypervisor.libvirtd.connection()
                libvirtd.lookupByUUIDString(UUID_A).save(str(image))
                libvirtd.restoreFlags(str(image), None, 4)  # VIR_DOMAIN_SAVE_PAUSED

            await asyncio.to_thread(save_and_restore)
            await until(lambda: UUID_A in watcher.domains and len(recorder.calls) >= 3)
            # It may appear while its memory is still being read; then its start renews it as well.
            assert recorder.calls[:3] == [("appeared", "a"), ("vanished", "a"), ("appeared", "a")]
            assert set(recorder.calls[3:]) <= {("renewed", "a"), ("changed", "a")}
            assert watcher.domains[UUID_A].id != first
            if hypervisor.qemu is not None:
                hypervisor.qemu.close()
            hypervisor.qemu = hypervisor.accept()

    asyncio.run(scenario(), debug=True)
