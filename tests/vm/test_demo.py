# SPDX-License-Identifier: Apache-2.0
"""`make demo`: interrupted, it leaves nothing; without an RNG, it says so and calls its source a PRNG."""

from __future__ import annotations

import io
import os
import re
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
        wait_for(lambda: "of feeding" in log.read_text() or running.poll() is not None, "feeding", 180)
        assert running.poll() is None, log.read_text()
        named = re.search(r"/tmp/netrng-bed-\w+", log.read_text())
        assert named is not None
        folder, user = Path(named[0]), rundir.unprivileged()
        assert len(rundir.processes(folder, user.uid)) > len(demo.QUOTAS), "libvirtd and its QEMUs"
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
        assert running.wait(60) == 130, log.read_text()
        assert rundir.processes(folder, user.uid) == rundir.processes(folder, 0) == []
        assert not folder.exists()
    finally:
        if running.poll() is None:  # failed before: its daemon ends with it, unless it is killed
            running.terminate()
            running.wait(60)
    assert "interrupted; everything is cleaned up" in log.read_text()
    assert "Traceback" not in log.read_text()


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
