# SPDX-License-Identifier: Apache-2.0
"""A test that leaves a task, a thread, a subprocess or a file descriptor behind fails."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest

from netrng_hostd.hypervisor import event_thread

# What is being torn down when a test returns may finish within so many looks, 20 ms apart: where the machine
# stands still for seconds, that is one of them.
GRACE_LOOKS = 150


def _descriptors() -> dict[str, str]:
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[link.name] = str(link.readlink())
        except OSError:  # the descriptor of the listing itself
            continue
    return found


def _children(pid: int | str = "self") -> set[int]:
    """Children and theirs, from the kernel's own list: to look at all processes takes longer."""
    found: set[int] = set()
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:  # the process has ended since it was listed
        return found
    for thread in threads:
        try:
            found.update(map(int, (thread / "children").read_text().split()))
        except OSError:  # the thread has ended
            continue
    return found.union(*map(_children, found))


def _tasks() -> list[object]:
    found: list[object] = []
    for candidate in gc.get_objects():
        try:
            if isinstance(candidate, asyncio.Task) and not candidate.done():
                found.append(candidate)
        except ReferenceError:  # a dead weak proxy
            continue
    return found


@contextmanager
def _cancelled_by_run() -> Iterator[list[str]]:
    """The tasks that asyncio.run() finds when its coroutine has returned; it cancels them without a word."""
    left: list[str] = []
    cancel: Callable[[asyncio.AbstractEventLoop], None] = asyncio.runners._cancel_all_tasks  # type: ignore[attr-defined]

    def record(loop: asyncio.AbstractEventLoop) -> None:
        left.extend(map(repr, asyncio.all_tasks(loop)))
        cancel(loop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.runners, "_cancel_all_tasks", record)
        yield left


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compares before and after; `@pytest.mark.shared_state` exempts what session fixtures start."""
    if request.node.get_closest_marker("shared_state"):
        yield
        return
    threads, fds, children = set(threading.enumerate()), _descriptors(), _children()
    with _cancelled_by_run() as cancelled:
        yield
    for _ in range(GRACE_LOOKS):
        left = {
            "threads": [t.name for t in threading.enumerate() if t not in threads and t.is_alive()],
            "file descriptors": [f"{n} → {p}" for n, p in _descriptors().items() if fds.get(n) != p],
            "subprocesses": sorted(_children() - children),
        }
        if not any(left.values()):
            break
        gc.collect()
        time.sleep(0.02)
    left["tasks"] = [*cancelled, *map(repr, _tasks())]
    leaked = {kind: what for kind, what in left.items() if what}
    assert not leaked, f"left behind: {leaked}"


def pytest_collection_finish() -> None:
    gc.freeze()  # what is here by now is no test's: _tasks need not look at it each time


def pytest_configure(config: pytest.Config) -> None:
    # No test asserts a time, nor how long the machine takes to think of an example.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("netrng", deadline=None, suppress_health_check=slow)
    hypothesis.settings.load_profile("netrng")
    # Who starts the tests in the background or with nohup has them, and all their children, ignore these.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.setdefault("XDG_RUNTIME_DIR", "/tmp")  # a user has one; a bare shell of theirs may not
    config.addinivalue_line("markers", "shared_state: uses what a session-wide fixture started")


@pytest.fixture(scope="module")
def libvirt_events() -> Iterator[None]:
    """libvirt keeps a few descriptors of its event loop for good: before the leak fixture looks."""
    event_thread.start()
    yield
    event_thread.shutdown()
