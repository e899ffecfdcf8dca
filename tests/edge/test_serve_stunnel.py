# SPDX-License-Identifier: Apache-2.0
"""Other hosts at the sockets of [[serve]], through stunnel: each certificate leads to its own alone.

The daemons at both ends are real, and so is stunnel, with the files of conf/stunnel.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.edge.rig import PATIENCE_S, Guest, Hostd, fed_fifo, wait_for
from tests.edge.stunnels import (
    AS_WHO_WE_ARE,
    CLIENT,
    CONF,
    LOOPBACK,
    SERVER,
    assert_told,
    certificates,
    configured,
    free_ports,
    stunnel,
)
from tests.streams import assert_disjoint, stream

RACKS = ("rack-1", "rack-2")
HOSTS = ("rng-1", "rng-2")
GET_WAITING = 2  # EGD's command that is answered with so many bytes, and nothing else
WRONG_NAME = "Subject checks failed"
LET_IN = "connected remote server"  # says stunnel when it goes on to the daemon's socket
RATE = 100_000  # bytes per second of each RNG, so that A and B last
A, B = stream(4_000_000, b"a"), stream(4_000_000, b"b")


class Serving:
    """A daemon that serves both racks from ``data``."""

    def __init__(self, hostd: Hostd, sockets: Path, data: bytes) -> None:
        self.hostd = hostd
        self.sockets = sockets
        self.data = data
        self.taken: list[bytes] = []  # by whomever, in this order
        self._counted = dict.fromkeys(RACKS, 0)

    def wait_until_listening(self) -> None:
        told = [f"serve:{name}: listening on {self.sockets}/{name}.egd" for name in RACKS]
        wait_for(lambda: all(line in self.hostd.log for line in told), f"{told}, in {self.hostd.log_path}")

    def rows(self, key: str) -> dict[str, int]:
        """What each rack's row in the status says of this."""
        rows = {row["name"]: row for row in self.hostd.status()["domains"]}
        return {name: rows[f"serve:{name}"][key] for name in RACKS}

    def newly_sent(self) -> dict[str, int]:
        """Bytes that each rack's row counts since this was asked last, or since the start."""
        before, self._counted = self._counted, self.rows("bytes_sent")
        return {name: self._counted[name] - before[name] for name in RACKS}

    def assert_taken(self, *pieces: bytes) -> None:
        """They come from the RNG, and nobody was given any of it before."""
        self.taken += pieces
        length = sum(map(len, self.taken))
        assert assert_disjoint(self.data, self.taken) > 0.9 * length


@contextlib.contextmanager
def serving(folder: Path, sockets: Path, data: bytes) -> Iterator[Serving]:
    """``folder`` gets its RNG, a FIFO, its file and its log."""
    config = f'[libvirt]\nuris = []\n[[source]]\nname = "rng"\nkind = "fifo"\npath = "{folder}/rng"\n'
    for name in RACKS:
        config += f'[[serve]]\nname = "{name}"\npath = "{sockets}/{name}.egd"\n'
    with fed_fifo(folder / "rng", data, RATE), Hostd(folder, config) as hostd:
        hostd.start(ready=False)
        yield Serving(hostd, sockets, data)
        assert hostd.process is not None
        assert hostd.process.poll() is not None or hostd.stop() == 0
        assert "Traceback" not in hostd.log


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everybody's certificates."""
    folder = tmp_path_factory.mktemp("authority")
    certificates(folder)
    return folder


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One for all tests that do not end it."""
    with tempfile.TemporaryDirectory() as name:
        sockets = Path(name)
        sockets.chmod(0o755)  # as /run/netrng
        with serving(tmp_path_factory.mktemp("rng-1"), sockets, A) as daemon:
            daemon.wait_until_listening()
            yield daemon


class Rng(NamedTuple):
    """A host with an RNG: the daemon, and stunnel before it."""

    folder: Path  # with the certificates
    ports: dict[str, int]
    daemon: Serving
    log: Path  # stunnel's


@contextlib.contextmanager
def rng_host(
    folder: Path,
    daemon: Serving,
    settings: dict[str, str],
    ending: signal.Signals = signal.SIGTERM,
) -> Iterator[Rng]:
    """``folder`` has the certificates, and gets stunnel's configuration and log."""
    ports = dict(zip(RACKS, free_ports(2)))
    for name in RACKS:
        settings[f"{name}.accept"] = f"{LOOPBACK}:{ports[name]}"
        settings[f"{name}.connect"] = str(daemon.sockets / f"{name}.egd")
    with stunnel(configured(SERVER, folder, settings), ending=ending) as log:
        yield Rng(folder, ports, daemon, log)


