# SPDX-License-Identifier: Apache-2.0
"""The client of the EGD protocol, and servers that misbehave."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.edge.rig import PATIENCE_S, wait_for
from tests.streams import stream

from netrng_hostd.config import SourceConfig
from netrng_hostd.sources import SourceFailure, egd, make_source
from netrng_hostd.sources.egd import EgdSource

NOISE = stream(100_000)

Answer = Callable[[socket.socket, int, int], bool]  # to a command and its number; whether to go on


class Server(threading.Thread):
    """Answers the requests of one client after the other."""

    def __init__(self, listener: socket.socket, answer: Answer) -> None:
        super().__init__(name="egd", daemon=True)
        self._listener = listener
        self._answer = answer
        self.requests: list[tuple[int, int]] = []  # the command and its number, of each
        self.clients = 0
        self.conn: socket.socket | None = None
        self.start()

    def run(self) -> None:
        while True:
            try:
                self.conn, _ = self._listener.accept()
            except OSError:
                return
            self.clients += 1
            with self.conn, contextlib.suppress(OSError):
                while len(request := self.conn.recv(2, socket.MSG_WAITALL)) == 2:
                    self.requests.append((request[0], request[1]))
                    if not self._answer(self.conn, *request):
                        break

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            if self.conn is not None:
                self.conn.shutdown(socket.SHUT_RDWR)
        self.join()


class Noise:
    """An orderly server's answers, with NOISE."""

    def __init__(self) -> None:
        self.given = 0

    def take(self, n_bytes: int) -> bytes:
        self.given += n_bytes
        return NOISE[self.given - n_bytes : self.given]

    def __call__(self, conn: socket.socket, command: int, n_bytes: int) -> bool:
        conn.sendall((bytes([n_bytes]) if command == 1 else b"") + self.take(n_bytes))
        return True


@contextlib.contextmanager
def serving(path: Path, answer: Answer) -> Iterator[Server]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        server = Server(listener, answer)
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def opened(path: Path | str) -> Iterator[EgdSource]:
    address = path if isinstance(path, str) else ""
    source = make_source(SourceConfig(kind="egd", path="" if address else str(path), address=address))
    assert isinstance(source, EgdSource)
    source.open()
    try:
        yield source
    finally:
        source.close()
        source.close()  # harmless


def read(source: EgdSource, total: int, want: int = 300) -> bytes:
    """``total`` bytes, or some more."""
    taken, end = bytearray(), time.monotonic() + PATIENCE_S
    while len(taken) < total:  # without a pause: a read waits by itself
        assert time.monotonic() < end, f"{len(taken)} bytes of {total}"
        buffer = bytearray(want)
        count = source.read_into(memoryview(buffer))
        assert not any(buffer[count:])
        taken += buffer[:count]
    return bytes(taken)


