# SPDX-License-Identifier: Apache-2.0
"""A channel's life at a real socket, with a protocol end in the place of the VM."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest
from tests.edge.rig import Guest, until

from netrng_guest import wire
from netrng_hostd.channels import channel as channel_module
from netrng_hostd.channels.budget import INBOUND_DEPTH, PARKED
from netrng_hostd.channels.channel import HANDSHAKE_NS, Channel
from netrng_hostd.channels.connect import ChannelUnavailable, connect_unix, listener_of
from netrng_hostd.channels.session import HostSession
from netrng_hostd.core.spelling import printable


class Books:
    """A recipient that only counts."""

    def __init__(self) -> None:
        self.acknowledged = self.missing = self.changes = 0

    def wants_changed(self, channel: Channel) -> None:
        self.changes += 1

    def acked(self, channel: Channel, n_bytes: int) -> None:
        self.acknowledged += n_bytes

    def lost(self, channel: Channel, n_bytes: int) -> None:
        self.missing += n_bytes


def make_channel(path: Path, books: Books) -> Channel:
    async def connect() -> socket.socket:
        return connect_unix(str(path))

    return Channel("vm", str(path), connect, HostSession(lambda: os.urandom(8)), books, PARKED)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_samples_arrive_are_acknowledged_and_overwritten(tmp_path: Path) -> None:
    async def scenario() -> None:
        books = Books()
        guest = Guest(tmp_path / "vm.sock", ask=1_000)
        channel = make_channel(tmp_path / "vm.sock", books)
        task = asyncio.create_task(channel.run())
        try:
            await until(lambda: channel.wanted == (64, 936))
            seed, body = bytearray(b"s" * 64), bytearray(b"b" * 500)
            channel.send_sample(seed)
            channel.send_sample(body)
            await until(lambda: books.acknowledged == 564)
            assert guest.taken == b"s" * 64 + b"b" * 500
            assert seed + body == bytes(564)
            assert channel.state == "open"
            assert books.missing == 0
        finally:
            await stop(task)
            guest.close()

    asyncio.run(scenario(), debug=True)


def test_what_is_in_flight_when_the_vm_goes_is_lost_and_the_channel_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        books = Books()
        guest = Guest(tmp_path / "vm.sock")
        channel = make_channel(tmp_path / "vm.sock", books)
        task = asyncio.create_task(channel.run())
        try:
            await until(lambda: channel.wanted[0] == 64)
            guest.answer = False
            channel.send_sample(bytearray(64))
            guest.hang_up()
            await until(lambda: books.missing == 64)
            assert channel.wanted == (0, 0)
            guest.answer = True
            await until(lambda: channel.state == "open" and channel.wanted[0] == 64)
            assert len(set(guest.sessions)) == 2
        finally:
            await stop(task)
            guest.close()

    asyncio.run(scenario(), debug=True)


def test_a_resumed_domain_gets_a_new_session(tmp_path: Path) -> None:
    async def scenario() -> None:
        books = Books()
        guest = Guest(tmp_path / "vm.sock")
        channel = make_channel(tmp_path / "vm.sock", books)
        task = asyncio.create_task(channel.run())
        try:
            channel.renew()  # not connected yet: nothing to renew
            await until(lambda: channel.wanted[0] == 64)
            guest.answer = False
            channel.send_sample(bytearray(64))
            guest.answer = True
            channel.renew()
            await until(lambda: len(guest.sessions) == 2 and channel.state == "open")
            assert books.missing + books.acknowledged == 64
        finally:
            await stop(task)
            guest.close()

    asyncio.run(scenario(), debug=True)


def test_a_held_socket_is_explained_when_the_handshake_is_overdue(tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "vm.sock"))
            listener.listen(1)
            with socket.socket(socket.AF_UNIX) as holder:
                holder.connect(str(tmp_path / "vm.sock"))
                channel = make_channel(tmp_path / "vm.sock", Books())
                task = asyncio.create_task(channel.run())
                try:
                    await until(lambda: channel.state == "waiting")
                    assert not channel.detail
                    channel.tick(time.monotonic_ns() + HANDSHAKE_NS + 1)
                    assert f"ss -xp | grep {tmp_path}/vm.sock" in channel.detail
                finally:
                    await stop(task)

    asyncio.run(scenario(), debug=True)


def test_an_agent_that_starts_anew_has_as_long_for_its_handshake_as_the_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        guest = Guest(tmp_path / "vm.sock")
        channel = make_channel(tmp_path / "vm.sock", Books())
        task = asyncio.create_task(channel.run())
        try:
            await until(lambda: channel.state == "open")
            guest.answer = False
            guest.send(wire.encode(wire.Bye(guest.session)))
            await until(lambda: channel.state == "waiting")
            channel.tick(channel.since_ns + HANDSHAKE_NS)
            assert channel.detail == ""
            channel.tick(channel.since_ns + HANDSHAKE_NS + 1)
            assert "no agent has answered" in channel.detail
        finally:
            await stop(task)
            guest.close()

    asyncio.run(scenario(), debug=True)


def test_a_socket_that_appears_is_found_without_waiting_for_the_backoff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "FIRST_RETRY_S", 3_600.0)

    async def scenario() -> None:
        channel = make_channel(tmp_path / "vm.sock", Books())
        task = asyncio.create_task(channel.run())
        await until(lambda: channel.state == "unreachable")
        assert "no socket at" in channel.detail
        guest = Guest(tmp_path / "vm.sock")
        try:
            channel.retry_now()
            await until(lambda: channel.state == "open")
        finally:
            await stop(task)
            guest.close()

    asyncio.run(scenario(), debug=True)


def test_a_flood_pauses_the_reading_of_that_channel(tmp_path: Path) -> None:
    async def scenario() -> None:
        guest = Guest(tmp_path / "vm.sock")
        channel = make_channel(tmp_path / "vm.sock", Books())
        task = asyncio.create_task(channel.run())
        try:
            await until(lambda: channel.state == "open")
            flood = asyncio.create_task(asyncio.to_thread(guest.send, bytes(PARKED + 2_000_000)))
            link = channel._talk.link if channel._talk else None
            assert link is not None
            await until(lambda: not link.reading)
            await stop(task)  # a paused channel lets go at once
            await flood
            assert not link.reading
        finally:
            await stop(task)
            guest.close()

    asyncio.run(scenario(), debug=True)


def test_an_answer_behind_all_that_xens_qemu_keeps_is_read_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stale = wire.encode(wire.Grant(b"bygone!!", 99, 50, 50)) * 10_000
    stale += random.Random(1).randbytes(PARKED - len(stale))

    async def scenario() -> None:
        guest = Guest(tmp_path / "vm.sock", answer=False)
        channel = make_channel(tmp_path / "vm.sock", Books())
        task = asyncio.create_task(channel.run())
        try:
            await until(lambda: guest.frames)
            probe = guest.frames[0]
            assert isinstance(probe, wire.Probe)
            opening = wire.encode(wire.Open(probe.session, guest.nonce, 1, 1))
            await asyncio.to_thread(guest.send, stale + opening)
            await until(lambda: channel.state == "open")
        finally:
            await stop(task)
            guest.close()

    asyncio.run(scenario(), debug=True)
    assert "the guest sends more than it may" not in caplog.text


def test_more_than_the_bucket_is_read_only_where_it_was_said() -> None:
    async def connect() -> socket.socket:
        raise ChannelUnavailable("not needed")

    channel = Channel("vm", "somewhere", connect, HostSession(lambda: os.urandom(8)), Books())
    assert channel._budget._level == INBOUND_DEPTH


def test_who_connects_anew_may_not_send_as_much_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        guest = Guest(tmp_path / "vm.sock")
        channel = make_channel(tmp_path / "vm.sock", Books())
        task = asyncio.create_task(channel.run())
        try:
            await until(lambda: channel.state == "open")
            await asyncio.to_thread(guest.send, bytes(PARKED))
            guest.ask = 5_000
            await asyncio.to_thread(guest.grant)
            await until(lambda: sum(channel.wanted) == 5_000)  # all of it has been read
            guest.hang_up()
            await until(lambda: len(guest.sessions) == 2 and channel.state == "open")
            link = channel._talk.link if channel._talk else None
            assert link is not None
            flood = asyncio.create_task(asyncio.to_thread(guest.send, bytes(PARKED - 100_000)))
            await until(lambda: not link.reading)
            await stop(task)
            await flood
        finally:
            await stop(task)
            guest.close()

    asyncio.run(scenario(), debug=True)


def test_why_a_socket_does_not_take_the_connection(tmp_path: Path) -> None:
    with pytest.raises(ChannelUnavailable, match="no socket at"):
        connect_unix(str(tmp_path / "none"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "deaf"))
        with pytest.raises(ChannelUnavailable, match="nobody listens on"):
            connect_unix(str(tmp_path / "deaf"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / "deaf"))
            with pytest.raises(ChannelUnavailable, match="another program holds"):
                connect_unix(str(tmp_path / "deaf"))
    with pytest.raises(ChannelUnavailable, match="cannot connect to"):
        connect_unix("/" + "x" * 200)


@pytest.mark.parametrize("sample", [16_384, 65_536])
def test_the_kernel_takes_a_whole_window_at_once(sample: int, tmp_path: Path) -> None:
    """Or the channel would idle from one sample's end until we wake to send the next."""
    frame = wire.encode_sample(b"sessions", 0, bytearray(sample))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "vm.sock"))
        listener.listen(1)
        with connect_unix(str(tmp_path / "vm.sock")) as channel:
            for _ in range(wire.MAX_WINDOW // sample):
                assert channel.send(frame) == len(frame)


def test_an_alarm_destroys_what_the_kernel_has_not_taken_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netrng_hostd.channels.connect.SEND_BUFFER", 4096)

    async def scenario() -> None:
        books = Books()
        guest = Guest(tmp_path / "vm.sock", ask=65_536)
        channel = make_channel(tmp_path / "vm.sock", books)
        task = asyncio.create_task(channel.run())
        try:
            await until(lambda: channel.wanted[0] == 64)
            channel.destroy_unsent()  # nothing waits: the session goes on
            assert channel.state == "open"
            guest.stop_reading()
            link = channel._talk.link if channel._talk else None
            assert link is not None
            while link.idle:
                channel.send_sample(bytearray(b"s" * min(4_096, sum(channel.wanted))))
            waiting = link._pending[0]
            assert any(waiting)
            sent, acked = channel.sent, channel.sent - channel.in_flight
            channel.destroy_unsent()
            assert not any(waiting)
            assert channel.state == "unreachable"
            assert books.missing == sent - acked
            channel.destroy_unsent()
        finally:
            await stop(task)
            guest.close()

    asyncio.run(scenario(), debug=True)


def test_a_mistake_of_ours_is_told_and_the_domain_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        attempts = 0

        async def connect() -> socket.socket:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                raise RuntimeError("secret bytes")
            return connect_unix(str(tmp_path / "vm.sock"))

        guest = Guest(tmp_path / "vm.sock")
        channel = Channel("vm", "somewhere", connect, HostSession(lambda: os.urandom(8)), Books())
        task = asyncio.create_task(channel.run())
        try:
            await until(lambda: channel.state == "unreachable")
            assert "internal error: RuntimeError at" in channel.detail
            await until(lambda: channel.state == "open")
        finally:
            await stop(task)
            guest.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario(), debug=True)
    assert "secret" not in caplog.text