@pytest.fixture
def rng(tmp_path: Path, authority: Path, daemon: Serving) -> Iterator[Rng]:
    folder = Path(shutil.copytree(authority, tmp_path / "rng-1"))
    with rng_host(folder, daemon, dict(AS_WHO_WE_ARE)) as rng:
        daemon.newly_sent()
        yield rng


def identity(folder: Path, name: str) -> dict[str, str]:
    """What a client says in stunnel's file to be this one."""
    return {"cert": f"{folder}/{name}.pem", "key": f"{folder}/{name}.key"}


@contextlib.contextmanager
def client(rng: Rng, port_of: str, who: dict[str, str]) -> Iterator[Path]:
    """The socket that the client's stunnel makes of the port of ``port_of``."""
    path = rng.folder / f"{port_of}.sock"
    settings = {**who, "rng-1.accept": str(path), "rng-1.connect": f"{LOOPBACK}:{rng.ports[port_of]}"}
    config = configured(CLIENT, rng.folder, settings)
    with stunnel(config.rename(config.with_name(f"{port_of}-client.conf"))):
        yield path


def request(count: int) -> bytes:
    return bytes([GET_WAITING, count])


def received(conn: socket.socket, count: int) -> bytes:
    """Fewer than ``count`` if the other end hangs up."""
    data = b""
    while len(data) < count and (piece := conn.recv(count - len(data))):
        data += piece
    return data


def answer(conn: socket.socket, count: int) -> bytes:
    """What comes of ``count`` bytes that are asked for; none if the other end hangs up, or refuses."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):  # the refusal, in one of its shapes
        conn.sendall(request(count))
        return received(conn, count)
    return b""


def connected(path: Path) -> socket.socket:
    conn = socket.socket(socket.AF_UNIX)
    conn.settimeout(PATIENCE_S)
    conn.connect(str(path))
    return conn


def fetched(path: Path, count: int) -> bytes:
    with connected(path) as conn:
        return answer(conn, count)


def assert_served(rng: Rng, name: str, path: Path) -> None:
    """By its own socket, and no other. A slow machine's stunnel was seen to hang up, once."""
    answers: list[bytes] = []

    def served() -> bool:
        answers.append(fetched(path, 200))
        return len(answers[-1]) == 200

    wait_for(served, "an answer")
    assert_told(rng.log, LET_IN)
    sent = rng.daemon.newly_sent()
    assert 200 <= sent.pop(name) <= 200 * len(answers)
    assert not any(sent.values())
    rng.daemon.assert_taken(answers[-1])


def assert_nothing_was_given(rng: Rng) -> None:
    assert rng.daemon.newly_sent() == {"rack-1": 0, "rack-2": 0}


def assert_nobody_was_let_in(rng: Rng) -> None:
    """Not as far as the daemon, which has given nothing."""
    assert LET_IN not in rng.log.read_text()
    assert_nothing_was_given(rng)


