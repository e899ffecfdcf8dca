# SPDX-License-Identifier: Apache-2.0
"""The command as a user runs it: a process of its own, the host at the other end of a socket or terminal."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.edge.guest_lab import DEADLINE_S, Ended, Host, listening, needs_root, needs_strace, stream, until
from tests.edge.test_guest_rngd import STUB

from netrng_guest import __version__
from netrng_guest import main as module
from netrng_guest.main import main

GUEST = Path(__file__).parents[2] / "guest"
COMMAND = ("-m", "netrng_guest")
# As conftest.py does it for what runs in this process: an rngd has time to say what it is.
PATIENT = (
    "-c",
    "import sys; from netrng_guest import main, variants; variants.HELP_S = variants.LIST_S = 60; "
    "sys.exit(main.main())",
)


class Process(subprocess.Popen[bytes]):
    """The agent; ``told`` is what it printed on stderr."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        before: tuple[str, ...] = (),
        command: tuple[str, ...] = COMMAND,
        path: str = "",
        **more: str,
    ) -> None:
        self.log = folder / "stderr"
        environment = {"PATH": path or "/nonexistent", "PYTHONPATH": str(GUEST), "HOME": "/nonexistent"}
        environment.update(more)
        with self.log.open("wb") as errors:
            super().__init__(
                [*before, sys.executable, "-S", *command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )

    @property
    def told(self) -> str:
        return self.log.read_text()

    def __exit__(self, *_: object) -> None:
        if self.poll() is None:
            self.kill()
            self.wait()
        if self.stdout is not None:
            self.stdout.close()

    def finish(self) -> int:
        """The exit code, after SIGTERM if need be."""
        if self.poll() is None:
            self.terminate()
        code = self.wait(DEADLINE_S)
        assert self.stdout is not None
        self.stdout.close()
        assert "Traceback" not in self.told, self.told
        return code


@contextmanager
def served(
    folder: Path, *arguments: str, chop: int = 1 << 20, before: tuple[str, ...] = (), path: str = ""
) -> Iterator[tuple[Process, Host]]:
    """The agent on a UNIX socket, and its host; ``path``: where there is an rngd."""
    with listening(folder) as listener:
        arguments = ("--channel", f"{folder}/channel", *arguments)
        command = PATIENT if path else COMMAND
        with Process(folder, *arguments, before=before, command=command, path=path) as process:
            link, _ = listener.accept()
            with link:
                yield process, Host(link.fileno(), chop=chop)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-m", "netrng_guest", *arguments],
        cwd=GUEST,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def read_into(process: Process, found: bytearray) -> Callable[[], None]:
    assert process.stdout is not None
    fd = process.stdout.fileno()
    os.set_blocking(fd, False)

    def read() -> None:
        with suppress(BlockingIOError):
            found.extend(os.read(fd, 65536))

    return read


@pytest.mark.parametrize("chop", [3, 1 << 20])
def test_stdout_gets_what_follows_the_seed(tmp_path: Path, chop: int) -> None:
    size = 2_000 if chop == 3 else 1_000_000
    with served(tmp_path, "run", "--sink", "stdout", chop=chop) as (process, host):
        found = bytearray()
        read = read_into(process, found)

        def enough() -> bool:
            read()
            return len(found) >= size

        host.until(enough, f"{size} bytes")
        assert found == stream(64, len(found))
        assert process.finish() == 0
        host.until(lambda: host.kinds(Ended), "BYE")
    assert host.session.lost == 0


def test_stdout_whose_reader_goes_is_the_end(tmp_path: Path) -> None:
    with served(tmp_path, "--sink", "stdout") as (process, host):
        host.until(lambda: host.session.sent > 64, "data")
        assert process.stdout is not None
        process.stdout.close()
        host.until(lambda: process.poll() is not None, "the end")
        assert process.returncode == 0
        assert "Traceback" not in process.told


def test_over_a_terminal(tmp_path: Path) -> None:
    host_end, guest_end = pty.openpty()
    with Process(tmp_path, "--sink", "kernel", "--channel", os.ttyname(guest_end)) as process:
        host = Host(host_end, chop=200)
        host.until(lambda: host.session.acked >= 2564, "seed and block")
        assert process.finish() == 0
    os.close(guest_end)
    os.close(host_end)


def test_to_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with served(tmp_path, "--sink", f"pipe:{path}", "--window", "65536") as (process, host):
        host.until(lambda: host.status.get("sink_state") == "waiting-for-reader", "the state")
        host.until(lambda: host.session.acked == 64, "the seed and nothing more")
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        found = bytearray()

        def enough() -> bool:
            with suppress(BlockingIOError):
                found.extend(os.read(reader, 65536))
            return len(found) >= 200_000

        host.until(enough, "200,000 bytes")
        assert found == stream(64, len(found))
        os.close(reader)
        assert process.finish() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_bye_and_without_rngd(tmp_path: Path, number: int) -> None:
    rngd = tmp_path / "bin" / "rngd"
    rngd.parent.mkdir()
    rngd.write_text(STUB.read_text().replace("#!/usr/bin/env python3", f"#!{sys.executable} -IS", 1))
    rngd.chmod(0o755)
    (rngd.parent / "mode").write_text("good")
    expected = "ok" if os.geteuid() == 0 else "no-permission"
    with served(tmp_path, path=str(rngd.parent)) as (process, host):
        host.until(lambda: host.session.acked >= 2572, "a block taken by rngd")
        blocks = rngd.parent / "blocks"
        until(
            lambda: blocks.exists() and blocks.read_bytes() == stream(64 + 8, 2500), "the block, and no other"
        )
        host.until(lambda: host.status.get("sink_state") == expected, expected)
        pid = int((rngd.parent / "starts").read_text())
        process.send_signal(number)
        host.until(lambda: host.kinds(Ended), "BYE")
        until(lambda: process.poll() is not None, "the end")
        assert process.returncode == 0
        assert not Path(f"/proc/{pid}").exists()
        assert "Traceback" not in process.told


def test_a_killed_agent_started_again_gets_a_session_of_its_own(tmp_path: Path) -> None:
    with listening(tmp_path) as listener:
        for _ in range(2):
            with Process(tmp_path, "--sink", "kernel", "--channel", f"{tmp_path}/channel") as process:
                link, _ = listener.accept()
                with link:
                    host = Host(link.fileno())
                    host.until(lambda host=host: host.session.acked >= 64, "a seed")  # type: ignore[misc]
                    process.kill()
                    process.wait()


@needs_root
@needs_strace
def test_strace_counts_the_credits_and_no_call_that_waits_for_random_bytes(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    strace = shutil.which("strace") or ""
    before = (strace, "-f", "-o", str(trace), "-e", "trace=ioctl,getrandom,openat")
    with served(tmp_path, "--sink", "kernel", "--rate", "1000", before=before) as (process, host):
        host.until(lambda: host.session.acked >= 64 + 2500 + 512, "seed, block and more")
        acked = host.session.acked
        lines = trace.read_text().splitlines()
        os.kill(int(lines[0].split()[0]), signal.SIGKILL)  # the agent first: it may go with strace
        process.kill()
    credits = [int(size) for size in re.findall(r"RNDADDENTROPY, \{entropy_count=(\d+)", "\n".join(lines))]
    assert credits[0] == 512
    assert sum(credits) >= 8 * acked
    assert sum("RNDRESEEDCRNG" in line for line in lines) >= 2
    getrandom = [line for line in lines if "getrandom(" in line]
    assert getrandom and all("GRND_NONBLOCK" in line for line in getrandom)
    assert not any('"/dev/random"' in line for line in lines)


def test_a_vm_without_a_channel_or_rngd_is_no_error(tmp_path: Path) -> None:
    with Process(tmp_path, "--sink", "kernel") as process:
        until(lambda: "org.netrng.0" in process.told or "opened" in process.told, "a line")
        assert process.finish() == 0


def test_version_and_help() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"netrng-guest {__version__}\n")
    done = run("--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout and "netrng-guest check" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--sink", "syslog"],
            'netrng-guest: --sink: found "syslog", allowed is rngd, kernel, pipe:PATH or stdout',
        ),
        (["--rate", "fast"], 'netrng-guest: --rate: found "fast"'),
        (["--window", "1"], 'netrng-guest: --window: found "1", allowed is bytes, 64 to 65536'),
        (["--config", "/nonexistent"], "netrng-guest: /nonexistent: no such file"),
        (["check", "--sink", "x"], 'netrng-guest: --sink: found "x"'),
        (["--frobnicate"], "usage: "),
        (["walk"], "usage: "),
        (["--sin", "rngd"], "usage: "),
    ],
)
def test_misuse_is_2_and_starts_nothing(arguments: list[str], told: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(told), done.stderr
    assert "Traceback" not in done.stderr


def test_check_tells_what_is_missing(tmp_path: Path) -> None:
    done = run("check", "--channel", str(tmp_path / "absent"), "--sink", "kernel")
    assert done.returncode == 1
    assert "netrng-hostd attach DOMAIN" in done.stdout
    assert done.stderr == ""


def test_systemd_is_told_by_the_agent_as_it_runs(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE_S)
        arguments = ["--channel", str(tmp_path / "absent"), "--sink", "kernel"]
        with Process(tmp_path, *arguments, NOTIFY_SOCKET=str(tmp_path / "notify")) as process:
            assert manager.recv(100) == b"READY=1"
            assert process.finish() == 0
            assert manager.recv(100) == b"STOPPING=1"


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        module._notify(b"READY=1")
        assert manager.recv(100) == b"READY=1"
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
        module._notify(b"READY=1")
        monkeypatch.delenv("NOTIFY_SOCKET")
        module._notify(b"READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"netrng-test-{os.getpid()}"
        manager.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        module._notify(b"STOPPING=1")
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 0, ""),
        (BrokenPipeError(), 0, ""),
        (OSError(12, "Cannot allocate memory"), 1, "netrng-guest: Cannot allocate memory\n"),
        (ValueError("secret bytes"), 1, "netrng-guest: internal error: ValueError at "),
    ],
)
def test_nothing_ends_in_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    told: str,
) -> None:
    def fail(settings: object) -> int:
        raise error

    monkeypatch.setattr(module, "run", fail)
    assert main(["--sink", "kernel"]) == code
    text = capsys.readouterr().err
    assert text.startswith(told) and "secret" not in text and "Traceback" not in text
