# SPDX-License-Identifier: Apache-2.0
"""One daemon per control socket, whatever way the last one ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from netrng_hostd.operate.lock import Lock, LockHeld, lock_path

HOLD = """
import sys
from netrng_hostd.operate.lock import Lock
with Lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_beside_the_socket() -> None:
    assert lock_path("/run/netrng/hostd.sock") == "/run/netrng/hostd.lock"


def test_a_second_is_refused_and_told_who(tmp_path: Path) -> None:
    control = str(tmp_path / "hostd.sock")
    with Lock(control), pytest.raises(LockHeld) as caught, Lock(control):
        pass
    assert caught.value.pid == os.getpid()
    assert f"(pid {os.getpid()})" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_free_again_afterwards(tmp_path: Path) -> None:
    control = str(tmp_path / "hostd.sock")
    for _ in range(2):
        with Lock(control) as lock:
            assert Path(lock.path).read_text() == f"{os.getpid()}\n"
        assert Path(lock.path).read_text() == ""


def test_free_when_the_holder_is_killed(tmp_path: Path) -> None:
    control = str(tmp_path / "hostd.sock")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, control],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
    )  # fmt: skip
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(LockHeld) as caught, Lock(control):
            pass
        assert caught.value.pid == child.pid
        child.kill()
        child.wait()
        with Lock(control):
            pass


def test_a_holder_that_did_not_write_its_pid(tmp_path: Path) -> None:
    control = str(tmp_path / "hostd.sock")
    with Lock(control) as lock:
        Path(lock.path).write_text("")
        with (
            pytest.raises(LockHeld, match=r"find out which with: fuser /.*hostd.lock") as caught,
            Lock(control),
        ):
            pass
    assert caught.value.pid is None


def test_makes_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lock(str(tmp_path / "root" / "hostd.sock")):
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with Lock(str(tmp_path / "user" / "hostd.sock")):
        pass
    assert (tmp_path / "user").stat().st_mode & 0o777 == 0o700


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "hostd.lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"), Lock(str(tmp_path / "hostd.sock")):
        pass
    assert victim.read_text() == "precious"
