# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process: what it gives to whom, and what it does when things go wrong."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.edge.lab import UUID_A, channel_xml, domain_xml
from tests.edge.rig import (
    ENVIRONMENT,
    PATIENCE_S,
    Guest,
    Hostd,
    ServiceManager,
    fed_fifo,
    run_command,
    wait_for,
)
from tests.streams import assert_disjoint, stream

from netrng_guest import wire
from netrng_hostd.config import load
from netrng_hostd.daemon import Daemon

NO_LIBVIRT = "[libvirt]\nuris = []\n"


def source(path: str, kind: str = "prng") -> str:
    return f'[[source]]\nname = "test"\nkind = "{kind}"\npath = "{path}"\n'


def channel(name: str, folder: Path) -> str:
    return f'[[channel]]\nname = "{name}"\npath = "{folder / name}.sock"\n'


@contextlib.contextmanager
def guests(folder: Path, *names: str, ask: int = 4096) -> Iterator[list[Guest]]:
    made = [Guest(folder / f"{name}.sock", ask=ask) for name in names]
    try:
        yield made
    finally:
        for guest in made:
            guest.close()


def config_of(folder: Path, *names: str, path: str | None = None, extra: str = "") -> str:
    return NO_LIBVIRT + extra + source(path or f"{folder}/fifo") + "".join(channel(n, folder) for n in names)


def wait_for_more(guest: Guest, n_bytes: int, what: str) -> None:
    before = len(guest.taken)
    wait_for(lambda: len(guest.taken) >= before + n_bytes, what)


def test_a_whole_read_has_room_beside_a_full_seed_reserve(tmp_path: Path) -> None:
    """Or it would be waited for, and bytes would come once a second."""
    config = tmp_path / "hostd.toml"
    config.write_text(source("/dev/urandom") + '[reservoir]\nsize = "5KiB"\nseed_reserve = "3KiB"\n')
    daemon = Daemon(load(str(config)), None)
    assert 4 * daemon.watches[0]._max_read <= daemon.reservoir.general_size == 2048


def wait_for_session(guest: Guest, number: int) -> None:
    wait_for(lambda: len(guest.sessions) == number, f"session {number}")


def given(*served: Guest) -> list[bytes]:
    """The samples that the guests took, one by one."""
    found = []
    for guest in served:
        start = 0
        for _, _, length in guest.offsets:
            found.append(bytes(guest.taken[start : start + length]))
            start += length
    return found


def sent_to(status: dict[str, Any]) -> dict[str, int]:
    return {domain["name"]: domain["bytes_sent"] for domain in status["domains"]}


def test_every_byte_goes_to_one_guest_once(tmp_path: Path) -> None:
    data = stream(16_000_000)  # more than is read within PATIENCE_S
    with (
        fed_fifo(tmp_path / "fifo", data, rate=150_000),  # slower than they ask: the shares are the daemon's
        guests(tmp_path, "a", "b", "c", ask=wire.MAX_WINDOW) as served,
        Hostd(tmp_path, config_of(tmp_path, "a", "b", "c")) as hostd,
    ):
        hostd.start()
        wait_for(lambda: all(guest.taken for guest in served), "all served")
        counted = sent_to(hostd.status())  # who came first had the source for itself

        def shared() -> bool:  # a guest that stands still spoils one count; the next begins anew
            nonlocal counted
            status = hostd.status()
            assert status["ledger_ok"]
            sent = sent_to(status)
            shares = [total - counted[name] for name, total in sent.items()]
            if sum(shares) < 200_000:
                return False
            counted = sent
            return max(shares) - min(shares) < 0.03 * max(shares)

        wait_for(shared, "200,000 bytes in equal shares")
        assert hostd.stop() == 0
        samples = given(*served)
        # A few bytes where two parts of the stream meet cannot be told.
        assert assert_disjoint(data, samples) > 0.99 * sum(map(len, samples))
        assert "Traceback" not in hostd.log


