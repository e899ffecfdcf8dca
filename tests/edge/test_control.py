# SPDX-License-Identifier: Apache-2.0
"""The control socket: one question, one answer, and nothing that a client does costs more than a little."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import select
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.edge.rig import PATIENCE_S, wait_for

from netrng_hostd.channels import listen
from netrng_hostd.operate import control
from netrng_hostd.operate.control import MAX_CLIENTS, ControlServer, NoDaemon, ask
from netrng_hostd.operate.status import DaemonStatus, SourceStatus, from_json, to_json

STATUS = DaemonStatus("1.2.3", pid=42)
# Larger than what two socket buffers hold: it stays with the server until the client reads.
LARGE = DaemonStatus(
    "1.2.3", sources=tuple(SourceStatus("x" * 1000, "device", "healthy") for _ in range(3000))
)


def nobody() -> None:
    """Asks nothing."""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "netrng" / "hostd.sock")


def serve(
    path: str, client: Callable[[], object], status: DaemonStatus = STATUS, timeout_s: float = PATIENCE_S
) -> None:
    """Runs ``client`` in a thread while a server answers."""

    async def both() -> None:
        async with ControlServer(path, lambda: status, timeout_s=timeout_s):
            await asyncio.wait_for(asyncio.to_thread(client), 2 * PATIENCE_S)  # it waits as well

    asyncio.run(both(), debug=True)


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE_S)
    sock.connect(path)
    return sock


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):  # it left some of what we said unread
        while piece := sock.recv(65536):
            data += piece
    return bytes(data)


def say(path: str, line: bytes) -> bytes:
    with connect(path) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dropped already
            sock.sendall(line)
        return read_all(sock)


def answer_of(path: str) -> str:
    return ask(path, timeout_s=PATIENCE_S)


def until_hung_up(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, 0)
    assert poll.poll(30_000), "the server keeps the connection"


def test_status(path: str) -> None:
    def client() -> None:
        assert from_json(answer_of(path)) == STATUS

    serve(path, client)


def test_a_large_status(path: str) -> None:
    def client() -> None:
        assert from_json(answer_of(path)) == LARGE

    serve(path, client, LARGE)


def test_root_and_its_group_alone_may_ask(path: str) -> None:
    def client() -> None:
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o660

    serve(path, client)


def test_the_socket_is_never_open_to_others(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    monkeypatch.setattr(
        listen, "_give_to_group", lambda p: modes.append(stat.S_IMODE(Path(p).stat().st_mode))
    )
    before = os.umask(0)
    try:
        serve(path, nobody)
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert modes == [0o660]


def test_given_to_the_group(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, int, int]] = []
    group = grp.struct_group(("netrng", "x", 4711, []))
    monkeypatch.setattr(grp, "getgrnam", lambda name: {"netrng": group}[name])
    monkeypatch.setattr(os, "chown", lambda *args: given.append(args))
    serve(path, nobody)
    assert given == [(path, -1, 4711)]


def test_an_unprivileged_daemon_keeps_its_own_group(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(grp, "getgrnam", lambda _: grp.struct_group(("netrng", "x", 4711, [])))
    monkeypatch.setattr(os, "chown", refuse)
    serve(path, nobody)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"status\n",
        b"\xff\n",
        b"[]\n",
        b'{"command": "stop"}\n',
        b'{"command": "status", "as": "root"}\n',
        b'{"command": ["status"]}\n',
        b'{"command": "status"' + b" " * 2000 + b"}\n",
        b"[" * 1000 + b"\n",
        b"x" * 5000,
    ],
)
def test_refuses_all_else(path: str, line: bytes) -> None:
    def client() -> None:
        answer = say(path, line)
        assert answer.count(b"\n") == 1
        assert json.loads(answer) == {"error": 'not understood; allowed: {"command": "status"}'}
        assert from_json(say(path, b'{"command": "status"}\n')) == STATUS

    serve(path, client)


def test_one_answer_per_connection(path: str) -> None:
    def client() -> None:
        answer = say(path, b'{"command": "status"}\n' * 2)
        assert answer.count(b"\n") == 1

    serve(path, client)


def test_one_that_asks_nothing_is_dropped(path: str) -> None:
    def client() -> None:
        assert say(path, b'{"command":') == b""

    serve(path, client, timeout_s=0.5)


def test_one_that_does_not_listen_holds_up_nobody(path: str) -> None:
    def client() -> None:
        with connect(path) as sock:
            sock.sendall(b'{"command": "status"}\n')
            assert sock.recv(1, socket.MSG_PEEK), "it is being answered"
            assert from_json(answer_of(path)) == LARGE
            poll = select.poll()
            poll.register(sock, 0)
            assert not poll.poll(0), "it is there still"

    serve(path, client, LARGE)


def test_one_that_does_not_listen_is_dropped(path: str) -> None:
    def dropped_in_mid_answer() -> bool:
        with connect(path) as sock:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(b'{"command": "status"}\n')
            until_hung_up(sock)
            answer = read_all(sock)
            assert len(answer) < len(to_json(LARGE))
            return len(answer) > 0  # where the machine stood still, it may be dropped before its turn

    serve(path, lambda: wait_for(dropped_in_mid_answer, "a part of the answer"), LARGE, timeout_s=0.5)


def test_a_crowd_is_bounded(path: str) -> None:
    def client() -> None:
        with contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(connect(path)) for _ in range(MAX_CLIENTS)]
            with connect(path) as one_more:
                assert read_all(one_more) == b""
            for sock in crowd:
                sock.sendall(b'{"command": "status"}\n')
                assert from_json(read_all(sock)) == STATUS
        assert from_json(answer_of(path)) == STATUS

    serve(path, client)


def test_what_a_killed_daemon_left_behind_is_replaced(path: str) -> None:
    Path(path).parent.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)

    def client() -> None:
        assert from_json(answer_of(path)) == STATUS

    serve(path, client)
    assert not Path(path).exists()


def test_a_file_in_its_place_is_kept(path: str) -> None:
    Path(path).parent.mkdir()
    Path(path).write_text("precious")
    with pytest.raises(OSError, match="is no socket"):
        serve(path, nobody)
    assert Path(path).read_text() == "precious"


def test_closing_does_not_wait_for_clients(path: str) -> None:
    left: list[socket.socket] = []
    serve(path, lambda: left.append(connect(path)))
    with left[0] as sock:
        assert read_all(sock) == b""


class Told:
    """A daemon whose status takes ``cost_s`` of its own clock's time to make; ``pid`` counts them."""

    def __init__(self, cost_s: float) -> None:
        self.cost_s = cost_s
        self.made = 0
        self.now_s = 1000.0

    def snapshot(self) -> DaemonStatus:
        self.made += 1
        self.now_s += self.cost_s
        return DaemonStatus("1.2.3", pid=self.made)

    def serve(self, path: str, client: Callable[[], object]) -> None:
        async def both() -> None:
            async with ControlServer(path, self.snapshot, timeout_s=PATIENCE_S, clock=lambda: self.now_s):
                await asyncio.wait_for(asyncio.to_thread(client), 2 * PATIENCE_S)  # it waits as well

        asyncio.run(both(), debug=True)


