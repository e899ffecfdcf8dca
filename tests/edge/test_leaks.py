# SPDX-License-Identifier: Apache-2.0
"""The fixture that fails whoever leaves something behind does see it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEAKING = """
import asyncio, os, subprocess, threading
import tests.conftest
tests.conftest.GRACE_LOOKS = 5
KEPT = []

def test_nothing() -> None:
    asyncio.run(asyncio.sleep(0))

def test_a_task_that_run_cancels() -> None:
    async def main() -> None:
        KEPT.append(asyncio.get_running_loop().create_task(asyncio.sleep(60)))
    asyncio.run(main())

def test_a_thread() -> None:
    threading.Thread(target=threading.Event().wait, args=(20,), daemon=True).start()

def test_a_descriptor() -> None:
    KEPT.append(os.open("/dev/null", os.O_RDONLY))

def test_a_subprocess() -> None:
    KEPT.append(subprocess.Popen(["sleep", "20"], start_new_session=True))

def test_a_task_of_a_loop_of_its_own() -> None:
    loop = asyncio.new_event_loop()
    KEPT.extend([loop, loop.create_task(asyncio.sleep(60))])

def test_end() -> None:
    for kept in KEPT:
        if isinstance(kept, subprocess.Popen):
            kept.kill()
            kept.wait()
"""


def test_what_is_left_behind_is_seen(tmp_path: Path) -> None:
    (tmp_path / "test_leaking.py").write_text(LEAKING)
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
            "-p", "tests.conftest", "--rootdir", str(tmp_path), str(tmp_path),
        ],
        cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "2000"},
    )  # fmt: skip
    found = {
        name: set(ast.literal_eval(kinds))
        for name, kinds in re.findall(
            r"test_leaking\.py::test_(\w+) - .*left behind: (\{.*\})$", done.stdout, re.M
        )
    }
    # The task that stays pending is the last: every test after it would be told of it as well.
    assert found == {
        "a_task_that_run_cancels": {"tasks"},
        "a_thread": {"threads"},
        "a_descriptor": {"file descriptors"},
        "a_subprocess": {"subprocesses"},
        "a_task_of_a_loop_of_its_own": {"tasks", "file descriptors"},
        "end": {"tasks"},
    }, done.stdout + done.stderr