def test_killed_and_started_ten_times_under_load_nothing_is_given_twice(tmp_path: Path) -> None:
    data = stream(16_000_000)  # more than is read in ten rounds on a slow machine
    with (
        fed_fifo(tmp_path / "fifo", data, rate=200_000),
        guests(tmp_path, "a", "b") as served,
        Hostd(tmp_path, config_of(tmp_path, "a", "b")) as hostd,
    ):
        for round_number in range(10):
            hostd.start()
            for guest in served:
                wait_for_more(guest, 2_000, f"served in round {round_number}")
            hostd.stop(signal.SIGKILL)
        assert len(set(served[0].sessions)) == 10
        assert_disjoint(data, given(*served))


def test_a_reconnecting_guest_gets_a_new_session_and_no_byte_again(tmp_path: Path) -> None:
    data = stream(8_000_000)  # more than is read in six sessions on a slow machine
    with (
        fed_fifo(tmp_path / "fifo", data, rate=100_000),
        guests(tmp_path, "a") as (guest,),
        Hostd(tmp_path, config_of(tmp_path, "a")) as hostd,
    ):
        hostd.start()
        for number in range(1, 7):
            wait_for_session(guest, number)
            wait_for_more(guest, 1_000, f"served in session {number}")
            if number < 6:
                guest.hang_up()
        assert len(set(guest.sessions)) == len(guest.sessions)
        assert_disjoint(data, given(guest))
        lost = hostd.domain("a")["bytes_lost"]
        guest.answer = False
        wait_for(lambda: hostd.domain("a")["in_flight"] == guest.ask, "all that it asked for, unacknowledged")
        guest.hang_up()
        wait_for(lambda: hostd.domain("a")["bytes_lost"] == lost + guest.ask, "what was in flight is lost")
        assert hostd.status()["ledger_ok"]


def test_a_sick_source_gives_nothing_out_and_the_daemon_stays(tmp_path: Path) -> None:
    with (
        guests(tmp_path, "a") as (guest,),
        Hostd(tmp_path, NO_LIBVIRT + source("/dev/zero", "device") + channel("a", tmp_path)) as hostd,
    ):
        hostd.start()
        wait_for(lambda: hostd.status()["sources"][0]["state"] == "failed", "source failed")
        wait_for(lambda: hostd.domain("a")["state"] == "open", "channel open")

        def all_discarded() -> bool:  # while it is tried again, a read's bytes may wait for their window
            status = hostd.status()["sources"][0]
            return bool(status["bytes_read"] == status["bytes_discarded"] > 0)

        wait_for(all_discarded, "all that was read is discarded")
        assert not guest.taken
        assert hostd.stop() == 0


def test_an_absent_source_is_a_state(tmp_path: Path) -> None:
    with Hostd(tmp_path, NO_LIBVIRT + source("/nonexistent", "device")) as hostd:
        hostd.start()
        found = wait_for(lambda: [s for s in hostd.status()["sources"] if s["state"] == "absent"], "absent")
        assert "No such file" in found[0]["detail"]


def test_a_kernel_prng_is_refused_as_a_device(tmp_path: Path) -> None:
    alias = tmp_path / "hwrng"
    alias.symlink_to("/dev/urandom")
    hostd = Hostd(tmp_path, NO_LIBVIRT + source(str(alias), "device"))
    done = run_command("run", "--config", str(hostd.config))
    assert done.returncode == 2
    assert "kernel's own PRNG" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    with Hostd(tmp_path, NO_LIBVIRT + source("/dev/urandom")) as hostd:
        hostd.start()
        second = run_command("run", "--config", str(hostd.config))
        assert second.returncode == 1
        assert hostd.process is not None
        assert f"pid {hostd.process.pid}" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        hostd.stop(signal.SIGKILL)
        hostd.start()  # a lock that a killed daemon left behind holds nobody up


def test_reload_changes_quotas_without_dropping_a_session(tmp_path: Path) -> None:
    base = config_of(tmp_path, "a", "b", path="/dev/urandom")
    with (
        guests(tmp_path, "a", "b") as served,
        Hostd(tmp_path, base + '[[quota]]\nname = "all"\nmatch = ["*"]\nlimit = "20kB/s"\n') as hostd,
    ):
        hostd.start()
        wait_for(lambda: all(guest.taken for guest in served), "both served")
        assert hostd.domain("a")["limit"] == 20_000
        hostd.write(base + '[[quota]]\nname = "all"\nmatch = ["a"]\nlimit = "100B/s"\nweight = 7\n')
        hostd.send_signal(signal.SIGHUP)
        wait_for(lambda: hostd.domain("a")["limit"] == 100, "the new limit")
        assert hostd.domain("a")["weight"] == 7
        assert hostd.domain("b")["limit"] is None
        assert [len(guest.sessions) for guest in served] == [1, 1]
        before = len(served[1].taken)
        wait_for(lambda: len(served[1].taken) > before + 100_000, "b without a limit")


