# SPDX-License-Identifier: Apache-2.0
"""`netrng-hostd check --source NAME`, on devices and FIFOs that misbehave in every way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.edge.rig import ENVIRONMENT, PATIENCE_S, fed_fifo, run_command
from tests.edge.test_egd import Noise, serving
from tests.streams import stream

from netrng_hostd.config import SourceConfig
from netrng_hostd.core import health
from netrng_hostd.main import main
from netrng_hostd.operate.check import host, noise, on_demand
from netrng_hostd.operate.check.noise import TESTS, Limits, Reading, Trial
from netrng_hostd.operate.check.on_demand import run
from netrng_hostd.operate.control import ControlServer
from netrng_hostd.operate.status import DaemonStatus, SourceStatus
from netrng_hostd.sources import SourceFailure, egd

NOISE = stream(65536)
PASSED = f"ok     source t: {', '.join(TESTS)} passed; "
SPENT = "and were thrown away and wiped"
# With these a test ends as soon as it can, and never because the machine stood still.
PATIENT = Limits(most=4096, test_s=PATIENCE_S, silent_s=PATIENCE_S, trickle_s=PATIENCE_S)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may stand still for seconds: who answers late is there all the same."""
    monkeypatch.setattr(host, "CONTROL_S", PATIENCE_S)
    monkeypatch.setattr(egd, "UNKNOWN_S", PATIENCE_S)


@contextlib.contextmanager
def device(data: bytes) -> Iterator[str]:
    """A character device that gives these bytes, up to 4,096, and then nothing."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    before = set(threading.enumerate())
    try:
        assert os.write(master, data) == len(data)
        yield os.ttyname(slave)
    finally:
        for thread in set(threading.enumerate()) - before:
            os.write(master, bytes(2048))  # lets a read that was left behind return
            thread.join(PATIENCE_S)
        os.close(slave)
        os.close(master)


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    """Makes a configuration with one source named t, and others."""

    def write(path: str, *more: str) -> str:
        written = tmp_path / "hostd.toml"
        if not any(line.startswith("stall_timeout") for line in more):
            more = (*more, f"stall_timeout = {PATIENCE_S}")
        keys = "\n".join((f'name = "t"\npath = "{path}"', *more))
        others = '[[source]]\nname = "other"\npath = "/dev/other"\n'
        written.write_text(f'control = "{tmp_path}/hostd.sock"\n[[source]]\n{keys}\n{others}')
        return str(written)

    return write


def test_all_tests_are_named() -> None:
    named = {value for name, value in vars(health).items() if name.isupper() and isinstance(value, str)}
    assert set(TESTS) == named


# What a source gives


def test_a_device_that_is_well(file: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    with device(NOISE[:4096]) as path:
        assert run(file(path), "t", PATIENT) == 0
    said = capsys.readouterr()
    assert said.out.startswith(PASSED + "4096 bytes came, at ")
    assert said.out.endswith(f"B/s, {SPENT}\n")
    assert said.out.count("\n") == 1
    assert said.err == "", "progress is for terminals"


def test_one_that_gave_all_that_was_asked_for_is_not_silent(
    file: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the process stood still since."""
    monkeypatch.setattr(Reading, "silent_s", property(lambda _: 3600.0))
    with device(NOISE[:4096]) as path:
        assert run(file(path), "t", PATIENT._replace(silent_s=7200.0)) == 0
    assert capsys.readouterr().out.startswith(PASSED)


def test_a_claim_below_8_bits(file: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    with device(bytes(value % 16 for value in NOISE[:4096])) as path:
        assert run(file(path, "min_entropy = 4.0"), "t", PATIENT) == 0
    said = capsys.readouterr().out
    assert f", {SPENT}; at min_entropy = 4, conditioning leaves " in said
    rate, left = (
        float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit]
        for number, unit in re.findall(r"([\d.]+) (\w+)/s", said)
    )
    assert 0.38 < left / rate < 0.42, "32 of each 80 bytes"
    with device(bytes(value % 16 for value in NOISE[:4096])) as path:
        assert run(file(path), "t", PATIENT) == 1


