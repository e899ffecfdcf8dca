# SPDX-License-Identifier: Apache-2.0
"""What a virtio-rng gets: a channel on which QEMU asks by EGD, here with a socket in QEMU's place."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.edge.qemu import ASK, Qemu
from tests.edge.rig import Guest, Hostd, fed_fifo, run_command, wait_for
from tests.streams import assert_disjoint, stream


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Qemu]:
    made = Qemu(tmp_path / "rng.sock")
    yield made
    made.close()


def config(folder: Path, extra: str = "", source: str = 'kind = "prng"') -> str:
    return (
        f'[libvirt]\nuris = []\n[[source]]\nname = "test"\n{source}\n'
        f'[[channel]]\nname = "bare"\nkind = "egd"\npath = "{folder}/rng.sock"\n{extra}'
    )


def test_a_lost_request_is_freed_once_and_then_only_what_is_asked_for_is_sent(
    qemu: Qemu, tmp_path: Path
) -> None:
    with Hostd(tmp_path, config(tmp_path)) as hostd:
        hostd.start()
        wait_for(lambda: len(qemu.taken) == 64, "the bytes that free a lost request")
        # Several times the tick, in which keep-alives and the like would come.
        started = hostd.status()["time"]
        wait_for(lambda: hostd.status()["time"] - started > 2, "two seconds in which nothing is asked for")
        assert len(qemu.taken) == 64
        for total in (128, 192):
            qemu.ask()
            qemu.wait_for(total)
            assert len(qemu.taken) == total
        qemu.ask(b"\x02\xff" * 8)
        wait_for(lambda: len(qemu.taken) == 192 + 8 * 255, "eight requests' bytes")
        row = hostd.domain("bare")
        assert (row["state"], row["kind"], row["bytes_sent"]) == ("open", "egd", 192 + 8 * 255)
        assert row["bytes_acked"] is row["bytes_lost"] is row["in_flight"] is row["seeds"] is None
        assert row["last_heard"] is not None
        assert hostd.status()["ledger_ok"]
        qemu.hang_up()
        wait_for(lambda: len(qemu.taken) == 192 + 8 * 255 + 64, "the next connection's")
        assert qemu.connections == 2
        assert hostd.stop() == 0
        assert len(qemu.taken) == 192 + 8 * 255 + 64


def test_what_frees_a_lost_request_comes_when_there_is_something_to_give(qemu: Qemu, tmp_path: Path) -> None:
    """However long the source was silent first; and no more than that."""
    os.mkfifo(tmp_path / "fifo")
    source = f'kind = "fifo"\npath = "{tmp_path}/fifo"'
    with Hostd(tmp_path, config(tmp_path, source=source)) as hostd:
        hostd.start()
        wait_for(lambda: hostd.domain("bare")["state"] == "open", "the channel to be open")
        assert hostd.domain("bare")["bytes_sent"] == 0
        with (tmp_path / "fifo").open("wb") as writer:
            writer.write(stream(20_000))
        qemu.wait_for(64)
        started = hostd.status()["time"]
        wait_for(lambda: hostd.status()["time"] - started > 1, "a second in which nothing is asked for")
        assert len(qemu.taken) == 64


def test_what_is_no_request_of_qemus_ends_the_connection_alone(qemu: Qemu, tmp_path: Path) -> None:
    """QEMU knows command 2 and no other; a pushed byte would be another's idea."""
    guest = Guest(tmp_path / "vm.sock")
    agent = f'[[channel]]\nname = "vm"\npath = "{tmp_path}/vm.sock"\n'
    try:
        with Hostd(tmp_path, config(tmp_path, agent)) as hostd:
            hostd.start()
            wait_for(lambda: len(qemu.taken) == 64 and len(guest.taken) > 4096, "both to be served")
            qemu.ask(b"\x03\x00\x08\x01x")
            wait_for(lambda: qemu.connections == 2, "the next connection")
            before = len(guest.taken)
            wait_for(lambda: len(guest.taken) > before + 4096, "the agent to be served on")
            assert len(guest.sessions) == 1
            told = "bare: unreachable: protocol violation: a byte that is no command\n"
            assert told in hostd.log, "and not which byte"
            assert hostd.status()["ledger_ok"]
    finally:
        guest.close()


def is_unreachable(hostd: Hostd, name: str) -> bool:
    return bool(hostd.domain(name)["state"] == "unreachable")