@pytest.mark.parametrize("trusted", [True, False])
def test_metadata_counts_where_it_is_trusted_and_through_a_reload(tmp_path: Path, trusted: bool) -> None:
    """libvirt's test driver, which lives in the daemon's process, brings the domain."""
    (tmp_path / "vm.sock").touch()
    vm = domain_xml("db", UUID_A, channel_xml(f"{tmp_path}/vm.sock")).replace(
        "<memory>",
        "<metadata><n:quota xmlns:n='urn:netrng:1' weight='300' limit='1MB/s'/></metadata><memory>",
    )
    (tmp_path / "node.xml").write_text(f"<node>{vm}</node>")
    base = source("/dev/urandom") + (
        f'[libvirt]\nuris = ["test://{tmp_path}/node.xml"]\ntrust_metadata = {str(trusted).lower()}\n'
    )
    rule = '[[quota]]\nname = "all"\nmatch = ["*"]\nweight = {}\nburst = {}\nmax_limit = {}\n'
    with Hostd(tmp_path, base + rule.format(7, 5000, 900)).start() as hostd:

        def in_force(*expected: object) -> None:
            keys = ("quota", "weight", "limit", "burst")
            wait_for(lambda: [hostd.domain("db").get(key) for key in keys] == [*expected], f"{expected}")

        in_force(*(("metadata", 300, 900, 5000) if trusted else ("all", 7, None, 5000)))
        hostd.write(base + rule.format(8, 6000, 800))
        hostd.send_signal(signal.SIGHUP)
        in_force(*(("metadata", 300, 800, 6000) if trusted else ("all", 8, None, 6000)))


def reserved(*names: str, rate: int, admission: str = "") -> str:
    quotas = "".join(
        f'[[quota]]\nname = "{name}"\nmatch = ["{name}"]\nreservation = {rate}\n' for name in names
    )
    return f"[admission]\n{admission}{quotas}"


def test_reservations_beyond_the_source_are_refused_until_there_is_room(tmp_path: Path) -> None:
    """The source gives 20,000 B/s; each of three wants 7,500 of the 18,000 that may be promised."""
    names = ("c", "b", "a")  # their order is that of the rules, not of the alphabet
    quotas = reserved(*names, rate=7_500)
    with (
        fed_fifo(tmp_path / "fifo", random.Random(3).randbytes(4_000_000), rate=20_000),
        guests(tmp_path, *names) as served,
        Hostd(tmp_path, config_of(tmp_path, *names, extra=quotas)) as hostd,
    ):
        hostd.start()

        def verdicts() -> dict[str, tuple[str, int]]:
            found = hostd.status()["domains"]
            return {d["name"]: (d["admission"], d["reservation_effective"]) for d in found}

        fits, none = ("promised", 7_500), ("refused", 0)
        # A second that a busy machine made a low one counts for ten.
        wait_for(lambda: verdicts() == {"a": none, "b": fits, "c": fits}, "two are promised")
        wait_for(lambda: all(len(guest.taken) > 1_000 for guest in served), "each is served, by weight too")

        def measured() -> bool:  # on a busy machine one second's measurement may be low, not all of ten
            found = hostd.status()["sources"][0]
            return bool(abs(found["capacity"] - 20_000) < 4_000 and found["capacity_age_s"] < 60)

        wait_for(measured, "about the source's rate")
        wait_for(lambda: hostd.status()["admission"]["promised"] == 15_000, "two promises")
        headroom = reserved(*names, rate=7_500, admission="headroom = 0\npolicy = 'refuse'\n")
        hostd.write(config_of(tmp_path, *names, extra=headroom.replace("7500", "5000")))
        hostd.send_signal(signal.SIGHUP)
        fits = ("promised", 5_000)
        wait_for(lambda: verdicts() == dict.fromkeys(names, fits), "all three are promised")
        assert [len(guest.sessions) for guest in served] == [1, 1, 1]
        seeds = hostd.status()["reservoir"]["seed_stored"]
        wait_for_more(served[0], 3_000, "served on")
        assert hostd.status()["reservoir"]["seed_stored"] == seeds > 0, "no headroom, nothing for the reserve"
        # b may have been refused as well, and promised later, if the first measurement was low.
        assert hostd.log.count("a: its reservation of 7500B/s is refused") == 1
        assert hostd.log.count("a: its reservation of 5kB/s is promised now") == 1


