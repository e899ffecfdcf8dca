# SPDX-License-Identifier: Apache-2.0
"""`make demo`: interrupted, it leaves nothing; without an RNG, it says so and calls its source a PRNG."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bed import demo, rundir
from bed.packages import ROOT, Artefacts
from rich.console import Console
from tests.edge.rig import wait_for
from tests.vm.rig import PYZ

PASSWORD = "pw"
HASH = (  # crypt(5), of the password
    "$6$netrngdemo$TGTp9w7OFOJWcm71tv2csACVtISHvgmgVHymTxXTx2WGLo2.Z5ygovOjToTp44HdCc/duDK/ZjhNk8X6r9Tpg/"
)
# Runs in a namespace of mounts of its own, so that the machine's users and rights stay as they are.
WITH_A_PASSWORD = """
mount --make-rprivate / && mount -t tmpfs tmpfs /run &&
mount --bind "$1/sudoers" /etc/sudoers && mount --bind "$1/shadow" /etc/shadow &&
exec script -qec "$2" /dev/null
"""
AS_NOBODY = """
import os, pwd, subprocess
from pathlib import Path
from bed import demo
from rich.console import Console
nobody, seen = pwd.getpwnam("nobody"), Path("/run/seen")
os.setgroups([])
os.setresgid(*[nobody.pw_gid] * 3)
os.setresuid(*[nobody.pw_uid] * 3)
console = Console(force_terminal=True)
class Watched:
    def must_run(self):
        if Path("/run/watched").exists():
            raise demo.BedError
subprocess.run(["sudo", "true"], check=True)
with demo.process(["sh", "-c", 'id -u > "$0"; exec sleep 240', str(seen)], ["sudo"]) as started:
    daemon = demo.Daemon(started, seen)
    demo.wait_until(lambda: seen.exists() and seen.read_text() == "0\\n", daemon, 60, "a process of root's")
    watched = 'echo "watched with $0"; touch /run/watched; exec sleep 240'
    try:
        demo.watch(["sh", "-c", watched], ["sudo"], 120, console, Watched())
    except demo.BedError:
        print("all has ended")
"""

may_be_root = os.geteuid() == 0 or subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not may_be_root, reason="make demo asks for a password here")
def test_interrupted_it_cleans_up(bed: Artefacts, tmp_path: Path) -> None:
    assert PYZ.exists(), "make guest"
    log = tmp_path / "log"
    with log.open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", "bed.demo"],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "DEMO_SECONDS": "600"},
        )  # fmt: skip
    try:
        wait_for(lambda: "of feeding" in log.read_text() or running.poll() is not None, "feeding", 480)
        assert running.poll() is None, log.read_text()
        named = re.search(r"/tmp/netrng-bed-\w+", log.read_text())
        assert named is not None
        folder, user = Path(named[0]), rundir.unprivileged()
        assert len(rundir.processes(folder, user.uid)) > len(demo.QUOTAS), "libvirtd and its QEMUs"
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
        assert running.wait(180) == 130, log.read_text()
        assert rundir.processes(folder, user.uid) == rundir.processes(folder, 0) == []
        assert not folder.exists()
    finally:
        if running.poll() is None:  # failed before: its daemon ends with it, unless it is killed
            running.terminate()
            running.wait(180)
    assert "interrupted; everything is cleaned up" in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("sudo") is None, reason="root gives a user sudo with a password"
)
@pytest.mark.parametrize("pty", ["use_pty", "!use_pty"])
def test_a_sudo_that_asks_for_a_password_is_asked_once(pty: str, tmp_path: Path) -> None:
    (tmp_path / "sudoers").write_text(f"Defaults {pty}, lecture=never\nnobody ALL=(ALL) ALL\n")
    (tmp_path / "shadow").write_text(f"root:*:19000::::::\nnobody:{HASH}:19000::::::\n")
    (tmp_path / "sudoers").chmod(0o440)
    (tmp_path / "as_nobody.py").write_text(AS_NOBODY)
    inner = shlex.join([sys.executable, str(tmp_path / "as_nobody.py")])
    with subprocess.Popen(
        ["timeout", "300", "unshare", "-m", "sh", "-c", WITH_A_PASSWORD, "sh", str(tmp_path), inner],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LC_ALL": "C"},
    ) as terminal:  # fmt: skip
        assert terminal.stdin is not None and terminal.stdout is not None
        said, answered, output = b"", 0, terminal.stdout.fileno()
        while piece := os.read(output, 4096):
            said += piece
            if said.count(b"password for nobody:") > answered:
                answered += 1
                terminal.stdin.write(PASSWORD.encode() + b"\n")
                terminal.stdin.flush()
    text = said.decode()
    assert terminal.returncode == 0, text
    assert text.count("password for nobody") == 1, text
    assert "watched with --watch" in text and "all has ended" in text, text


@pytest.mark.parametrize("rng", ["/nonexistent/hwrng", "/dev/null"])
def test_without_an_rng_the_source_is_called_a_prng(rng: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(demo, "HWRNG", Path(rng))
    assert demo.choose_source([], Console(file=said, width=200)) == ("prng", "/dev/urandom")
    assert f"no usable {rng} here" in said.getvalue() and "PRNG" in said.getvalue()


def test_what_is_due_is_clamped_by_reservation_and_limit() -> None:
    due = demo.due(demo.QUOTAS, 9600)
    assert {name: round(rate) for name, rate in due.items()} == {"db-1": 6600, "web-1": 2200, "batch-1": 800}
    due = demo.due(demo.QUOTAS, 1200)
    assert {name: round(rate) for name, rate in due.items()} == {"db-1": 1024, "web-1": 88, "batch-1": 88}
