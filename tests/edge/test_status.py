# SPDX-License-Identifier: Apache-2.0
"""What `netrng-hostd status` says, as JSON and on a terminal."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.edge.rig import PATIENCE_S, unread_pipe

from netrng_hostd.main import main
from netrng_hostd.operate import show, status
from netrng_hostd.operate.control import ControlServer, ask
from netrng_hostd.operate.render import render
from netrng_hostd.operate.status import (
    ADMISSION_STATES,
    DOMAIN_STATES,
    SOURCE_STATES,
    URI_STATES,
    AdmissionStatus,
    DaemonStatus,
    DomainStatus,
    ReservoirStatus,
    SourceStatus,
    UriStatus,
    from_json,
    to_json,
)
from netrng_hostd.operate.units import bar, duration, rate, size

NOW = 1_700_000_000.0
DEVICE = SourceStatus(
    "hwrng", "device", "healthy", "/dev/hwrng", since=NOW - 9, rng_current="tpm-rng-0", bytes_read=1_200_000,
    rate=6100, capacity=6200, capacity_age_s=1.5,
)  # fmt: skip
WEB = DomainStatus(
    "web-1", "11111111-2222-3333-4444-555555555555", "qemu:///system", "/run/channel", "virtio", "open",
    since=NOW - 754, reservation=1024, reservation_effective=1024, weight=300, limit=None, burst=4096,
    bytes_sent=1_234_567, bytes_acked=1_230_000, bytes_lost=512, rate=3000,
    agent={"version": "0.1.0", "sink": "rngd", "sink_state": "ok"},
)  # fmt: skip
STATUS = DaemonStatus(
    "1.2.3",
    sources=(DEVICE,),
    domains=(
        WEB,
        dataclasses.replace(WEB, name="web-2", rate=1000, limit=1 << 20, reservation_effective=512),
    ),
    uris=(UriStatus("qemu:///system", "connected", since=NOW),),
    reservoir=ReservoirStatus(65536, 49152, 16384, 16384),
    pid=4242, started=NOW - 7990, time=NOW, rss_bytes=31 << 20, cpu_percent=0.4, sample_size=512,
    admission=AdmissionStatus(6200, 0.1, "best-effort", 5580, 2048, False),
)  # fmt: skip


def drawn(shown: DaemonStatus, width: int = 80, max_domains: int | None = None) -> str:
    """As in a terminal of that width, without colours."""
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    console.print(render(shown, width, max_domains))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text
    return text


# JSON


def test_the_contracts_keys() -> None:
    told = json.loads(to_json(STATUS))
    assert {"version", "sources", "domains"} <= told.keys()
    assert told["sources"][0].keys() >= {
        "name", "kind", "state", "rng_current", "bytes_read", "bytes_discarded", "capacity", "capacity_age_s",
    }  # fmt: skip
    assert told["domains"][0].keys() >= {
        "name", "uuid", "uri", "channel", "kind", "state", "since", "reservation", "reservation_effective",
        "weight", "limit", "burst", "bytes_sent", "bytes_acked", "bytes_lost", "rate", "agent",
    }  # fmt: skip
    assert told["domains"][0]["limit"] is None
    assert told["domains"][1]["limit"] == 1 << 20
    assert told["domains"][0]["agent"] == {"version": "0.1.0", "sink": "rngd", "sink_state": "ok"}


def test_every_field_is_told() -> None:
    assert json.loads(to_json(STATUS)) == json.loads(json.dumps(dataclasses.asdict(STATUS)))


def test_there_and_back() -> None:
    assert from_json(to_json(STATUS)) == STATUS


def test_one_ascii_line() -> None:
    line = to_json(dataclasses.replace(STATUS, without_channel=("evil\n\x1b[2J\u202e",)))
    assert line.isascii()
    assert line.isprintable()


def test_keys_of_a_newer_daemon_are_left_out() -> None:
    told = json.loads(to_json(STATUS))
    told["moon"] = told["sources"][0]["moon"] = told["domains"][0]["moon"] = "full"
    assert from_json(json.dumps(told)) == STATUS


def test_keys_that_an_older_daemon_lacks() -> None:
    told = json.loads(to_json(STATUS))
    for key in ("uris", "reservoir", "without_channel", "ledger_ok"):
        del told[key]
    assert from_json(json.dumps(told)).uris == ()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"error": "no"}', '{"sources": 1}', '{"sources": [1], "domains": []}'],
)
def test_what_is_no_status(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(text)


def test_the_documented_states() -> None:
    assert set(SOURCE_STATES) == {"starting", "healthy", "absent", "denied", "stalled", "failed", "error"}
    assert set(DOMAIN_STATES) == {
        "connecting", "unreachable", "waiting", "open", "listening", "violated", "incompatible", "refused",
    }  # fmt: skip
    assert set(ADMISSION_STATES) == {"none", "pending", "promised", "shrunk", "refused"}
    assert set(URI_STATES) == {"connecting", "connected", "down"}


# On a terminal


def test_at_a_glance() -> None:
    assert [line.rstrip() for line in drawn(STATUS).splitlines()] == [
        "netrng-hostd 1.2.3  ·  up 2 h 13 min  ·  32.5 MB, 0.4 % CPU  ·  pid 4242",
        "",
        "SOURCE  KIND    STATE    RATE       READ     DISCARDED  CAPACITY",
        "hwrng   device  healthy  6.10 kB/s  1.20 MB  0 B        6.20 kB/s 1 s ago",
        "  /dev/hwrng is tpm-rng-0",
        "libvirt    qemu:///system connected",
        "reservoir  ━━━━━━━━━━━━╌╌╌╌ 49.2 kB of 65.5 kB, for seeds 16.4 kB of 16.4 kB",
        "promised   2.05 kB/s of 5.58 kB/s, with 10% of the capacity as headroom",
        "",
        "DOMAIN       NOW        RESERVED          SENT           SINK",
        "web-1        3.00 kB/s  1KiB/s            1.23 MB        rngd",
        "open 12 min  ━━━━╌ 75%  weight 300        1.23 MB acked  ok",
        "                        no limit          512 B lost     0.1.0",
        "web-2        1.00 kB/s  512B/s of 1KiB/s  1.23 MB        rngd",
        "open 12 min  ━╌╌╌╌ 25%  weight 300        1.23 MB acked  ok",
        "                        limit 1MiB/s      512 B lost     0.1.0",
    ]


def test_what_admission_has_done_is_seen() -> None:
    short = dataclasses.replace(STATUS.admission, capacity=1000, promisable=900, promised=2000, shrunk=True)
    shown = drawn(dataclasses.replace(STATUS, admission=short), 120)
    assert "THE SOURCE GIVES LESS: every reservation holds to 45%" in shown
    refused = dataclasses.replace(WEB, reservation_effective=0, admission="refused")
    shown = drawn(dataclasses.replace(STATUS, domains=(refused,)), 120)
    assert "web-1: its reservation of 1.02 kB/s does not fit: 3.53 kB/s can still be promised" in shown
    plain = dataclasses.replace(WEB, reservation=0, reservation_effective=0)
    assert "promised" not in drawn(dataclasses.replace(STATUS, domains=(plain,)))
    unknown = dataclasses.replace(STATUS, admission=AdmissionStatus())
    assert "promised" not in drawn(unknown), "nothing is known yet"


def test_a_wide_terminal_has_one_line_for_each() -> None:
    (line,) = [line for line in drawn(STATUS, 160).splitlines() if line.startswith("web-1")]
    assert " ".join(line.split()) == (
        "web-1 open 12 min 3.00 kB/s ━━━━╌ 75% 1KiB/s 300 none 1.23 MB 1.23 MB 512 B rngd ok 0.1.0"
    )


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 149, 150, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    long = dataclasses.replace(
        WEB, name="n" * 200, detail="d" * 300, reservation_effective=999,
        agent={"sink": "s" * 500, "sink_state": "t" * 500, "version": "v" * 500, "detail": "e" * 500},
    )  # fmt: skip
    text = drawn(dataclasses.replace(STATUS, domains=(long, WEB)), width)
    if width >= 80:
        assert "ok" in text
        assert "3.00 kB/s" in text
        assert "512 B lost" in text or width >= 150


def test_a_guests_words_are_data() -> None:
    evil = "[bold red]x[/]\x1b[2J\x07\r\n\u202ey\u200bz:smile:"
    escaped = r"[bold red]x[/]\x1b[2J\x07\r\n\u202ey\u200bz:smile:"
    domain = dataclasses.replace(
        WEB, name=evil, state=evil, quota_detail=evil,
        agent={"sink": evil, "sink_state": evil, "version": evil, "detail": evil},
    )  # fmt: skip
    text = drawn(dataclasses.replace(STATUS, domains=(domain,), without_channel=(evil,)), 200)
    assert f"{escaped}: its agent says: {escaped}\n" in text
    assert f"{escaped}: {escaped}\n" in text
    assert f"Without a channel: {escaped}." in text
    console = Console(file=io.StringIO(), width=200, force_terminal=True, markup=False)
    console.print(render(dataclasses.replace(STATUS, domains=(domain,)), 200))
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[2J" not in console.file.getvalue()


@pytest.mark.parametrize("agent", [{}, {"sink": None}, {"sink": 3, "sink_state": ["x"], "version": {}}])
def test_an_agent_that_says_odd_things(agent: dict[str, object]) -> None:
    drawn(dataclasses.replace(STATUS, domains=(dataclasses.replace(WEB, agent=agent),)))


def test_a_prng_is_labelled_loudly() -> None:
    text = drawn(dataclasses.replace(STATUS, sources=(SourceStatus("t", "prng", "healthy", "/dev/urandom"),)))
    assert "t       PRNG  healthy" in text
    assert "/dev/urandom is A PSEUDO-RANDOM STREAM, NOT A HARDWARE RNG: for trials only" in text


def test_a_virtual_device_is_labelled() -> None:
    virtual = dataclasses.replace(DEVICE, virtual=True, rng_current="virtio_rng.0")
    assert "/dev/hwrng is VIRTUAL (virtio_rng.0): only as good as the word of" in drawn(
        dataclasses.replace(STATUS, sources=(virtual,))
    )


def test_what_stands_behind_another_server_is_only_claimed() -> None:
    upstream = dataclasses.replace(DEVICE, kind="egd", upstream=True, rng_current=None)
    claimed = dataclasses.replace(upstream, origin="the attic")
    for source, text in (
        (claimed, "UPSTREAM, said to be the attic (unverified)"),
        (upstream, "UPSTREAM, of unknown origin (unverified)"),
    ):
        assert text in drawn(dataclasses.replace(STATUS, sources=(source,)))


# Several sources

HWRNG = dataclasses.replace(DEVICE, serving=True)
ALEA = dataclasses.replace(DEVICE, name="alea", path="/dev/alea", rng_current=None)
TRIAL = SourceStatus("trial", "prng", "healthy", "/dev/urandom")
BROKEN = dataclasses.replace(DEVICE, state="failed", detail="health test: why")


def serving(source: SourceStatus, **changed: Any) -> SourceStatus:
    return dataclasses.replace(source, serving=True, **changed)


def drawn_with(
    *sources: SourceStatus, policy: str = "failover", min_sources: int = 1, stored: int = 0
) -> str:
    """In a wide terminal, with the policy's line as its first."""
    reservoir = dataclasses.replace(STATUS.reservoir, stored=stored)
    shown = dataclasses.replace(
        STATUS, sources=sources, policy=policy, min_sources=min_sources, reservoir=reservoir
    )
    lines = drawn(shown, 160).splitlines()
    (line,) = [line for line in lines if line.startswith("policy ")]
    return "\n".join((line.rstrip(), *lines))