@pytest.mark.parametrize(
    ("cost_s", "good_s"), [(0.0, 0.0), (1 / 4096, 10 / 4096), (1 / 32, 10 / 32), (1 / 8, 0.5), (2, 0.5)]
)
def test_an_answer_is_given_again_for_a_while(path: str, cost_s: float, good_s: float) -> None:
    daemon = Told(cost_s)

    def client() -> None:
        assert from_json(answer_of(path)).pid == 1
        daemon.now_s += good_s * 15 / 16
        again = [from_json(answer_of(path)).pid for _ in range(3)]
        assert again == ([1, 1, 1] if good_s else [2, 3, 4])
        made = daemon.made
        daemon.now_s += good_s / 16
        assert from_json(answer_of(path)).pid == made + 1

    daemon.serve(path, client)


def test_who_asks_in_a_loop_costs_a_tenth_of_the_time(path: str) -> None:
    daemon = Told(1 / 64)

    def client() -> None:
        for _ in range(500):
            answer_of(path)
            daemon.now_s += 1 / 256

    daemon.serve(path, client)
    elapsed_s = daemon.now_s - 1000
    assert daemon.made * daemon.cost_s <= 0.1 * elapsed_s + daemon.cost_s


def test_answers_leave_at_a_bounded_rate(path: str) -> None:
    now_s = 50.0
    server = ControlServer(path, lambda: STATUS, clock=lambda: now_s)
    assert [server._turn(control.RATE // 4) for _ in range(4)] == [0.0, 0.25, 0.5, 0.75]
    now_s = 50.75
    assert server._turn(control.RATE // 4) == 0.25
    now_s = 60.0
    assert server._turn(1) == 0.0


def test_an_answer_waits_for_its_turn(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ControlServer, "_turn", lambda _self, _n_bytes: 3600.0)
    serve(path, lambda: say(path, b'{"command": "status"}\n') == b"" or pytest.fail("at once"), timeout_s=0.5)


# The client's side


def test_no_socket(path: str) -> None:
    with pytest.raises(NoDaemon, match=r"^no daemon answers: no socket at /.*systemctl start netrng-hostd$"):
        ask(path)


def test_nobody_listens(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    with pytest.raises(NoDaemon, match=r"^no daemon answers: nobody listens on /"):
        ask(path)


def test_permission_denied(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(NoDaemon, match=r"permission denied: .*; run as root, or join the group netrng$"):
        ask(path)


def test_a_path_that_is_too_long() -> None:
    with pytest.raises(NoDaemon, match=r"no daemon answers: /x.*too long"):
        ask("/" + "x" * 200)


def test_a_silent_daemon(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        with pytest.raises(NoDaemon, match="took the question and stays silent"):
            ask(path, timeout_s=0.05)


def test_a_daemon_that_dies_in_mid_answer(tmp_path: Path) -> None:
    path = str(tmp_path / "s")

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b'{"version": ')
        writer.close()

    async def both() -> None:
        async with await asyncio.start_unix_server(die, path):
            with pytest.raises(NoDaemon, match="closed the connection in mid-answer"):
                await asyncio.to_thread(answer_of, path)

    asyncio.run(both(), debug=True)