def test_each_certificate_leads_to_its_own_socket(rng: Rng) -> None:
    """And no byte of the RNG reaches both, nor one of them twice."""
    got = dict.fromkeys(RACKS, b"")
    with contextlib.ExitStack() as stack:
        conns = {}
        for name in RACKS:
            path = stack.enter_context(client(rng, name, identity(rng.folder, name)))
            conns[name] = stack.enter_context(connected(path))
        for _ in range(20):
            for name, count in ("rack-1", 255), ("rack-2", 100):
                conns[name].sendall(request(count))
            for name, count in ("rack-1", 255), ("rack-2", 100):
                got[name] += received(conns[name], count)
        assert rng.daemon.rows("clients") == {"rack-1": 1, "rack-2": 1}
    assert {name: len(data) for name, data in got.items()} == {"rack-1": 5100, "rack-2": 2000}
    assert rng.daemon.newly_sent() == {"rack-1": 5100, "rack-2": 2000}
    rng.daemon.assert_taken(*got.values())


def expired(folder: Path) -> dict[str, str]:
    """rack-1's, of the right authority, until yesterday."""
    script = (
        "openssl req -new -key rack-1.key -subj /CN=rack-1.example.org -out request.pem && "
        "openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -days -1 -out expired.pem"
    )
    subprocess.run(["sh", "-c", script], cwd=folder, check=True, capture_output=True)
    return {**identity(folder, "rack-1"), "cert": f"{folder}/expired.pem"}


@pytest.mark.parametrize(
    ("who", "why"),
    [
        ("another client", WRONG_NAME),
        ("the server itself", WRONG_NAME),
        ("expired", "certificate has expired"),
        ("a stranger", "Pre-verification error"),
        ("without a certificate", "peer did not return a certificate"),
    ],
)
def test_who_may_not_come_gets_not_a_byte(rng: Rng, who: str, why: str) -> None:
    settings = {
        "another client": identity(rng.folder, "rack-2"),
        "the server itself": identity(rng.folder, "rng-1"),
        "expired": expired(rng.folder),
        "a stranger": identity(rng.folder / "stranger", "rack-1"),
        "without a certificate": {"cert": "", "key": ""},
    }
    with client(rng, "rack-1", settings[who]) as path:
        assert fetched(path, 200) == b""
        assert_told(rng.log, why)
    assert_nobody_was_let_in(rng)


# Without a client's stunnel


def context(rng: Rng, name: str) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(rng.folder / "ca.pem"))
    made.load_cert_chain(rng.folder / f"{name}.pem", rng.folder / f"{name}.key")
    return made


@contextlib.contextmanager
def tls(
    rng: Rng, port_of: str, made: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> Iterator[ssl.SSLSocket]:
    with socket.create_connection((LOOPBACK, rng.ports[port_of]), PATIENCE_S) as conn, made.wrap_socket(
        conn, server_hostname="rng-1.example.org", session=session
    ) as wrapped:
        yield wrapped


def test_no_session_is_resumed(rng: Rng) -> None:
    """Neither at another client's port nor at its own, where it would outlast its certificate."""
    made = context(rng, "rack-2")
    with tls(rng, "rack-2", made) as conn:
        rng.daemon.assert_taken(answer(conn, 200))
        session = conn.session
    assert rng.daemon.newly_sent() == {"rack-1": 0, "rack-2": 200}
    with tls(rng, "rack-1", made, session) as conn:
        assert answer(conn, 200) == b""
    assert_told(rng.log, WRONG_NAME)
    assert_nothing_was_given(rng)
    with tls(rng, "rack-2", made, session) as conn:
        assert not conn.session_reused
        rng.daemon.assert_taken(answer(conn, 200))
    assert rng.daemon.newly_sent() == {"rack-1": 0, "rack-2": 200}


def test_nothing_older_than_tls_1_3(rng: Rng) -> None:
    made = context(rng, "rack-1")
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)), tls(rng, "rack-1", made):
        pass
    assert_told(rng.log, "unsupported protocol")
    assert_nobody_was_let_in(rng)