def test_several_sources_at_a_glance() -> None:
    weak = dataclasses.replace(
        ALEA, min_entropy=4.0, bytes_read=1_000_000, bytes_discarded=600_100, bytes_conditioned=600_000
    )
    shown = dataclasses.replace(STATUS, sources=(HWRNG, weak), domains=())
    assert [line.rstrip() for line in drawn(shown).splitlines()][2:9] == [
        "  SOURCE  KIND    STATE    RATE       READ     DISCARDED  CAPACITY",
        "▶ hwrng   device  healthy  6.10 kB/s  1.20 MB  0 B        6.20 kB/s 1 s ago",
        "  alea    device  healthy  6.10 kB/s  1.00 MB  100 B      6.20 kB/s 1 s ago",
        "  hwrng: /dev/hwrng is tpm-rng-0",
        "  alea: min_entropy 4 leaves 32 of 80 bytes; 600 kB compressed away",
        "policy     failover: VMs are served from hwrng; next: alea",
        "libvirt    qemu:///system connected",
    ]


def test_what_a_source_is_told_of_does_not_command_the_terminal() -> None:
    evil = dataclasses.replace(BROKEN, name="e\x1bvil", detail="why\x1b[2J", rng_current="tpm\x1bc")
    text = drawn(dataclasses.replace(STATUS, sources=(evil, serving(evil)), policy="combine"), 160)
    assert "\x1b" not in text
    assert r"why\x1b[2J" in text