def test_zeros(file: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file("/dev/zero"), "t", PATIENT) == 1
    said = capsys.readouterr().out
    assert said.startswith(
        "WRONG  source t: health test alarm (repetition-count) after 6 bytes: 6 equal bytes in a row, "
        "alarm from 6; distrust it: cable, driver, age ("
    )
    assert said.endswith(f"{SPENT})\n")


def test_a_source_that_fails_later(file: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    with device(NOISE[:3000] + bytes(100)) as path:
        assert run(file(path), "t", PATIENT) == 1
    assert "health test alarm (repetition-count) after 3006 bytes:" in capsys.readouterr().out


def test_a_source_that_gives_nothing(file: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    with device(b"") as path:
        assert run(file(path), "t", PATIENT._replace(silent_s=0.2)) == 1
        assert re.sub(r"\d+ s;", "N s;", capsys.readouterr().out) == (
            f"WRONG  source t: {path} gave not one byte within N s; look at its driver (dmesg), and whether "
            "another program reads all of it: netrng-hostd check\n"
        )


def over_once_came(n_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits count once so many bytes have been read, and a second has passed in which no more came."""
    is_over = Reading.is_over

    def over(reading: Reading, limits: Limits) -> bool:
        assert reading.elapsed_s < PATIENCE_S, "its silence is not noticed"
        return reading.trial.n_bytes >= n_bytes and reading.silent_s >= 1 and is_over(reading, limits)

    monkeypatch.setattr(Reading, "is_over", over)


def test_a_trickle(
    file: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    over_once_came(256, monkeypatch)
    for limits in (PATIENT._replace(silent_s=2), PATIENT._replace(trickle_s=2)):
        with device(NOISE[:256]) as path:
            assert run(file(path), "t", limits) == 1
            said = capsys.readouterr().out
            assert f"WRONG  source t: {path} gave 256 of the 1024 bytes of the start-up test within " in said
            assert "(256 bytes came, at " in said


def test_a_slow_one_passes_with_what_came_in_time(
    file: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with fed_fifo(tmp_path / "fifo", NOISE, rate=4000):
        toml = file(str(tmp_path / "fifo"), 'kind = "prng"', "stall_timeout = 60.0")
        assert run(toml, "t", PATIENT._replace(most=65536, test_s=2)) == 0
    _, note, last = capsys.readouterr().out.splitlines()
    assert note == (
        f"note   source t: the program that writes into {tmp_path}/fifo may end with this test (SIGPIPE); "
        "start it again then"
    )
    came = int(last[len(PASSED) :].split()[0])
    assert 1024 <= came < 65536


@pytest.mark.parametrize("kind", ["device", "prng"])
def test_one_that_stops(
    kind: str,
    file: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A read of a device hangs then, one of a PRNG does not."""
    over_once_came(2048, monkeypatch)
    with device(NOISE[:2048]) as path:
        toml = file(path, f'kind = "{kind}"', "stall_timeout = 0.5")
        assert run(toml, "t", PATIENT._replace(test_s=2)) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"WRONG  source t: {path} gave no byte for ")
    assert "(2048 bytes came, at " in last


# Other programs' bytes


def test_a_fifo(file: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with fed_fifo(tmp_path / "fifo", NOISE):
        assert run(file(str(tmp_path / "fifo"), 'kind = "fifo"'), "t", PATIENT) == 0
    note, line = capsys.readouterr().out.splitlines()
    assert "may end with this test (SIGPIPE)" in note
    assert line.startswith(PASSED)


def test_a_fifo_without_a_writer(
    file: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert run(file(str(tmp_path / "fifo"), 'kind = "fifo"'), "t", PATIENT) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"WRONG  source t: no program writes to {tmp_path}/fifo; start the program that writes into it"
    )


def test_an_egd_server(file: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with serving(tmp_path / "egd", Noise()):
        assert run(file(str(tmp_path / "egd"), 'kind = "egd"'), "t", PATIENT) == 0
    assert capsys.readouterr().out.startswith(PASSED)
    assert run(file(str(tmp_path / "egd"), 'kind = "egd"'), "t", PATIENT) == 1
    assert "; start the EGD server (or stunnel) that is to listen there" in capsys.readouterr().out


# What cannot be read


def test_no_device(file: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file("/nonexistent/rng"), "t", PATIENT) == 1
    assert capsys.readouterr().out == (
        "WRONG  source t: cannot open /nonexistent/rng: No such file or directory; "
        "plug the RNG in, load its driver, or set path in [[source]]\n"
    )


def test_what_is_no_hardware(file: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file("/dev/urandom"), "t", PATIENT) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("WRONG  source t: /dev/urandom is the kernel's own PRNG")
    assert run(file("/dev/urandom", 'kind = "prng"'), "t", PATIENT) == 0
    note, line = capsys.readouterr().out.splitlines()
    assert note == "note   source t: /dev/urandom is a pseudo-random stream, for trials only"
    assert line.startswith(PASSED)


@pytest.mark.parametrize(
    ("kind", "state", "what_to_do"),
    [
        ("device", "denied", "run as root"),
        ("device", "error", "see dmesg"),
        ("fifo", "absent", "make it (mkfifo -m 600 /p) and start the program that writes into it"),
        ("egd", "absent", "start the EGD server (or stunnel) that is to listen there"),
    ],
)
def test_how_to_mend_it(kind: str, state: str, what_to_do: str) -> None:
    assert on_demand._mend(SourceConfig("t", kind, "/p"), SourceFailure(state, "why")).startswith(what_to_do)


def test_what_can_have_no_rng_current(file: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file("/dev/zero", 'rng_current = "tpm-rng-0"'), "t", PATIENT) == 1
    assert capsys.readouterr().out == (
        "WRONG  source t: /dev/zero is not the kernel's hardware RNG device (/dev/hwrng), so it cannot have "
        "an rng_current; take rng_current out of [[source]]\n"
    )


def test_a_fifo_in_the_place_of_a_device(
    file: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert run(file(str(tmp_path / "fifo")), "t", PATIENT) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert 'kind = "fifo" reads it' in line


def test_no_such_source(file: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--source", "evil\x1b", "--config", file("/dev/zero")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == r"netrng-hostd: there is no source 'evil\x1b'; allowed: t, other" + "\n"


def test_an_invalid_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hostd.toml").write_text("nonsense = 1\n")
    assert run(str(tmp_path / "hostd.toml"), "t") == 2
    assert "nonsense: unknown key" in capsys.readouterr().out


def test_it_is_no_check_of_the_configuration_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", "--source", "t", "--config-only"])
    assert ended.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err


# Beside a running daemon


def beside_a_daemon(toml: str, path: str) -> int:
    """The exit code, while a daemon says that it reads ``path``."""
    told = DaemonStatus("1", (SourceStatus("t", "device", "healthy", path),), pid=4711)

    async def both() -> int:
        path = f"{Path(toml).parent}/hostd.sock"
        async with ControlServer(path, lambda: told, timeout_s=PATIENCE_S):
            return await asyncio.to_thread(run, toml, "t", PATIENT)

    return asyncio.run(both(), debug=True)


def test_a_device_that_the_daemon_reads_too(
    file: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    with device(NOISE[:4096]) as path:
        assert beside_a_daemon(file(path), path) == 0
        note, _ = capsys.readouterr().out.splitlines()
        assert note == (
            f"note   source t: the running daemon (pid 4711) reads {path} as well: "
            "for the moment of this test each gets a part"
        )
    with device(NOISE[:4096]) as path:
        assert beside_a_daemon(file(path), "/dev/another") == 0
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("kind", ["fifo", "prng"])
def test_a_fifo_that_the_daemon_reads_is_left_alone(
    kind: str, file: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    try:
        os.write(fd, NOISE[:4096])
        assert beside_a_daemon(file(str(path), f'kind = "{kind}"'), str(path)) == 1
        assert os.read(fd, 65536) == NOISE[:4096]
    finally:
        os.close(fd)
    assert capsys.readouterr().out == (
        f"WRONG  source t: the running daemon (pid 4711) reads {path} and would not get what is read here; "
        "netrng-hostd status shows what its own tests say\n"
    )


# The command


def test_progress_is_shown_on_a_terminal(file: Callable[..., str], tmp_path: Path) -> None:
    master, slave = pty.openpty()
    said = b""
    try:
        with fed_fifo(tmp_path / "fifo", NOISE * 2, rate=25_000):
            toml = file(str(tmp_path / "fifo"), 'kind = "prng"')
            with subprocess.Popen(
                [sys.executable, "-m", "netrng_hostd", "check", "--source", "t", "--config", toml],
                stdout=subprocess.PIPE, stderr=slave, env=ENVIRONMENT, text=True,
            ) as command:  # fmt: skip
                end = time.monotonic() + PATIENCE_S
                while command.poll() is None and time.monotonic() < end:
                    if select.select([master], [], [], 0.1)[0]:
                        said += os.read(master, 65536)
                command.kill()
                out = command.communicate()[0]
        os.close(slave)
        with contextlib.suppress(OSError):  # EIO: that was all, its last words as well
            while piece := os.read(master, 65536):
                said += piece
    finally:
        os.close(master)
    assert command.returncode == 0
    assert PASSED in out
    assert b"\r\x1b[Ktesting t: " in said
    assert re.search(rb"testing t: [\d.]+ k?B of 65\.5 kB, \d+ s", said)
    assert said.endswith(b"\r\x1b[K"), "the line is empty again"


def test_a_device_that_hangs_holds_nothing_up(file: Callable[..., str]) -> None:
    """Nor the end of the command."""
    with device(b"") as path:
        code = (
            "import sys; from netrng_hostd.operate.check import on_demand; "
            "sys.exit(on_demand.run(sys.argv[1], 't', on_demand.LIMITS._replace(silent_s=0.1)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, file(path)],
            capture_output=True, text=True, timeout=60, env=ENVIRONMENT,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert "gave not one byte" in done.stdout


# What was read


class Keeping:
    """Gives noise, and keeps a view of each place where it was put."""

    def __init__(self) -> None:
        self.places: list[memoryview] = []
        self._given = 0

    def open(self) -> None:
        pass

    def read_into(self, view: memoryview) -> int:
        view[:] = NOISE[self._given : self._given + len(view)]
        self._given += len(view)
        self.places.append(memoryview(view))
        return len(view)

    def kernel_name(self) -> str | None:
        return None

    def close(self) -> None:
        pass


def test_what_was_read_is_wiped() -> None:
    source = Keeping()
    reading = Reading(source, 8.0, 4000)  # the last window is not full: the tests hold a part of it
    reading.run()
    assert reading.trial.n_bytes == 4000
    assert all(not any(place) for place in source.places)
    assert not any(reading.trial._tests._buffer)
    assert reading.trial.started_up
    assert reading.trial.alarm is None


def test_what_passed_the_tests_is_wiped_and_the_first_alarm_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[bytearray] = []
    feed = health.HealthTests.feed

    def remember(tests: health.HealthTests, noise: memoryview) -> health.Verdict:
        verdict = feed(tests, noise)
        passed.append(verdict.released)
        return verdict

    monkeypatch.setattr(health.HealthTests, "feed", remember)
    trial = Trial(8.0)
    for piece in (NOISE[:1536], bytes(100), NOISE[:1000], b"\xff" * 512):
        trial.feed(memoryview(piece))
    assert [len(released) for released in passed] == [1536, 0, 0, 0]
    assert not any(map(any, passed))
    assert trial.alarm is not None
    assert trial.alarm.offset == 1536 + 6


def test_a_trickle_that_never_pauses_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(noise, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    reading, limits = Reading(Keeping(), 8.0, 4096), Limits(test_s=10.0, silent_s=10.0, trickle_s=60.0)
    for now_s[0] in (9.9, 19.8, 29.7, 39.6, 49.5, 59.4):
        assert not reading.is_over(limits)
        reading._last_s = now_s[0]  # a byte has come
    now_s[0] = 60.0
    assert reading.is_over(limits)


def test_the_limits_are_those_of_the_man_page() -> None:
    page = (Path(__file__).parents[2] / "docs/man/netrng-hostd.8").read_text()
    words = " ".join(page.replace("\\-", "-").split())
    limits = Limits()
    assert f"up to {limits.most:,} bytes or {limits.test_s:.0f} seconds" in words
    assert f"nothing for {limits.silent_s:.0f} seconds" in words
    assert f"within {limits.trickle_s:.0f} seconds" in words


def test_the_command_itself(file: Callable[..., str]) -> None:
    done = run_command("check", "--source", "t", "--config", file("/dev/zero"))
    assert (done.returncode, done.stderr) == (1, "")
    assert "after 6 bytes" in done.stdout