@pytest.mark.parametrize("garbage", [request(200), b"GET / HTTP/1.1\r\n\r\n", bytes(100_000)])
def test_who_speaks_no_tls_gets_not_a_byte_of_egd(rng: Rng, garbage: bytes) -> None:
    """And who is silent hinders nobody: others are served meanwhile."""
    with socket.create_connection((LOOPBACK, rng.ports["rack-1"]), PATIENCE_S) as silent:
        with socket.create_connection((LOOPBACK, rng.ports["rack-1"]), PATIENCE_S) as conn:
            said = b""
            with contextlib.suppress(OSError):  # it may hang up before it has all
                conn.sendall(garbage)
                conn.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while piece := conn.recv(4096):
                    said += piece
            assert len(said) < 20, "no more than a TLS alert"
        assert_told(rng.log, "SSL_accept")
        assert_nobody_was_let_in(rng)
        with client(rng, "rack-1", identity(rng.folder, "rack-1")) as path:
            assert_served(rng, "rack-1", path)
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.recv(1)


# Who stunnel is, and what is left of it


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_is_no_root_and_reaches_the_sockets_by_their_group(
    tmp_path: Path, authority: Path, daemon: Serving
) -> None:
    """Another user and another group than the file's, which this machine need not have."""
    user, group = pwd.getpwnam("nobody"), grp.getgrnam("daemon")
    folder = Path(shutil.copytree(authority, tmp_path / "rng-1"))
    assert (folder / "rng-1.key").stat().st_mode & 0o777 == 0o600
    sockets = [daemon.sockets / f"{rack}.egd" for rack in RACKS]
    assert [path.stat().st_mode & 0o777 for path in sockets] == [0o660, 0o660]
    settings = {"setuid": user.pw_name, "setgid": group.gr_name}
    daemon.newly_sent()
    with rng_host(folder, daemon, settings) as rng:
        os.chown(sockets[0], 0, group.gr_gid)
        os.chown(sockets[1], 0, 0)
        with client(rng, "rack-1", identity(folder, "rack-1")) as path:
            assert_served(rng, "rack-1", path)
        with client(rng, "rack-2", identity(folder, "rack-2")) as path:
            assert fetched(path, 200) == b""
        assert_told(rng.log, "Permission denied")
        assert_nothing_was_given(rng)


def test_a_client_that_was_killed_starts_again_as_its_file_says(rng: Rng) -> None:
    who = identity(rng.folder, "rack-1")
    left = rng.folder / "rack-1.sock"
    settings = {**who, "rng-1.accept": str(left)}
    with stunnel(configured(CLIENT, rng.folder, settings), ending=signal.SIGKILL):
        pass
    assert left.exists()
    told = re.search(r"^;   ExecStartPre=-(.*)$", (CONF / f"{CLIENT}.conf").read_text(), re.MULTILINE)
    assert told is not None
    command = told[1].replace("/run/netrng-rng-1.sock", str(left))
    subprocess.run(command.split(), check=True)
    with client(rng, "rack-1", who) as path:
        assert_served(rng, "rack-1", path)


# Two hosts with an RNG


def both(folder: Path, hosts: dict[str, Rng]) -> Path:
    """The client's file with its example of a second host made true."""
    config = configured(CLIENT, folder, {})
    text, mark, example = config.read_text().partition(";   [rng-2]")
    text += re.sub("^;   ", "", mark + example, flags=re.MULTILINE)
    for name, host in hosts.items():
        text = text.replace(f"/run/netrng-{name}.sock", f"{folder}/{name}.sock")
        text = text.replace(f"{name}.example.org:7778", f"{LOOPBACK}:{host.ports['rack-1']}")
    config.write_text(text)
    return config


class Pair(NamedTuple):
    """Two hosts with an RNG, A's and B's, and rack-1 with a VM."""

    hosts: dict[str, Rng]
    ends: dict[str, contextlib.ExitStack]  # of their stunnels
    rack: Hostd
    vm: Guest

    def lose(self, name: str, what: str) -> None:
        """Kills the host's daemon or its stunnel."""
        if what == "daemon":
            self.hosts[name].daemon.hostd.kill()
        else:
            self.ends[name].close()

    def sources(self) -> list[dict[str, Any]]:
        return list(self.rack.status()["sources"])

    def given(self, origin: str) -> int:
        """How many bytes of it the VM has."""
        return int(self.rack.domain("vm").get("origins", {}).get(origin, 0))