def test_one_source_has_no_policy() -> None:
    for source in (HWRNG, BROKEN):
        assert "policy" not in drawn(dataclasses.replace(STATUS, sources=(source,)))


@pytest.mark.parametrize(
    ("sources", "line"),
    [
        ((HWRNG, ALEA), "failover: VMs are served from hwrng; next: alea"),
        ((HWRNG, dataclasses.replace(ALEA, state="absent"), TRIAL),
         "failover: VMs are served from hwrng; next: trial (PRNG)"),
        ((BROKEN, serving(ALEA)),
         "failover: VMs are served from alea, in the place of hwrng (failed); no other is healthy"),
        ((dataclasses.replace(DEVICE), serving(ALEA)),
         "failover: VMs are served from alea, in the place of hwrng (healthy); next: hwrng"),
        ((BROKEN, serving(TRIAL)),
         "failover: VMs are served from trial (PRNG), in the place of hwrng (failed); no other is healthy"),
        ((BROKEN, dataclasses.replace(ALEA, state="absent")),
         "failover: NOTHING IS GIVEN OUT: no source is healthy"),
        ((BROKEN, serving(ALEA, state="starting")),
         "failover: no source is healthy yet; alea is being tested"),
    ],
)  # fmt: skip
def test_failover(sources: tuple[SourceStatus, ...], line: str) -> None:
    assert drawn_with(*sources).startswith(f"policy     {line}\n")


