# SPDX-License-Identifier: Apache-2.0
"""A real `netrng-hostd` process, and protocol ends at its static sockets in the place of VMs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from netrng_guest import wire

PATIENCE_S = 60.0  # where nothing is to run out; a machine may stand still for seconds
LATE_S = 0.1  # by so much a turn of a FIFO's writer may be late, and is made up for
PAGE = 4096  # bytes; the smallest FIFO
F_SETPIPE_SZ = 1031  # fcntl(2); Python names it from 3.10 on
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "error"}
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)  # some containers set it, and then no flush at the end can fail


def wait_for(condition: Callable[[], Any], what: str, deadline_s: float = PATIENCE_S) -> Any:
    """The first true value of ``condition``; AssertionError after the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not seen within {deadline_s} s: {what}"
        time.sleep(0.005)


async def until(condition: Callable[[], object], deadline_s: float = PATIENCE_S) -> None:
    """As `wait_for`, while the loop goes on."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    while not condition():
        assert loop.time() < end, "condition not met before the deadline"
        await asyncio.sleep(0.002)


@contextlib.contextmanager
def unread_pipe() -> Iterator[IO[bytes]]:
    """The end to write to of a pipe that nobody reads."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as unread:
        yield unread


class ServiceManager:
    """Where systemd would be told how a service fares: sd_notify(3)."""

    def __init__(self, folder: Path) -> None:
        self.environment = {"NOTIFY_SOCKET": str(folder / "notify")}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.environment["NOTIFY_SOCKET"])
        self._socket.settimeout(PATIENCE_S)

    def wait_for(self, start: str) -> None:
        """Until a message that begins so has come; others before it are passed over."""
        while not self._socket.recv(4096).decode().startswith(start):
            pass

    def __enter__(self) -> ServiceManager:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class Guest(threading.Thread):
    """Listens where QEMU would, and speaks the guest's half: grants ``ask`` bytes beyond what it took."""

    def __init__(self, path: Path, ask: int = 4096, answer: bool = True) -> None:
        super().__init__(name=f"guest {path.name}", daemon=True)
        self.ask = ask
        self.answer = answer
        self.taken = bytearray()  # all data, of all sessions, in the order of arrival
        self.sessions: list[bytes] = []
        self.frames: list[wire.Frame] = []
        self.offsets: list[tuple[bytes, int, int]] = []
        self.raw = 0  # bytes received in all
        self.connections = 0
        self._listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._wake, self._woken = socket.socketpair()
        self._deaf = threading.Event()
        self.conn: socket.socket | None = None
        self._session = b""
        self._end = 0
        self._decoder = wire.Decoder(from_host=True, max_payload=wire.MAX_DATA + 8)
        self._opened = 0
        self.start()

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        if self._woken.recv(1) == b"x":
                            return
                        if self.conn is not None:
                            selector.unregister(self.conn)
                        self._deaf.set()
                        break  # nor is anything read that came in this round
                    if key.fileobj is self._listener:
                        conn, _ = self._listener.accept()
                        self._let_go(selector)  # its end may not have been seen yet
                        self.connections += 1
                        self._decoder = wire.Decoder(from_host=True, max_payload=wire.MAX_DATA + 8)
                        self.conn = conn
                        selector.register(conn, selectors.EVENT_READ)
                        continue
                    current = self.conn
                    if current is None or key.fileobj is not current:
                        continue  # let go of in this round
                    try:
                        data = current.recv(65536)
                    except ConnectionError:
                        data = b""
                    if data:
                        self._received(data)
                    else:
                        self._let_go(selector)

    def _let_go(self, selector: selectors.BaseSelector) -> None:
        if self.conn is not None:
            with contextlib.suppress(KeyError):  # it had stopped reading
                selector.unregister(self.conn)
            self.conn.close()
            self.conn = None

    def _received(self, data: bytes) -> None:
        self.raw += len(data)
        for frame in self._decoder.feed(data):
            if isinstance(frame, wire.Sample):
                if frame.session == self._session and self.answer:
                    self.taken += frame.data
                    self.offsets.append((frame.session, frame.offset, len(frame.data)))
                    self._end = frame.offset + len(frame.data)
                    self.grant()
                continue
            self.frames.append(frame)
            if isinstance(frame, wire.Probe) and self.answer:
                self._opened += 1
                self._session, self._end = frame.session, 0
                self.send(wire.encode(wire.Open(frame.session, self.nonce, 1, 1)))
            elif isinstance(frame, wire.Accept):
                self.sessions.append(frame.session)
                self.grant()

    def grant(self) -> None:
        self.send(wire.encode(wire.Grant(self._session, self._end + self.ask, self._end, 0)))

    def send(self, data: bytes) -> None:
        conn = self.conn  # which the thread may let go of in this moment
        with contextlib.suppress(OSError):
            if conn is not None:
                conn.sendall(data)

    @property
    def session(self) -> bytes:
        return self._session

    @property
    def nonce(self) -> bytes:
        return self._opened.to_bytes(8, "big")

    def stop_reading(self) -> None:
        """From its return on, for ever; what was granted goes on to be asked for."""
        self._wake.send(b"p")
        assert self._deaf.wait(PATIENCE_S)

    def hang_up(self) -> None:
        """As when the VM is destroyed."""
        conn = self.conn
        with contextlib.suppress(OSError):  # its end was seen in this moment
            if conn is not None:
                conn.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._wake.send(b"x")
        self.join()
        for sock in (self._listener, self._wake, self._woken, self.conn):
            if sock is not None:
                sock.close()


