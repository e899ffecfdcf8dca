# SPDX-License-Identifier: Apache-2.0
"""The command line of netrng-hostd, as a person meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.edge.rig import ENVIRONMENT, PATIENCE_S, ServiceManager, run_command, unread_pipe

from netrng_hostd import __version__
from netrng_hostd.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def absent_daemon(tmp_path: Path) -> Path:
    """The configuration of a daemon that does not run."""
    config = tmp_path / "hostd.toml"
    config.write_text(f'control = "{tmp_path}/hostd.sock"\n')
    return config


@pytest.mark.parametrize("command", ["run", "check", "status", "attach", "detach", "quota", "xml"])
def test_every_command_helps_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"example:\n  netrng-hostd {command}" in capsys.readouterr().out


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, wanted in (("--version", f"netrng-hostd {__version__}\n"), ("--help", "examples:")):
        with pytest.raises(SystemExit) as ended:
            main([flag])
        assert ended.value.code == 0
        assert wanted in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["status", "--json", "--watch"],
        ["attach"],
        ["run", "--nonsense"],
        ["xml", "--xen", "--virtio-rng"],
        ["attach", "\udcff"],
        ["detach", "web-1", "--connect", "test:///\udcff"],
        ["quota"],
        ["quota", "web-1", "--wieght", "3"],
        ["quota", "web-1", "--w", "3"],
        ["attach", "web-1", "--conn", "test:///default"],
        ["xml", "--xe"],
    ],
)
def test_misuse_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_run_is_the_default_and_takes_its_flags_alone(tmp_path: Path) -> None:
    path = tmp_path / "hostd.toml"
    path.write_text("nonsense = 1\n")
    for arguments in (["--config", str(path)], ["run", "--config", str(path)]):
        done = run_command(*arguments)
        assert done.returncode == 2
        assert "nonsense" in done.stderr


def test_xml_prints_the_snippet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xml"]) == 0
    assert "<target type='virtio' name='org.netrng.0'/>" in capsys.readouterr().out
    assert main(["xml", "--xen"]) == 0
    assert "<target type='xen' name='org.netrng.0'/>" in capsys.readouterr().out
    assert main(["xml", "--virtio-rng"]) == 0
    said = capsys.readouterr()
    assert "<rng model='virtio'>" in said.out
    assert said.err == ""


def test_numpy_is_imported_by_those_who_test_noise_and_starts_no_threads(absent_daemon: Path) -> None:
    program = f"""if True:
        import os, sys
        from netrng_hostd.main import main
        assert main(["status", "--config", {str(absent_daemon)!r}]) == 3
        assert "numpy" not in sys.modules
        from netrng_hostd.core.health import HealthTests
        HealthTests()
        assert "numpy" in sys.modules
        print(len(os.listdir("/proc/self/task")))
    """
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.stdout.strip() == "1", done.stderr


def test_a_missing_library_is_one_line() -> None:
    paths = {"PYTHONPATH": os.pathsep.join((str(ROOT / "hostd"), str(ROOT / "guest")))}
    done = subprocess.run(
        [sys.executable, "-S", "-m", "netrng_hostd", "status"],
        capture_output=True,
        text=True,
        env={**os.environ, **paths},
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1
    assert "pip install" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["netrng_hostd xml", "netrng_hostd --help", "netrng_guest --help"])
def test_a_reader_that_goes_away_is_no_error_and_a_full_disk_is_one_line(command: str) -> None:
    arguments = [sys.executable, "-m", *command.split()]
    with Path("/dev/full").open("wb") as full, unread_pipe() as unread:
        for stdout, code, told in ((unread, 0, ""), (full, 1, "No space left on device\n")):
            done = subprocess.run(
                arguments,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                env=ENVIRONMENT,
                timeout=PATIENCE_S,
            )
            assert done.returncode == code
            assert done.stderr.endswith(told) and done.stderr.count("\n") == code, done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("netrng_hostd xml --virtio-rng", 0),
        ("netrng_hostd check --config-only --config /nonexistent", 2),
        ("netrng_hostd run --config /nonexistent", 2),
        ("netrng_hostd status --config {config}", 3),
        ("netrng_hostd attach web-1 --connect nonsense:///", 1),
        ("netrng_hostd quota web-1 --weight 0", 2),
        ("netrng_guest check --channel /nonexistent --sink kernel", 1),
        ("netrng_hostd run --nonsense", 2),
        ("netrng_guest --rate nonsense", 2),
        ("netrng_guest --nonsense", 2),
    ],
)
def test_when_nobody_reads_what_it_says_the_exit_code_still_tells(
    command: str, code: int, absent_daemon: Path
) -> None:
    with Path("/dev/full").open("wb") as full, unread_pipe() as unread:
        for stderr, unbuffered in ((unread, ""), (unread, "1"), (full, ""), (full, "1")):
            environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered}
            done = subprocess.run(
                [sys.executable, "-m", *command.format(config=absent_daemon).split()],
                stdout=unread, stderr=stderr, env=environment, timeout=PATIENCE_S,
            )  # fmt: skip
            assert done.returncode == code, (stderr.name, unbuffered)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["netrng_hostd run --config /nonexistent", "netrng_guest --nonsense"])
def test_a_full_disk_is_nothing_to_one_that_writes_nothing_to_it(command: str, unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", *command.split()],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S,
            env={**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == 2
    assert "No space left" not in done.stderr


@pytest.mark.parametrize(
    "command", ["netrng_hostd run --config {config}", "netrng_guest --sink kernel --channel /nonexistent"]
)
def test_a_log_that_nobody_takes_changes_no_exit_code(command: str, absent_daemon: Path) -> None:
    with absent_daemon.open("a") as config:
        config.write(
            '[[source]]\nname = "trial"\nkind = "prng"\npath = "/dev/urandom"\n[libvirt]\nuris = []\n'
        )
    with (
        ServiceManager(absent_daemon.parent) as manager,
        Path("/dev/full").open("wb") as full,
        subprocess.Popen(
            [sys.executable, "-m", *command.format(config=absent_daemon).split()],
            stderr=full, env={**ENVIRONMENT, **manager.environment},
        ) as running,
    ):  # fmt: skip
        try:
            manager.wait_for("READY=1")
            running.terminate()
            assert running.wait(PATIENCE_S) == 0
        finally:
            running.kill()


@pytest.mark.parametrize("files", [">&-", "2>&-", ">&- 2>&-", "| cat"])
@pytest.mark.parametrize(
    "command", ["netrng_hostd check --config", "netrng_hostd run --config", "netrng_guest --sink"]
)
def test_an_argument_that_no_locale_can_show_is_a_wrong_argument(command: str, files: str) -> None:
    line = f"set -o pipefail; {sys.executable} -m {command} $'/tmp/\\xff' {files}"
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env=environment, timeout=PATIENCE_S
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("netrng_hostd --version", 0, ""),
        ("netrng_hostd xml", 0, ""),
        ("netrng_hostd status --config {config}", 3, "no daemon answers"),
        ("netrng_guest --version", 0, ""),
        ("netrng_guest --sink stdout", 2, "sink: stdout, but standard output is closed"),
    ],
)
def test_closed_standard_files_are_no_internal_error(
    command: str, code: int, told: str, absent_daemon: Path
) -> None:
    line = f"exec {sys.executable} -m {command.format(config=absent_daemon)} >&-"
    done = subprocess.run(
        ["sh", "-c", line], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stderr.count("\n")) == (code, int(bool(told))), done.stderr
    assert told in done.stderr
    assert (
        subprocess.run(["sh", "-c", f"{line} <&- 2>&-"], env=ENVIRONMENT, timeout=PATIENCE_S).returncode
        == code
    )


def test_no_file_opened_later_becomes_a_standard_file() -> None:
    text = (
        "import os, sys; from netrng_guest.stdio import fill_closed; os.closerange(0, 3)\n"
        "fill_closed()\n"
        "ends = os.pipe()\n"
        "sys.exit(min(ends) < 3 or {os.readlink(f'/proc/self/fd/{n}') for n in range(3)} != {'/dev/null'})"
    )
    assert subprocess.run([sys.executable, "-c", text], env=ENVIRONMENT, timeout=PATIENCE_S).returncode == 0


def test_a_missing_control_folder_is_named_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "hostd.toml"
    source = '[[source]]\nkind = "prng"\npath = "/dev/urandom"\n'
    path.write_text(f'control = "{tmp_path}/a/b/hostd.sock"\n{source}')
    done = run_command("run", "--config", str(path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"netrng-hostd: control: {tmp_path}/a/b: ")
    assert done.stderr.endswith("; make its folder, or set control\n")