def test_combine() -> None:
    shown = drawn_with(HWRNG, serving(ALEA), policy="combine")
    assert shown.startswith("policy     combine: hwrng + alea\n")
    shown = drawn_with(BROKEN, serving(ALEA), policy="combine")
    assert shown.startswith("policy     combine: alea; without hwrng (failed)\n")
    assert "hwrng: health test: why" in shown


def test_xor() -> None:
    uncounted = serving(TRIAL, credit=False)
    shown = drawn_with(HWRNG, serving(ALEA), uncounted, policy="xor", min_sources=2)
    assert shown.startswith("policy     xor: hwrng ⊕ alea ⊕ trial (PRNG) (min_sources 2)\n")
    assert "trial: mixed in, and counts for nothing (credit = false)" in shown
    assert "trial: /dev/urandom is A PSEUDO-RANDOM STREAM, NOT A HARDWARE RNG: for trials only" in shown
    few = (BROKEN, dataclasses.replace(ALEA), dataclasses.replace(uncounted, serving=False))
    shown = drawn_with(*few, policy="xor", min_sources=2, stored=4096)
    assert shown.startswith(
        "policy     xor: NOTHING IS GIVEN OUT: "
        "of 2 sources that count 1 is healthy, and 2 are needed\n"
    )
    assert "▶" not in shown
    shown = drawn_with(BROKEN, dataclasses.replace(ALEA, state="absent"), stored=4096)
    assert shown.startswith("policy     failover: NOTHING IS GIVEN OUT BUT THE 4.10 kB IN STORE: no source")


def test_what_is_loud() -> None:
    """In red: that nothing is given out, and that a PRNG is."""

    def styled(*sources: SourceStatus) -> str:
        console = Console(file=io.StringIO(), width=160, force_terminal=True, color_system="standard")
        console.print(render(dataclasses.replace(STATUS, sources=sources), 160))
        assert isinstance(console.file, io.StringIO)
        (line,) = [line for line in console.file.getvalue().splitlines() if "failover: " in line]
        return line

    assert "\x1b[1;31mfailover: NOTHING IS GIVEN OUT" in styled(BROKEN, ALEA)
    assert "\x1b[1;31mfailover: VMs are served from trial (PRNG)" in styled(BROKEN, serving(TRIAL))
    assert "\x1b[32mfailover: VMs are served from hwrng" in styled(HWRNG, ALEA)


@pytest.mark.parametrize("width", [20, 40, 80, 150])
def test_many_sources_fit_a_terminal(width: int) -> None:
    many = tuple(serving(ALEA, name=f"{n}" * 60, path="/dev/" + "x" * 90, detail="y" * 99) for n in range(9))
    for policy in ("failover", "combine", "xor"):
        drawn(dataclasses.replace(STATUS, sources=many, policy=policy), width)


def test_watch_leaves_room_for_the_sources() -> None:
    """All of the picture has to fit, or the terminal scrolls."""
    domains = tuple(dataclasses.replace(WEB, name=f"vm-{n}", uuid=str(n)) for n in range(50))
    one = dataclasses.replace(STATUS, domains=domains, sources=(HWRNG,))
    several = (HWRNG, *(serving(ALEA, credit=False, detail="d") for _ in range(5)))
    for shown in (one, dataclasses.replace(one, sources=several)):
        for width in (80, 160):
            console = Console(file=io.StringIO(), width=width, height=40)
            console.print(show._picture(shown, console))
            assert isinstance(console.file, io.StringIO)
            assert 30 < console.file.getvalue().count("\n") < 40