def test_with_policy_refuse_who_does_not_fit_is_not_served_and_shown(tmp_path: Path) -> None:
    quotas = reserved("a", "b", rate=12_000, admission='policy = "refuse"\n')
    with (
        fed_fifo(tmp_path / "fifo", random.Random(4).randbytes(4_000_000), rate=20_000),
        guests(tmp_path, "a", "b", "c") as served,
        Hostd(tmp_path, config_of(tmp_path, "a", "b", "c", extra=quotas)) as hostd,
    ):
        hostd.start()
        wait_for(lambda: hostd.domain("a")["state"] == "open", "a is served")
        wait_for(lambda: hostd.domain("c")["state"] == "open", "c, which reserves nothing, is served")
        refused = hostd.domain("b")
        assert (refused["state"], refused["admission"]) == ("refused", "refused")
        assert "does not fit the source" in refused["detail"]
        assert served[1].connections == 0
        # Empty where the daemon had no time for the question.
        shown = wait_for(lambda: run_command("status", "--config", str(hostd.config)).stdout, "a status")
        assert shown.count("does not fit the source") == 1


def test_the_capacity_of_a_source_that_nobody_asks_is_measured(tmp_path: Path) -> None:
    with (
        guests(tmp_path, "a", ask=64) as (guest,),
        Hostd(tmp_path, config_of(tmp_path, "a", path="/dev/urandom")) as hostd,
    ):
        hostd.start()
        wait_for(lambda: hostd.status()["sources"][0]["capacity"], "a capacity")
        wait_for_more(guest, 1_000, "served")
        status = hostd.status()
        assert status["ledger_ok"]
        size = status["reservoir"]["size"]
        # The capacity is known in the reader's thread, before the loop has booked what was read.
        wait_for(lambda: hostd.status()["sources"][0]["bytes_discarded"] > size, "it was read on")
        # How far the guest is ahead of the reader at one instant is the machine's affair.
        wait_for(lambda: hostd.status()["reservoir"]["stored"] > size - 1024, "it is full again")


def test_samples_shrink_while_many_ask_a_slow_source_and_grow_again(tmp_path: Path) -> None:
    names = [f"vm-{number}" for number in range(20)]
    with (
        fed_fifo(tmp_path / "fifo", random.Random(5).randbytes(4_000_000), rate=4_000),
        guests(tmp_path, *names, ask=512) as served,
        Hostd(tmp_path, config_of(tmp_path, *names)) as hostd,
    ):
        hostd.start()
        wait_for(lambda: hostd.status()["sources"][0]["capacity"], "a capacity")

        def shrunk() -> dict[str, int]:
            """What was sent to each before, if they have shrunk: some of it may not have come yet."""
            status = hostd.status()
            return sent_to(status) if status["sample_size_effective"] == 128 else {}

        before = wait_for(shrunk, "a fifth of a kilobyte for each")

        def late() -> list[list[int]]:
            turns = zip(names, served)
            return [[n for _, at, n in guest.offsets if at >= before[name]] for name, guest in turns]

        wait_for(lambda: min(map(len, late())) > 1, "two turns for each")
        assert all(len(guest.sessions) == 1 for guest in served), "so that its offsets are what was sent"
        assert max(map(max, late())) <= 128
        for guest in served[1:]:
            guest.ask = 0  # content with what it was granted last
        wait_for(lambda: hostd.status()["sample_size_effective"] == 512, "one asks")


