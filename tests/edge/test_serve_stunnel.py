# SPDX-License-Identifier: Apache-2.0
"""Other hosts at the sockets of [[serve]], through stunnel: each certificate leads to its own alone."""

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
from typing import NamedTuple

import pytest
from tests.edge.egd_server import GET_WAITING, EgdServer, served
from tests.edge.rig import PATIENCE_S, Guest, Hostd, wait_for
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

RACKS = ("rack-1", "rack-2")
WRONG_NAME = "Subject checks failed"


class Rng(NamedTuple):
    """A host with an RNG, which serves both racks."""

    folder: Path  # with the certificates
    ports: dict[str, int]
    sockets: dict[str, EgdServer]
    log: Path


@contextlib.contextmanager
def rng_host(folder: Path, sockets: Path, settings: dict[str, str]) -> Iterator[Rng]:
    """``folder`` has the certificates, and gets stunnel's configuration and log."""
    ports = dict(zip(RACKS, free_ports(2)))
    with served(sockets, *RACKS) as servers:
        for name in RACKS:
            (sockets / f"{name}.egd").chmod(0o660)
            settings[f"{name}.accept"] = f"{LOOPBACK}:{ports[name]}"
            settings[f"{name}.connect"] = str(sockets / f"{name}.egd")
        with stunnel(configured(SERVER, folder, settings)) as log:
            yield Rng(folder, ports, servers, log)


@pytest.fixture
def rng(tmp_path: Path) -> Iterator[Rng]:
    certificates(tmp_path)
    with rng_host(tmp_path, tmp_path, dict(AS_WHO_WE_ARE)) as rng:
        yield rng


def identity(folder: Path, name: str) -> dict[str, str]:
    """What a client says in stunnel's file to be this one."""
    return {"cert": f"{folder}/{name}.pem", "key": f"{folder}/{name}.key"}


@contextlib.contextmanager
def client(rng: Rng, port_of: str, who: dict[str, str]) -> Iterator[Path]:
    """The socket that the client's stunnel makes of the port of ``port_of``."""
    path = rng.folder / "rng-1.sock"
    settings = {**who, "rng-1.accept": str(path), "rng-1.connect": f"{LOOPBACK}:{rng.ports[port_of]}"}
    with stunnel(configured(CLIENT, rng.folder, settings)):
        yield path


def answer(conn: socket.socket, count: int) -> bytes:
    """What comes of ``count`` bytes that are asked for until the other end is content, or hangs up."""
    data = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):  # the refusal, in one of its shapes
        conn.sendall(bytes([GET_WAITING, count]))
        while len(data) < count and (piece := conn.recv(count)):
            data += piece
    return data


def fetched(path: Path, count: int) -> bytes:
    with socket.socket(socket.AF_UNIX) as conn:
        conn.settimeout(PATIENCE_S)
        conn.connect(str(path))
        return answer(conn, count)


def assert_served(rng: Rng, name: str, path: Path) -> None:
    """By its own socket, and no other. A slow machine's stunnel was seen to hang up, once."""
    data = wait_for(lambda: fetched(path, 200), "an answer")
    assert len(data) == 200
    assert rng.sockets[name].given.endswith(data)
    assert [other for other, sock in rng.sockets.items() if sock.given] == [name]


def assert_nothing_was_given(rng: Rng) -> None:
    assert not any(sock.given for sock in rng.sockets.values())


@pytest.mark.parametrize("name", RACKS)
def test_a_certificate_leads_to_its_own_socket(rng: Rng, name: str) -> None:
    with client(rng, name, identity(rng.folder, name)) as path:
        assert_served(rng, name, path)


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
    assert_nothing_was_given(rng)


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
        assert len(answer(conn, 200)) == 200
        session = conn.session
    before = len(rng.sockets["rack-2"].given)
    with tls(rng, "rack-1", made, session) as conn:
        assert answer(conn, 200) == b""
    assert_told(rng.log, WRONG_NAME)
    assert not rng.sockets["rack-1"].given
    with tls(rng, "rack-2", made, session) as conn:
        assert not conn.session_reused
        assert len(answer(conn, 200)) == 200
    assert len(rng.sockets["rack-2"].given) == before + 200