def failure(source: EgdSource) -> SourceFailure:
    """What reading ends with; what comes before is thrown away."""
    buffer = bytearray(64)

    def failed() -> SourceFailure | None:
        try:
            source.read_into(memoryview(buffer))
        except SourceFailure as found:
            return found
        return None

    found = wait_for(failed, "a failure")
    assert isinstance(found, SourceFailure)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "egd"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may stand still for seconds; what is to run out, its own test shortens."""
    for name in ("CONNECT_S", "UNKNOWN_S", "SHORT_S", "SILENT_S"):
        monkeypatch.setattr(egd, name, PATIENCE_S)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, patient: None) -> None:
    monkeypatch.setattr(egd, "UNKNOWN_S", 0.3)


# Servers that keep to the protocol


def test_bytes_come_in_order_and_none_is_left_out(path: Path) -> None:
    with serving(path, Noise()) as server, opened(path) as source:
        taken = read(source, 2000)
        assert taken == NOISE[: len(taken)]
        assert set(server.requests) == {(1, 255)}
        assert source.kernel_name() is None


def test_no_more_is_asked_for_than_is_wanted(path: Path) -> None:
    with serving(path, Noise()) as server, opened(path) as source:
        taken = read(source, 64, want=32)
        assert taken == NOISE[: len(taken)]
        assert set(server.requests) == {(1, 32)}


def test_an_answer_may_be_read_in_smaller_pieces(path: Path) -> None:
    with serving(path, Noise()) as server, opened(path) as source:
        taken = read(source, 200)
        for want in (1, 7, 100):
            taken += read(source, 300, want)
        assert taken == NOISE[: len(taken)]
        assert all(n <= 255 for _, n in server.requests)


@contextlib.contextmanager
def port_of(listens: str) -> Iterator[socket.socket]:
    """Where nobody listens at the same port of 127.0.0.1, which is what localhost means first."""
    ipv6 = ":" in listens
    with contextlib.ExitStack() as stack:
        while True:
            listener = stack.enter_context(socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET))
            try:
                listener.bind((listens, 0))
            except OSError:
                assert ipv6
                pytest.skip("this host has no IPv6")
            if not ipv6:
                break
            kept = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # another one has it: another port
                kept.bind(("127.0.0.1", listener.getsockname()[1]))
                break
        listener.listen()
        yield listener


@pytest.mark.parametrize(
    ("host", "listens"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("localhost", "::1"), ("[::1]", "::1")],
)
def test_a_port_of_this_host(host: str, listens: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("a resolver was asked"))
    with port_of(listens) as listener:
        server = Server(listener, Noise())
        with opened(f"{host}:{listener.getsockname()[1]}") as source:
            taken = read(source, 600)
        server.stop()
    assert taken == NOISE[: len(taken)]


def test_a_server_that_has_none_is_asked_again_after_a_while(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = Noise()
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    asked = []

    def answer(conn: socket.socket, command: int, n_bytes: int) -> bool:
        asked.append(n_bytes)
        if len(asked) % 3:
            conn.sendall(b"\0")
            return True
        return noise(conn, command, 9)  # and then fewer than were asked for

    with serving(path, answer), opened(path) as source:
        assert read(source, 18) == NOISE[:18]
    assert slept.count(egd.EMPTY_S) == 4


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("closes", [True, False])
def test_a_server_that_knows_the_other_command_alone(path: Path, closes: bool) -> None:
    noise = Noise()

    def answer(conn: socket.socket, command: int, n_bytes: int) -> bool:
        return noise(conn, command, n_bytes) if command == 2 else not closes

    with serving(path, answer) as server, opened(path) as source:
        taken = read(source, 600)
        assert taken == NOISE[: len(taken)]
        assert {command for command, _ in server.requests[1:]} == {2}
        assert server.clients == 2


def test_a_connection_made_anew(path: Path) -> None:
    with serving(path, Noise()) as server, opened(path) as source:
        read(source, 1)
        source.close()
        source.open()
        read(source, 300)
        assert server.clients == 2


# Servers that do not


def test_a_byte_at_a_time(path: Path) -> None:
    noise = Noise()

    def answer(conn: socket.socket, command: int, n_bytes: int) -> bool:
        for byte in bytes([n_bytes]) + noise.take(n_bytes):
            conn.sendall(bytes([byte]))
        return True

    with serving(path, answer), opened(path) as source:
        taken = read(source, 600)
        assert taken == NOISE[: len(taken)]


@pytest.mark.parametrize("command", [1, 2])
def test_too_much(path: Path, command: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if command == 2:
        monkeypatch.setattr(egd, "UNKNOWN_S", 0.3)

    def answer(conn: socket.socket, asked: int, n_bytes: int) -> bool:
        if asked == command:
            # In one piece: a byte more that comes later belongs to the next answer, and is noticed after it.
            conn.sendall((bytes([n_bytes]) if command == 1 else b"") + NOISE[: n_bytes + 1])
        return True

    buffer = bytearray(64)
    with serving(path, answer), opened(path) as source:
        wait_for(lambda: _fails(source, buffer), "a failure")
    assert not any(buffer), "nothing of that answer may be used"


def _fails(source: EgdSource, buffer: bytearray) -> bool:
    try:
        assert source.read_into(memoryview(buffer)) == 0
    except SourceFailure as found:
        assert found.state == "error"
        assert found.detail.endswith("sends more than was asked for: it is no EGD server")
        return True
    return False


@pytest.mark.parametrize("excess", [b"\x41" + NOISE[:65], b"\0\0"], ids=["count", "bytes"])
def test_a_count_above_what_was_asked_for_or_bytes_after_none(path: Path, excess: bytes) -> None:
    def answer(conn: socket.socket, command: int, n_bytes: int) -> bool:
        conn.sendall(excess)
        return True

    with serving(path, answer), opened(path) as source:
        assert "sends more than was asked for" in failure(source).detail


def test_bytes_before_anything_was_asked_for(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with opened(path) as source:
            conn, _ = listener.accept()
            with conn:
                conn.sendall(b"\x05" + NOISE[:5])  # which would do for an answer
                assert "sends more than was asked for" in failure(source).detail


def test_an_answer_that_comes_slowly_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the time since the last byte."""
    now_s = [0.0]
    monkeypatch.setattr(egd, "time", SimpleNamespace(monotonic=lambda: now_s[0], sleep=time.sleep))
    view = memoryview(bytearray(8))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with opened(path) as source:
            conn, _ = listener.accept()
            with conn:
                assert source.read_into(view) == 0
                conn.sendall(bytes([8]))
                assert source.read_into(view) == 0
                for byte in NOISE[:8]:
                    now_s[0] += 0.9 * egd.SHORT_S
                    assert source.read_into(view) == 0
                    conn.sendall(bytes([byte]))
                    assert source.read_into(view) == 1
                    assert view[0] == byte


@pytest.mark.parametrize("part", [0, 1, 40])
def test_closed_in_mid_answer(path: Path, part: int) -> None:
    def answer(conn: socket.socket, command: int, n_bytes: int) -> bool:
        conn.sendall((bytes([n_bytes]) + NOISE)[:part])
        return False

    with serving(path, answer) as server, opened(path) as source:
        found = failure(source)
        assert (found.state, found.detail) == ("error", f"{path} closed the connection")
        assert server.clients == (1 if part else 2), "the other command is tried if there was no answer"