def test_troubles_are_told() -> None:
    text = drawn(
        dataclasses.replace(
            STATUS,
            sources=(SourceStatus("hwrng", "device", "absent", detail="cannot open /dev/hwrng"),),
            uris=(UriStatus("xen:///system", "down", "nobody there", NOW - 60),),
            domains=(
                dataclasses.replace(WEB, state="waiting", detail="no agent has answered", agent=None),
                dataclasses.replace(WEB, name="db-1", quota_detail="quota in its metadata ignored: why"),
            ),
            ledger_ok=False,
        )
    )
    for expected in (
        "absent", "  cannot open /dev/hwrng", "not known yet", "xen:///system down 1 min", "  nobody there",
        "web-1: no agent has answered", "waiting 12 min", "THE LEDGER DOES NOT ADD UP",
        "db-1: quota in its metadata ignored: why",
    ):  # fmt: skip
        assert expected in text


def test_nobody_asks() -> None:
    assert "0 B/s" in drawn(dataclasses.replace(STATUS, domains=(dataclasses.replace(WEB, rate=0),)))


def test_no_domain() -> None:
    text = drawn(dataclasses.replace(STATUS, domains=()))
    assert text.endswith("\nNo domain has a channel. Give one: netrng-hostd attach DOMAIN\n")


def test_domains_without_a_channel() -> None:
    names = tuple(f"vm-{number}" for number in range(8))
    text = drawn(dataclasses.replace(STATUS, domains=(), without_channel=names))
    assert "Without a channel: vm-0, vm-1, vm-2, vm-3, vm-4 and 3 more. Give one:" in text
    assert "netrng-hostd attach vm-0" in text


def test_of_many_the_busiest_in_their_order() -> None:
    many = tuple(dataclasses.replace(WEB, name=f"vm-{n:02}", uuid=str(n), rate=n % 7) for n in range(50))
    text = drawn(dataclasses.replace(STATUS, domains=many), max_domains=3)
    shown = [line.split()[0] for line in text.splitlines() if line.startswith("vm-")]
    assert shown == ["vm-06", "vm-13", "vm-20"]
    assert "… and 47 more that take less" in text


