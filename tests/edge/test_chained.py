# SPDX-License-Identifier: Apache-2.0
"""One hostd that draws from others: [[serve]] → stunnel → a network → stunnel → kind = "egd".

The two ends are hosts as far as the network goes: a network namespace each, with a cable between them (veth)
and addresses that exist nowhere else.  stunnel is Debian's, with this project's own configuration.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.edge.egd_ends import askers, section
from tests.edge.rig import PATIENCE_S, Guest, Hostd, fed_fifo, wait_for
from tests.edge.stunnels import AS_WHO_WE_ARE, CLIENT, SERVER, certificates, configured, stunnel
from tests.streams import assert_disjoint, stream

FAR, NEAR = "10.77.0.1", "10.77.0.2"  # the host with the RNGs, and the one that draws from it
PORT = 7778
RATE = 60_000  # bytes per second of each RNG
MIXED_FROM = 200_000  # of each stream so many bytes are looked through for what was mixed
NO_LIBVIRT = "[libvirt]\nuris = []\n"


class Host:
    """A network namespace, for as long as its one process lives; programs of ours run in it."""

    def __init__(self, inside: Host | None = None) -> None:
        """``inside``: another, whose user namespace it shares where we are not root."""
        own_user = ["-r"] if inside is None and os.geteuid() != 0 else []
        self._process = subprocess.Popen(
            [*(inside.run if inside else ()), "unshare", *own_user, "-n", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"\n":
            self.close()
            pytest.skip("neither root nor user namespaces: no network of its own; run as root")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def run(self) -> tuple[str, ...]:
        """What a command line begins with."""
        user = () if os.geteuid() == 0 else ("-U", "--preserve-credentials")
        return "nsenter", "-t", str(self.pid), *user, "-n", "--"

    def ip(self, *arguments: str) -> None:
        done = subprocess.run([*self.run, "ip", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(PATIENCE_S)


class Hosts(NamedTuple):
    far: Host
    near: Host


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with contextlib.ExitStack() as stack:
        far = Host()
        stack.callback(far.close)
        near = Host(far)
        stack.callback(near.close)
        far.ip("link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(near.pid))
        for host, address in ((far, FAR), (near, NEAR)):
            host.ip("addr", "add", f"{address}/24", "dev", "cable")
            host.ip("link", "set", "cable", "up")
            host.ip("link", "set", "lo", "up")
        yield Hosts(far, near)


class Inside(Hostd):
    """A daemon on one of the two hosts."""

    def __init__(self, host: Host, folder: Path, config: str) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder, NO_LIBVIRT + config)
        self.python = (*host.run, sys.executable, "-X", "dev")


@contextlib.contextmanager
def tunnel(hosts: Hosts, folder: Path, serve: Path, port: int) -> Iterator[Path]:
    """From a socket on the near host, which is yielded, to ``serve`` on the far one, over the cable."""
    here = folder / "here.sock"
    certificates(folder)
    nobody = {"rack-2.accept": f"{FAR}:{port + 1}", "rack-2.connect": str(folder / "nobody.egd")}
    ours = {"rack-1.accept": f"{FAR}:{port}", "rack-1.connect": str(serve)}
    far = configured(SERVER, folder, {**AS_WHO_WE_ARE, **nobody, **ours})
    near = configured(CLIENT, folder, {"rng-1.accept": str(here), "rng-1.connect": f"{FAR}:{port}"})
    with stunnel(far, *hosts.far.run), stunnel(near, *hosts.near.run):
        yield here


class Upstream(NamedTuple):
    hostd: Hostd
    data: bytes  # of its source
    serve: Path  # where it serves EGD on the far host
    here: Path  # the near end of the tunnel there


@contextlib.contextmanager
def upstream(hosts: Hosts, folder: Path, name: str, port: int = PORT) -> Iterator[Upstream]:
    own, data = folder / name, stream(4_000_000, name.encode())
    source = f'[[source]]\nname = "rng"\nkind = "prng"\npath = "{own}/fifo"\n'
    with contextlib.ExitStack() as stack:
        hostd = stack.enter_context(Inside(hosts.far, own, source + section("near", own)))
        stack.enter_context(fed_fifo(own / "fifo", data, RATE))
        hostd.start()
        here = stack.enter_context(tunnel(hosts, own, own / "near.egd", port))
        yield Upstream(hostd, data, own / "near.egd", here)
        assert hostd.status()["ledger_ok"]
        assert hostd.stop() == 0
        assert "Traceback" not in hostd.log


@contextlib.contextmanager
def downstream(hosts: Hosts, folder: Path, *from_: Upstream, policy: str = "failover") -> Iterator[Hostd]:
    """It serves an agent, and EGD again."""
    own = folder / "near"
    sources = "".join(
        f'[[source]]\nname = "{up.hostd.folder.name}"\nkind = "egd"\npath = "{up.here}"\n' for up in from_
    )
    more = f'[sources]\npolicy = "{policy}"\n[[channel]]\nname = "vm"\npath = "{own}/vm.sock"\n'
    with Inside(hosts.near, own, sources + more + section("again", own)) as hostd:
        hostd.start()
        yield hostd
        assert hostd.status()["ledger_ok"]
        assert hostd.stop() == 0
        assert "Traceback" not in hostd.log


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    (tmp_path / "near").mkdir()
    with contextlib.closing(Guest(tmp_path / "near" / "vm.sock")) as made:
        yield made


def states(hostd: Hostd) -> dict[str, str]:
    return {source["name"]: source["state"] for source in hostd.status()["sources"]}


def wait_for_more(guest: Guest, n_bytes: int, what: str) -> None:
    before = len(guest.taken)
    wait_for(lambda: len(guest.taken) >= before + n_bytes, what)


def assert_from(data: bytes, *pieces: bytes) -> None:
    """All of it, nothing twice; a few bytes where two parts meet cannot be told."""
    assert assert_disjoint(data, pieces) > 0.98 * sum(map(len, pieces))


def test_the_near_host_has_no_other_way_to_the_far_one(hosts: Hosts) -> None:
    """The addresses are reached over the cable, and from nowhere else."""
    hosts.near.ip("route", "get", FAR)
    hosts.near.ip("link", "set", "cable", "down")
    with pytest.raises(AssertionError, match="unreachable"):
        hosts.near.ip("route", "get", FAR)


def test_a_daemon_draws_from_another_which_is_killed_and_comes_back(
    hosts: Hosts, tmp_path: Path, guest: Guest
) -> None:
    with contextlib.ExitStack() as stack:
        up = stack.enter_context(upstream(hosts, tmp_path, "rack"))
        near = stack.enter_context(downstream(hosts, tmp_path, up))
        wait_for(lambda: near.domain("serve:again")["state"] == "listening", "it serves EGD as well")
        (again,) = stack.enter_context(askers(tmp_path / "near" / "again.egd", ask=1024))
        with askers(up.serve, ask=1024) as (first,):
            wait_for_more(guest, 10_000, "an agent is served from the other host")
            wait_for(lambda: len(again.taken) > 5_000, "and an EGD client in the third place")
            assert states(near) == {"rack": "healthy"}
            assert up.hostd.domain("serve:near")["clients"] == 2  # stunnel, and the other one
            up.hostd.kill()
            wait_for(lambda: states(near)["rack"] in ("absent", "stalled", "error"), "it is missed")
            assert first.ended.wait(PATIENCE_S)
        up.hostd.start()
        wait_for(lambda: states(near)["rack"] == "healthy", "it is found again")
        with askers(up.serve, ask=1024) as (second,):
            wait_for_more(guest, 10_000, "served again")
            wait_for(lambda: len(second.taken) > 1_000, "and the other")
        assert len(guest.sessions) == 1 and not again.ended.is_set()
        # What the near one has not given away it still holds: nobody else may get it, and nobody does.
        assert_from(up.data, *(bytes(one) for one in (guest.taken, again.taken, first.taken, second.taken)))


def test_failover_from_one_far_daemon_to_another_and_back(hosts: Hosts, tmp_path: Path, guest: Guest) -> None:
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(upstream(hosts, tmp_path, "one"))
        two = stack.enter_context(upstream(hosts, tmp_path, "two", PORT + 2))
        near = stack.enter_context(downstream(hosts, tmp_path, one, two))

        def gets_from(up: Upstream) -> bool:
            return len(guest.taken) > 64 and bytes(guest.taken[-64:]) in up.data

        wait_for(lambda: gets_from(one), "bytes of the first")
        wait_for(lambda: states(near)["two"] == "healthy", "the second is ready")
        one.hostd.kill()
        wait_for(lambda: states(near)["one"] in ("absent", "stalled", "error"), "the first is missed")
        wait_for(lambda: gets_from(two), "bytes of the second")
        one.hostd.start()
        wait_for(lambda: states(near)["one"] == "healthy", "the first is back")
        wait_for(lambda: gets_from(one), "bytes of the first again")
        assert_from(one.data + two.data, bytes(guest.taken))


def test_xor_of_two_far_daemons(hosts: Hosts, tmp_path: Path, guest: Guest) -> None:
    with contextlib.ExitStack() as stack:
        ups = [
            stack.enter_context(upstream(hosts, tmp_path, name, PORT + 2 * n))
            for n, name in enumerate(("one", "two"))
        ]
        stack.enter_context(downstream(hosts, tmp_path, *ups, policy="xor"))
        wait_for_more(guest, 2_000, "mixed bytes")
        taken = bytes(guest.taken)
    one, two = ({int.from_bytes(up.data[n : n + 8], "big") for n in range(MIXED_FROM)} for up in ups)
    for place in range(0, 2_000, 250):
        piece = int.from_bytes(taken[place : place + 8], "big")
        assert piece not in one and piece not in two
    assert any(  # not each: where parts of either stream meet a piece is put together from more than two
        any(int.from_bytes(taken[place : place + 8], "big") ^ word in two for word in one)
        for place in range(0, 2_000, 250)
    ), "the XOR of what both gave"