def test_a_bad_reload_keeps_the_running_configuration_and_says_so(tmp_path: Path) -> None:
    with Hostd(tmp_path, config_of(tmp_path, "a", path="/dev/urandom")) as hostd, guests(tmp_path, "a"):
        hostd.start()
        hostd.write(config_of(tmp_path, "a", path="/dev/urandom", extra="nonsense = 1\n"))
        hostd.send_signal(signal.SIGHUP)
        wait_for(lambda: "configuration not reloaded" in hostd.log, "the log line")
        assert "nonsense" in hostd.log
        hostd.write(config_of(tmp_path, "b", path="/dev/urandom").replace('"prng"', '"device"'))
        hostd.send_signal(signal.SIGHUP)
        wait_for(lambda: hostd.log.count("configuration not reloaded") == 2, "what no start would take")
        refusals = [line for line in hostd.log.splitlines() if "configuration not reloaded" in line]
        assert refusals[1].endswith('only kind = "prng" may read it')
        assert hostd.domain("a")["name"] == "a"
        hostd.write(config_of(tmp_path, "b", path="/dev/urandom"))
        hostd.send_signal(signal.SIGHUP)
        wait_for(lambda: [d["name"] for d in hostd.status()["domains"]] == ["b"], "the new socket")


@pytest.mark.parametrize(
    "line",
    ['nonsense = 1', 'sample_size = "many"', '[[quota]]\nname = "q"\nmatch = ["*"]\nlimit = "10 furlongs"',
     '[[quota]]\nname = "q"\nmatch = ["*"]\nlimit = 10\nreservation = 11', 'sample_size = 7', 'a = = b'],
)  # fmt: skip
def test_an_invalid_configuration_is_one_line_and_exit_code_2(tmp_path: Path, line: str) -> None:
    path = tmp_path / "hostd.toml"
    path.write_text(line + "\n")
    done = run_command("run", "--config", str(path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(path) in done.stderr


def test_status_without_a_daemon_is_exit_code_3(tmp_path: Path) -> None:
    path = tmp_path / "hostd.toml"
    path.write_text(f'control = "{tmp_path}/nobody.sock"\n')
    done = run_command("status", "--config", str(path))
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1


def test_a_daemon_whose_clock_or_discovery_ended_does_not_stay(tmp_path: Path) -> None:
    hostd = Hostd(tmp_path, NO_LIBVIRT + source("/dev/urandom"))
    broken = "import sys\nfrom netrng_hostd import main, snapshot\nsnapshot.Meters.tick = None\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{broken}sys.exit(main.main(['run', '--config', '{hostd.config}']))"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=ENVIRONMENT,
    )
    assert done.returncode == 1, "so that the service manager starts it anew"
    assert "the clock has ended: internal error: TypeError" in done.stderr
    assert "Traceback" not in done.stderr


def hostile_garbage(guest: Guest) -> None:
    guest.send(random.Random(1).randbytes(1_000_000))


def hostile_huge_length(guest: Guest) -> None:
    header = wire.encode(wire.Grant(guest.session, 1, 0, 0))
    guest.send(header[:4] + b"\xff\xff\xff\xff" + header[8:])


def hostile_half_frames(guest: Guest) -> None:
    for _ in range(200):
        guest.send(wire.encode(wire.Grant(guest.session, 1, 0, 0))[:17])


def hostile_acknowledgement(guest: Guest) -> None:
    guest.send(wire.encode(wire.Grant(guest.session, 1 << 60, 1 << 59, 0)))


def hostile_stale_frames(guest: Guest) -> None:
    stale = wire.encode(wire.Grant(b"bygone!!", 99, 50, 50))
    guest.send(stale * 20_000)


def hostile_flood(guest: Guest) -> None:
    grant = wire.encode(wire.Grant(guest.session, 0, 0, 0))
    knock = wire.encode(wire.Knock(b"knocking"))
    for _ in range(300):
        guest.send((grant + knock) * 50)


def hostile_never_reads(guest: Guest) -> None:
    guest.ask = 65_536
    guest.grant()
    guest.stop_reading()


def hostile_repeats_its_open_and_never_reads(guest: Guest) -> None:
    """Each repeated OPEN is answered: what waits behind the unread samples stops no other guest's."""
    hostile_never_reads(guest)
    opening = wire.encode(wire.Open(guest.session, guest.nonce, 1, 1))
    for _ in range(8):
        guest.send(opening)
        threading.Event().wait(0.4)  # more than one a second is not answered at all


@pytest.mark.parametrize(
    "attack",
    [hostile_garbage, hostile_huge_length, hostile_half_frames, hostile_acknowledgement,
     hostile_stale_frames, hostile_flood, hostile_never_reads, hostile_repeats_its_open_and_never_reads],
)  # fmt: skip
def test_a_hostile_guest_hurts_nobody(tmp_path: Path, attack: Callable[[Guest], None]) -> None:
    with (
        guests(tmp_path, "good", "evil") as (good, evil),
        Hostd(tmp_path, config_of(tmp_path, "good", "evil", path="/dev/urandom",
              extra='[[quota]]\nname="q"\nmatch=["*"]\nlimit="200kB/s"\n')) as hostd,
    ):  # fmt: skip
        hostd.start()
        wait_for(lambda: good.taken and evil.taken, "both served")
        rss = hostd.status()["rss_bytes"]
        rounds = 1 if attack in (hostile_never_reads, hostile_repeats_its_open_and_never_reads) else 3

        def attack_in_rounds() -> None:
            for _ in range(rounds):
                attack(evil)

        attacker = threading.Thread(target=attack_in_rounds, daemon=True)
        attacker.start()
        before = len(good.taken)
        wait_for(lambda: len(good.taken) > before + 200_000, "the good guest served on")
        if rounds == 1:
            attacker.join(PATIENCE_S)
            wait_for_more(good, 100_000, "and on")
        status = hostd.status()
        assert status["ledger_ok"]
        assert status["rss_bytes"] < rss + 8_000_000
        assert len(good.sessions) == 1
        lines = [line for line in hostd.log.splitlines() if "evil" in line]
        assert len(lines) < 30, "a line per event, not per byte"
        assert "Traceback" not in hostd.log

        def given_up() -> bool:
            evil.hang_up()  # again where it was connected anew before the attacker noticed
            return not attacker.is_alive()

        wait_for(given_up, "the attacker's end")


def test_the_daemon_cannot_be_dumped_and_hides_from_others(tmp_path: Path) -> None:
    with Hostd(tmp_path, NO_LIBVIRT + source("/dev/urandom")) as hostd:
        hostd.start()
        assert hostd.process is not None
        # A process that is not dumpable belongs to root in /proc, whoever runs it (proc(5)).
        assert Path(f"/proc/{hostd.process.pid}/environ").stat().st_uid == 0
        limits = Path(f"/proc/{hostd.process.pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
        status = Path(f"/proc/{hostd.process.pid}/status").read_text()
        locked = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmLck"))
        assert (locked > 0) != ("memory is not locked" in hostd.log)


def test_a_process_that_forbids_dumps_is_not_dumpable_as_root_either() -> None:
    text = (
        "import ctypes; from netrng_hostd.operate.process import forbid_dumps\n"
        "dumpable = lambda: ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE\n"
        "before = dumpable(); forbid_dumps(); print(before, dumpable())"
    )
    done = subprocess.run([sys.executable, "-c", text], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1 0\n", "")


def test_it_may_open_as_many_files_as_the_hard_limit_allows(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1_024, limits[1]), limits[1]))
    try:
        with Hostd(tmp_path, NO_LIBVIRT + source("/dev/urandom")).start() as hostd:
            assert hostd.process is not None
            allowed = psutil.Process(hostd.process.pid).rlimit(psutil.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert allowed == (limits[1], limits[1])


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    with (
        ServiceManager(tmp_path) as manager,
        Hostd(tmp_path, NO_LIBVIRT + source("/dev/urandom")) as hostd,
    ):
        hostd.start(ready=False, **manager.environment)
        manager.wait_for("READY=1")
        manager.wait_for("WATCHDOG=1")
        manager.wait_for("WATCHDOG=1")
        hostd.send_signal(signal.SIGHUP)
        manager.wait_for("RELOADING=1\nMONOTONIC_USEC=")
        manager.wait_for("READY=1")
        hostd.send_signal(signal.SIGTERM)
        manager.wait_for("STOPPING=1")
        assert hostd.process is not None and hostd.process.wait(PATIENCE_S) == 0