def test_our_own_sockets_are_no_channels_whatever_a_pattern_matches(tmp_path: Path) -> None:
    """What is to be given out would come back, and be logged as what was not understood."""
    pattern = f'[[channel]]\nname = "vm"\nkind = "egd"\npath = "{tmp_path}/*.s*"\n'
    serve = f'[[serve]]\nname = "rack"\npath = "{tmp_path}/rack.sock"\n'
    source = '[libvirt]\nuris = []\n[[source]]\nname = "test"\nkind = "prng"\n'
    with Hostd(tmp_path, source + pattern + serve) as hostd:
        hostd.start()
        for name, path in (("vm-rack-ock", "rack.sock"), ("vm-hostd-ock", "hostd.sock")):
            wait_for(functools.partial(is_unreachable, hostd, name), f"{name} to be refused")
            own = f"{tmp_path}/{path} is netrng-hostd's own socket; take it out of [[channel]]"
            assert hostd.domain(name)["detail"] == own
        assert hostd.domain("serve:rack")["clients"] == 0
        assert "protocol violation" not in hostd.log
        checked = run_command("check", "--config", str(hostd.config))
        assert checked.returncode == 1
        for path in ("rack.sock", "hostd.sock"):
            assert f": {tmp_path}/{path} is netrng-hostd's own socket; name another path\n" in checked.stdout


def test_a_reload_does_not_make_the_running_sources_path_our_own(tmp_path: Path) -> None:
    """A source needs a restart, a [[serve]] does not: in between, one would be fed by the other."""
    source = '[libvirt]\nuris = []\n[[source]]\nname = "far"\nkind = "egd"\npath = "{}/{}"\n'
    serve = f'[[serve]]\nname = "rack"\npath = "{tmp_path}/far.egd"\n'
    with Hostd(tmp_path, source.format(tmp_path, "far.egd")) as hostd:
        hostd.start()
        hostd.write(source.format(tmp_path, "elsewhere.egd") + serve)
        hostd.reload()
        wait_for(lambda: "not reloaded" in hostd.log, "the refusal")
        told = f"source 'far': {tmp_path}/far.egd is [[serve]] 'rack', at {tmp_path}/far.egd: bytes would go"
        assert told in hostd.log
        assert hostd.status()["domains"] == []
        assert not (tmp_path / "far.egd").exists()


def test_more_requests_than_its_quota_answers_are_read_slowly(qemu: Qemu, tmp_path: Path) -> None:
    """A guest may have QEMU ask as often as it likes; what is not answered costs hostd nothing."""
    limit = '[[quota]]\nname = "tight"\nmatch = ["bare"]\nlimit = 1000\nburst = 64\n'
    with Hostd(tmp_path, config(tmp_path, limit)) as hostd:
        hostd.start()
        wait_for(lambda: len(qemu.taken) == 64, "it to be served")
        flood = threading.Thread(target=lambda: qemu.ask(b"\x02\x01" * 1_000_000), daemon=True)
        flood.start()
        wait_for(lambda: "the guest sends more than it may" in hostd.log, "the flood to be slowed down")
        assert flood.is_alive(), "who asks has to wait"
        qemu.hang_up()
        flood.join()
        wait_for(lambda: qemu.connections == 2, "the next connection")
        assert hostd.status()["ledger_ok"]


def test_bytes_of_an_agent_and_of_a_virtio_rng_are_disjoint(qemu: Qemu, tmp_path: Path) -> None:
    data = stream(8_000_000)
    guest = Guest(tmp_path / "vm.sock")
    agent = f'[[channel]]\nname = "vm"\npath = "{tmp_path}/vm.sock"\n'
    source = f'kind = "prng"\npath = "{tmp_path}/fifo"'
    try:
        with fed_fifo(tmp_path / "fifo", data, rate=100_000), Hostd(
            tmp_path, config(tmp_path, agent, source)
        ) as hostd:
            hostd.start()
            wait_for(lambda: qemu.conn is not None, "the connection")
            while len(qemu.taken) < 10_000 or len(guest.taken) < 10_000:
                before = len(qemu.taken)
                qemu.ask(ASK * 4)
                qemu.wait_for(before + 192)
            hostd.stop()
            assert_disjoint(data, [bytes(qemu.taken), bytes(guest.taken)])
    finally:
        guest.close()