# The command


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may stand still for longer than an answer is waited for."""
    monkeypatch.setattr(show, "ask", functools.partial(ask, timeout_s=PATIENCE_S))


# The same in a process of its own, with pictures that come sooner.
PATIENT = f"""
import functools, sys
from netrng_hostd import main
from netrng_hostd.operate import show, status
show.INTERVAL_S = 0.05
show.ask = functools.partial(show.ask, timeout_s={PATIENCE_S})
"""
WATCH = f"{PATIENT}sys.exit(status.run(sys.argv[1], as_json=False, watch=True))"


def while_serving(path: str, client: Callable[[], None], shown: Callable[[], DaemonStatus]) -> None:
    async def both() -> None:
        async with ControlServer(path, shown, timeout_s=PATIENCE_S):
            await asyncio.wait_for(asyncio.to_thread(client), PATIENCE_S)

    asyncio.run(both(), debug=True)


def test_no_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "hostd.sock")
    for as_json, watch in ((False, False), (True, False), (False, True)):
        assert status.run(path, as_json=as_json, watch=watch) == 3
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"netrng-hostd: no daemon answers: no socket at {path}; start it:")
        assert captured.err.count("\n") == 1


def test_a_monitoring_user_asks_the_systems_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "system.sock")
    monkeypatch.setattr("netrng_hostd.config.file.DEFAULT_FILE", str(tmp_path / "none.toml"))
    monkeypatch.setattr("netrng_hostd.config.file.SYSTEM_CONTROL", path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert main(["status"]) == 3
    assert f"no socket at {path}" in capsys.readouterr().err


def test_something_else_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "hostd.sock")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b'{"error": "what?"}\n')
        writer.close()

    async def both() -> None:
        async with await asyncio.start_unix_server(answer, path):
            assert await asyncio.to_thread(show.show, path) == 3

    asyncio.run(both(), debug=True)
    assert capsys.readouterr().err.startswith(f"netrng-hostd: no daemon answers: {path}: not a status")


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "hostd.sock")
    codes: list[int] = []
    while_serving(path, lambda: codes.append(status.run(path, as_json=True, watch=False)), lambda: STATUS)
    assert codes == [0]
    assert from_json(capsys.readouterr().out) == STATUS


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = str(tmp_path / "hostd.sock")
    codes: list[int] = []
    while_serving(path, lambda: codes.append(status.run(path, as_json=False, watch=False)), lambda: STATUS)
    assert codes == [0]
    assert capsys.readouterr().out == drawn(STATUS)


@pytest.mark.parametrize(
    "form", ["as_json=False, watch=False", "as_json=True, watch=False", "as_json=False, watch=True"]
)
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, form: str) -> None:
    path = str(tmp_path / "hostd.sock")
    ended: list[tuple[int, str]] = []
    text = (
        f"{PATIENT}main._run_command = lambda options: status.run(sys.argv[1], {form})\n"
        "sys.exit(main.main(['status']))"
    )

    def client() -> None:
        with unread_pipe() as unread:
            done = subprocess.run(
                [sys.executable, "-c", text, path], stdout=unread, stderr=subprocess.PIPE, text=True,
                timeout=PATIENCE_S, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip
        ended.append((done.returncode, done.stderr))

    while_serving(path, client, lambda: STATUS)
    assert ended == [(0, "")]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("terminal", [True, False])
def test_watch_goes_on_until_it_is_stopped(tmp_path: Path, stop: signal.Signals, terminal: bool) -> None:
    path = str(tmp_path / "hostd.sock")
    asked = threading.Semaphore(0)
    said: list[tuple[str, str, int]] = []

    def shown() -> DaemonStatus:
        asked.release()
        return STATUS

    def client() -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "80", "LINES": "50"}
        environment.update({"FORCE_COLOR": "1", "TERM": "xterm"} if terminal else {})
        with subprocess.Popen(
            [sys.executable, "-c", WATCH, path],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
        ) as child:  # fmt: skip
            for _ in range(3):
                assert asked.acquire(timeout=PATIENCE_S)
            child.send_signal(stop)
            out, err = child.communicate(timeout=PATIENCE_S)
            said.append((out, err, child.returncode))

    while_serving(path, client, shown)
    ((out, err, code),) = said
    assert (code, err) == (0, "")
    assert out.count("web-2") >= 2
    assert ("\x1b[?25h" in out) is terminal  # the cursor is shown again


def test_watch_waits_for_a_daemon_that_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "hostd.sock")
    monkeypatch.setattr(show, "INTERVAL_S", 0.0)
    console = Console(file=io.StringIO(), width=80, height=50)
    pictures = show._pictures(path, console, STATUS)
    seen = []
    for _ in range(2):
        console.print(next(pictures))
        assert isinstance(console.file, io.StringIO)
        seen.append(console.file.getvalue())
    assert "no daemon answers" not in seen[0]
    assert "web-1" in seen[1]
    assert "no daemon answers: no socket at" in seen[1]
    pictures.close()  # type: ignore[attr-defined]


def test_a_user_without_a_daemon_asks_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "system.sock"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(show, "SYSTEM_CONTROL", str(system))
    own = f"{tmp_path}/netrng/hostd.sock"
    assert show._place(own) == own
    system.touch()
    assert show._place(own) == str(system)
    assert show._place("/configured/hostd.sock") == "/configured/hostd.sock"
    Path(own).parent.mkdir()
    Path(own).touch()
    assert show._place(own) == own
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert show._place(own) == own


# Units


def test_sizes() -> None:
    assert [size(n) for n in (0, 1, 999, 1000, 9_994, 9_996, 99_949, 99_951, 999_499, 999_500, 10**18)] == [
        "0 B", "1 B", "999 B", "1.00 kB", "9.99 kB", "10.0 kB", "99.9 kB", "100 kB", "999 kB", "1.00 MB",
        "1000 PB",
    ]  # fmt: skip
    assert rate(6100) == "6.10 kB/s"


def test_durations() -> None:
    assert [duration(s) for s in (-5, 0, 59.9, 60, 3599, 3600, 86399, 90000)] == [
        "0 s", "0 s", "59 s", "1 min", "59 min", "1 h 0 min", "23 h 59 min", "1 d 1 h",
    ]  # fmt: skip


def test_bars() -> None:
    assert [bar(part, 4) for part in (-1, 0, 0.5, 1, 7)] == ["╌╌╌╌", "╌╌╌╌", "━━╌╌", "━━━━", "━━━━"]