@pytest.mark.usefixtures("impatient")
def test_fewer_bytes_than_were_asked_for_without_a_count(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What EntropyBroker does to command 2 when it runs low, if it were ever sent that."""
    monkeypatch.setattr(egd, "SHORT_S", 0.3)

    def answer(conn: socket.socket, command: int, n_bytes: int) -> bool:
        conn.sendall(NOISE[:10] if command == 2 else b"")
        return True

    with serving(path, answer), opened(path) as source:
        assert failure(source).detail == f"{path} has answered with 54 bytes too few"


def test_one_that_has_to_be_waited_for_may_pause_between_answers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egd, "UNKNOWN_S", 0.3)
    monkeypatch.setattr(egd, "SHORT_S", 0.0)  # in the midst of an answer there is no time
    may_answer = threading.Event()

    def answer(conn: socket.socket, command: int, n_bytes: int) -> bool:
        if command == 2:
            if len(server.requests) > 2:  # those two to come to command 2, and its first answer
                may_answer.wait(PATIENCE_S)
            conn.sendall(NOISE[:n_bytes])
        return True

    with serving(path, answer) as server, opened(path) as source:
        assert len(read(source, 64)) >= 64
        view = memoryview(bytearray(64))
        assert [source.read_into(view) for _ in range(3)] == [0, 0, 0]
        may_answer.set()
        assert len(read(source, 64)) >= 64
        assert server.clients == 2


def test_one_that_has_to_be_waited_for_is_not_waited_for_without_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UNKNOWN_S", "SILENT_S"):
        monkeypatch.setattr(egd, name, 0.3)
    with serving(path, lambda *_: True), opened(path) as source:
        found = failure(source)
        assert (found.state, found.detail) == ("stalled", f"{path} has not answered for 0.3 s")


@pytest.mark.parametrize("part", [0, 1, 40])
def test_one_that_answers_no_more_is_left_and_connected_to_anew(
    path: Path, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egd, "SHORT_S", 0.3)
    answers = Noise()

    def answer(conn: socket.socket, command: int, n_bytes: int) -> bool:
        if len(server.requests) == 2:
            conn.sendall((bytes([n_bytes]) + NOISE)[:part])
            return True
        return answers(conn, command, n_bytes)

    with serving(path, answer) as server, opened(path) as source:
        found = failure(source)
        assert (found.state, found.detail) == ("stalled", f"{path} has not answered for 0.3 s")
        source.close()
        source.open()
        assert len(read(source, 100)) >= 100
        assert server.clients == 2


@pytest.mark.usefixtures("impatient")
def test_one_that_never_answers_is_waited_for_in_short_calls(path: Path) -> None:
    with serving(path, lambda *_: True) as server, opened(path) as source:
        view = memoryview(bytearray(64))
        wait_for(lambda: source.read_into(view) or len(server.requests) == 2, "both commands")
        for _ in range(3):
            assert source.read_into(view) == 0
        assert server.requests == [(1, 64), (2, 64)]


def test_a_reset(path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with opened(f"127.0.0.1:{listener.getsockname()[1]}") as source:
            conn, _ = listener.accept()
            assert source.read_into(memoryview(bytearray(8))) == 0
            conn.settimeout(PATIENCE_S)
            assert conn.recv(2, socket.MSG_PEEK)
            conn.close()  # with the request, which has come, unread: RST
            found = failure(source)
            assert found.state == "error"
            assert found.detail.endswith("Connection reset by peer")


# Nobody there


def test_no_socket(path: Path) -> None:
    with pytest.raises(SourceFailure, match=f"cannot connect to {path}: No such file") as caught:
        EgdSource(str(path)).open()
    assert caught.value.state == "absent"


def test_nobody_listens(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound, socket.socket() as port:
        bound.bind(str(path))
        port.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{port.getsockname()[1]}"
        for source, place in ((EgdSource(str(path)), path), (EgdSource("", address), address)):
            with pytest.raises(SourceFailure, match=f"to {place}: Connection refused") as caught:
                source.open()
            assert caught.value.state == "absent"


def test_what_is_no_socket(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(SourceFailure, match=f"^{path} is a regular file, not an EGD server's socket$"):
        EgdSource(str(path)).open()


def test_denied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(SourceFailure, match="Permission denied") as caught:
        EgdSource(str(path)).open()
    assert caught.value.state == "denied"


def test_a_server_that_does_not_accept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egd, "CONNECT_S", 0.3)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(str(path))  # the only one that may wait to be accepted
        with pytest.raises(SourceFailure, match=f"^{path} does not take the connection$") as caught:
            EgdSource(str(path)).open()
        assert caught.value.state == "error"


def test_a_port_that_connects_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens, chance may give the client's own end the very port that it connects to."""
    real = socket.socket.connect

    def connect(sock: socket.socket, address: tuple[str, int]) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        real(sock, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    with socket.socket() as kept:  # so that nobody else is given this port
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        with pytest.raises(SourceFailure, match="Connection refused") as caught:
            EgdSource("", f"127.0.0.1:{kept.getsockname()[1]}").open()
    assert caught.value.state == "absent"