def test_no_descriptor_left_is_a_reason_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("netrng_hostd.channels.connect.socket.socket", exhausted)
    with pytest.raises(ChannelUnavailable, match="raise LimitNOFILE"):
        connect_unix("/tmp/x")


def test_who_listens_is_named_when_it_is_no_qemu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        guest = Guest(tmp_path / "vm.sock")
        channel = make_channel(tmp_path / "vm.sock", Books())
        task = asyncio.create_task(channel.run())
        try:
            await until(lambda: channel.state == "open")
        finally:
            await stop(task)
            guest.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario(), debug=True)
    assert f"(pid {os.getpid()})" in caplog.text
    near, far = socket.socketpair()
    with near, far:
        assert listener_of(near) == "", "a stream's socket pair"
    with socket.socket(socket.AF_INET) as unrelated:
        assert listener_of(unrelated) == ""


LISTENER = """
import socket, sys
with open("/proc/self/comm", "w") as name:
    name.write(sys.argv[1])
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(sys.argv[2])
    listening.listen()
    print(flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("qemu-system-x86", False),
        ("qemu-dm-7", False),
        ("xen-qemu-system", False),
        ("kvm", False),
        ("libvirtd", False),
        ("virtqemud", False),
        ("nc", True),
        ("n\x1b[31m", True),
    ],
)
def test_libvirt_listens_for_a_domain_that_starts(
    name: str, named: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(listener: subprocess.Popen[bytes]) -> None:
        assert listener.stdout is not None
        await asyncio.to_thread(listener.stdout.readline)
        channel = make_channel(tmp_path / "vm.sock", Books())
        task = asyncio.create_task(channel.run())
        try:
            await until(lambda: channel.state == "waiting")
        finally:
            await stop(task)

    words = [sys.executable, "-c", LISTENER, name, str(tmp_path / "vm.sock")]
    with caplog.at_level(logging.INFO), subprocess.Popen(words, stdin=PIPE, stdout=PIPE) as listener:
        asyncio.run(scenario(listener), debug=True)
        assert ("it is no QEMU" in caplog.text) == named
        assert (f"{printable(name)} (pid {listener.pid})" in caplog.text) == named
        listener.communicate()


def test_a_control_frame_that_waits_is_told_as_an_end_of_asking(tmp_path: Path) -> None:
    """Else the scheduler would count on a channel that cannot take a sample."""

    async def scenario() -> None:
        books = Books()
        guest = Guest(tmp_path / "vm.sock")
        channel = make_channel(tmp_path / "vm.sock", books)
        task = asyncio.create_task(channel.run())
        try:
            await until(lambda: channel.wanted[0] == 64)
            guest.stop_reading()
            link = channel._talk.link if channel._talk else None
            assert link is not None
            while link.idle:
                link.send(bytearray(100))
            changes = books.changes
            channel.tick(time.monotonic_ns() + 60_000_000_000)  # a keep-alive is due, and is no event
            assert books.changes > changes
            assert channel.wanted == (0, 0)
        finally:
            await stop(task)
            guest.close()

    asyncio.run(scenario(), debug=True)