def test_nothing_older_than_tls_1_3(rng: Rng) -> None:
    made = context(rng, "rack-1")
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)), tls(rng, "rack-1", made):
        pass
    assert_told(rng.log, "unsupported protocol")
    assert_nothing_was_given(rng)


@pytest.mark.parametrize("garbage", [bytes([GET_WAITING, 200]), b"GET / HTTP/1.1\r\n\r\n", bytes(100_000)])
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
        assert_nothing_was_given(rng)
        with client(rng, "rack-1", identity(rng.folder, "rack-1")) as path:
            assert_served(rng, "rack-1", path)
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.recv(1)


# Who stunnel is, and what is left of it


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_is_no_root_and_reaches_the_sockets_by_their_group(tmp_path: Path) -> None:
    """Another user and another group than the file's, which this machine need not have."""
    user, group = pwd.getpwnam("nobody"), grp.getgrnam("daemon")
    certificates(tmp_path)
    assert (tmp_path / "rng-1.key").stat().st_mode & 0o777 == 0o600
    settings = {"setuid": user.pw_name, "setgid": group.gr_name}
    with tempfile.TemporaryDirectory() as name:
        sockets = Path(name)
        sockets.chmod(0o755)
        with rng_host(tmp_path, sockets, settings) as rng:
            for rack in RACKS:
                os.chown(sockets / f"{rack}.egd", 0, group.gr_gid)
            with client(rng, "rack-1", identity(tmp_path, "rack-1")) as path:
                assert_served(rng, "rack-1", path)
            os.chown(sockets / "rack-2.egd", 0, 0)
            with client(rng, "rack-2", identity(tmp_path, "rack-2")) as path:
                assert fetched(path, 200) == b""
            assert_told(rng.log, "Permission denied")


def test_a_client_that_was_killed_starts_again_as_its_file_says(rng: Rng) -> None:
    who = identity(rng.folder, "rack-1")
    settings = {**who, "rng-1.accept": str(rng.folder / "rng-1.sock")}
    with stunnel(configured(CLIENT, rng.folder, settings), signal.SIGKILL):
        pass
    assert (rng.folder / "rng-1.sock").exists()
    told = re.search(r"^;   ExecStartPre=-(.*)$", (CONF / f"{CLIENT}.conf").read_text(), re.MULTILINE)
    assert told is not None
    command = told[1].replace("/run/netrng-", f"{rng.folder}/")
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


def test_a_daemon_goes_on_with_the_second_host_when_the_first_is_gone(tmp_path: Path) -> None:
    here = tmp_path / "rack-1"
    here.mkdir()
    certificates(here)
    with contextlib.ExitStack() as stack:
        ends, hosts = {}, {}
        for name in ("rng-1", "rng-2"):
            ends[name] = stack.enter_context(contextlib.ExitStack())
            folder = Path(shutil.copytree(here, tmp_path / name))
            settings = {**AS_WHO_WE_ARE, **identity(folder, name)}
            hosts[name] = ends[name].enter_context(rng_host(folder, folder, settings))
        stack.enter_context(stunnel(both(here, hosts)))
        guest = Guest(tmp_path / "vm.sock")
        stack.callback(guest.close)
        source = f'[[source]]\nname = "NAME"\nkind = "egd"\npath = "{here}/NAME.sock"\n'
        sources = [source.replace("NAME", name) for name in hosts]
        channel = f'[[channel]]\nname = "vm"\npath = "{tmp_path}/vm.sock"\n'
        hostd = stack.enter_context(
            Hostd(tmp_path, "[libvirt]\nuris = []\n" + "".join(sources) + channel).start()
        )
        wait_for(lambda: given(hostd, "rng-1") > 10_000, "bytes of the first")
        ends["rng-1"].close()
        wait_for(lambda: given(hostd, "rng-2") > 10_000, "bytes of the second")
        assert hostd.stop() == 0
        assert not any(host.sockets["rack-2"].given for host in hosts.values())


def given(hostd: Hostd, source: str) -> int:
    """How many bytes of this source the VM has."""
    return int(hostd.domain("vm").get("origins", {}).get(source, 0))