class Hostd:
    """The daemon as a process of its own, with its log and its status."""

    python: tuple[str, ...] = (sys.executable, "-X", "dev")

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self.config = folder / "hostd.toml"
        self.control = folder / "hostd.sock"
        self.log_path = folder / "hostd.log"
        self.write(config)
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, config: str) -> None:
        self.config.write_text(f'control = "{self.control}"\n{config}')

    def start(self, ready: bool = True, **environment: str) -> Hostd:
        before = self.log.count("daemon: ready")
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.python, "-m", "netrng_hostd", "run", "--config", str(self.config)],
                stderr=log,
                env={**ENVIRONMENT, **environment},
            )
        if ready:
            wait_for(lambda: self.log.count("daemon: ready") > before, f"ready, in {self.log!r}")
        return self

    @property
    def log(self) -> str:
        """All lines that are whole."""
        written = self.log_path.read_bytes() if self.log_path.exists() else b""
        return written[: written.rfind(b"\n") + 1].decode()

    def status(self) -> dict[str, Any]:
        """Never older than the question, where the daemon would give an answer of half a second ago again."""
        asked, end = time.time(), time.monotonic() + PATIENCE_S
        while True:
            answer = self._ask()
            status: dict[str, Any] = json.loads(answer) if answer.endswith(b"\n") else {}
            if status and status["time"] >= asked:
                return status
            assert time.monotonic() < end, f"no status within {PATIENCE_S} s, but: {answer[:200]!r}"
            time.sleep(0.02)
            asked = min(asked, time.time())  # the clock may have been set back

    def _ask(self) -> bytes:
        """The daemon's answer; cut short, or b"", where it had no time for us."""
        answer = b""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(str(self.control))
            with contextlib.suppress(ConnectionResetError, BrokenPipeError, socket.timeout):
                sock.sendall(b'{"command": "status"}\n')
                while piece := sock.recv(65536):
                    answer += piece
        return answer

    def domain(self, name: str) -> dict[str, Any]:
        """One domain's status; all empty while the daemon does not know it."""
        unknown: dict[str, Any] = dict.fromkeys(("state", "detail"), "")
        unknown.update(bytes_acked=0, bytes_lost=0, agent=None)
        return next((d for d in self.status()["domains"] if d["name"] == name), unknown)

    def reload(self) -> None:
        """Reads its file again."""
        self.send_signal(signal.SIGHUP)

    def send_signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """As a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def __enter__(self) -> Hostd:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`netrng-hostd ARGUMENTS`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "netrng_hostd", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**ENVIRONMENT, **environment},
    )


@contextlib.contextmanager
def fed_fifo(path: Path, data: bytes, rate: int | None = None, turn_s: float = 0.02) -> Iterator[None]:
    """A FIFO that a thread fills with ``data``; at ``rate`` bytes per second, some of it each ``turn_s``."""
    os.mkfifo(path)
    stop = threading.Event()
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # its own reader, so that no writer ever sees EPIPE
    if rate is not None:
        fcntl.fcntl(fd, F_SETPIPE_SZ, PAGE)  # what waits in it would come at once, not at the rate

    def write() -> None:
        view, due, pause = memoryview(data), PAGE, 0.0
        begun, written = time.monotonic(), 0
        while view and not stop.wait(pause):
            if rate is not None:
                # A late turn is made up for: a busy machine does not slow it down. But not a standstill:
                # all that would come at once, and a capacity would be measured far too high.
                now = time.monotonic()
                begun = max(begun, now - turn_s - LATE_S - written / rate)
                due = int((now - begun) * rate) - written
            pause = turn_s if due < PAGE else 0.0
            try:
                count = os.write(fd, view[: min(max(due, 0), PAGE)])
            except BlockingIOError:
                begun, written = time.monotonic(), 0  # nobody reads: that time is not made up for
                pause = 0.005
                continue
            view, written = view[count:], written + count

    writer = threading.Thread(target=write, name="fifo", daemon=True)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()
        os.close(fd)