@contextlib.contextmanager
def pair(folder: Path, authority: Path, policy: str) -> Iterator[Pair]:
    hosts, ends = {}, {}
    with contextlib.ExitStack() as stack:
        for name, data in zip(HOSTS, (A, B)):
            here = Path(shutil.copytree(authority, folder / name))
            daemon = stack.enter_context(serving(here, here, data))
            ends[name] = stack.enter_context(contextlib.ExitStack())
            settings = {**AS_WHO_WE_ARE, **identity(here, name)}
            hosts[name] = ends[name].enter_context(rng_host(here, daemon, settings, signal.SIGKILL))
        for host in hosts.values():  # which have started side by side
            host.daemon.wait_until_listening()
        here = Path(shutil.copytree(authority, folder / "rack-1"))
        stack.enter_context(stunnel(both(here, hosts)))
        vm = Guest(here / "vm.sock")
        stack.callback(vm.close)
        config = f'[libvirt]\nuris = []\n[[channel]]\nname = "vm"\npath = "{here}/vm.sock"\n'
        for name in HOSTS:
            config += f'[[source]]\nname = "{name}"\nkind = "egd"\npath = "{here}/{name}.sock"\n'
            config += f'origin = "the RNG of {name}"\nstall_timeout = {PATIENCE_S}\n'
        rack = stack.enter_context(Hostd(here, f'{config}[sources]\npolicy = "{policy}"\n').start())
        yield Pair(hosts, ends, rack, vm)
        assert rack.stop() == 0
        assert "Traceback" not in rack.log


@pytest.mark.parametrize("what", ["daemon", "stunnel"])
def test_failover_goes_on_with_the_second_host_when_the_first_is_gone(
    tmp_path: Path, authority: Path, what: str
) -> None:
    with pair(tmp_path, authority, "failover") as two:
        wait_for(lambda: two.given("rng-1") > 10_000, f"bytes of the first, in {two.rack.log}")
        shown = [(source["upstream"], source["origin"]) for source in two.sources()]
        assert shown == [(True, "the RNG of rng-1"), (True, "the RNG of rng-2")]
        two.lose("rng-1", what)
        before = two.given("rng-2")  # some, if it was healthy first
        wait_for(lambda: two.given("rng-2") > before + 10_000, f"bytes of the second, in {two.rack.log}")
        first, second = two.sources()
        assert (first["serving"], second["serving"]) == (False, True)
        sent = two.hosts["rng-2"].daemon.newly_sent()
        assert sent["rack-1"] >= second["bytes_sent"]
        assert sent["rack-2"] == 0
    assert assert_disjoint(A + B, [bytes(two.vm.taken)]) > 0.9 * len(two.vm.taken)


def test_xor_mixes_both_hosts_and_gives_nothing_of_one_alone(tmp_path: Path, authority: Path) -> None:
    with pair(tmp_path, authority, "xor") as two:
        wait_for(lambda: two.given("rng-1+rng-2") > 4_000, f"bytes of both, in {two.rack.log}")
        two.lose("rng-2", "daemon")
        wait_for(lambda: not any(source["serving"] for source in two.sources()), "the mix to end")
        sent = two.rack.domain("vm")["bytes_sent"]
        assert sent == two.given("rng-1+rng-2")
        assert two.hosts["rng-1"].daemon.newly_sent()["rack-2"] == 0
        assert two.rack.domain("vm")["bytes_sent"] == sent
    assert is_mixed(bytes(two.vm.taken[:1024]))


def numbers(data: bytes, step: int = 1) -> Iterator[int]:
    """Each 8 bytes of it."""
    return (int.from_bytes(data[start : start + 8], "big") for start in range(0, len(data) - 7, step))


def is_mixed(taken: bytes) -> bool:
    """Whether some 8 bytes of it are some of A's and some of B's together; by chance they never are."""
    early = 10 * RATE  # the VM's first bytes are found in there
    others, wanted = set(numbers(B[:early])), list(numbers(taken, 256))
    return any(number ^ piece in others for number in numbers(A[:early]) for piece in wanted)
