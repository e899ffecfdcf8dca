# SPDX-License-Identifier: Apache-2.0
"""One thread for blocking calls: in order, off the loop, and never in the way of an end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from tests.edge.lab import until

from netrng_hostd.hypervisor.worker import Worker

HOSTD = Path(__file__).resolve().parents[2] / "hostd"


def test_calls_run_in_order_in_one_other_thread() -> None:
    async def scenario() -> None:
        worker = Worker("w")
        order: list[tuple[int, int]] = []

        def note(number: int) -> None:
            order.append((number, threading.get_ident()))

        jobs = [worker.submit(partial(note, number)) for number in range(20)]
        assert await worker.call(lambda: "after them") == "after them"
        assert [n for n, _ in order] == list(range(20))
        assert {thread for _, thread in order} != {threading.get_ident()}
        assert len({thread for _, thread in order}) == 1
        assert all(job.done() for job in jobs)
        worker.stop()
        assert await worker.ended(20)

    asyncio.run(scenario(), debug=True)


def test_an_exception_is_the_callers() -> None:
    async def scenario() -> None:
        worker = Worker("w")
        with pytest.raises(ZeroDivisionError):
            await worker.call(lambda: 1 // 0)
        assert await worker.call(lambda: 1) == 1
        worker.stop()
        assert await worker.ended(20)

    asyncio.run(scenario(), debug=True)


def test_a_call_that_hangs_holds_up_neither_the_loop_nor_ended() -> None:
    begun, release = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        release.wait(60)

    async def scenario() -> None:
        worker = Worker("w")
        hanging = asyncio.create_task(worker.call(hang))
        await until(begun.is_set)
        queued = worker.submit(lambda: "later")
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        worker.stop()
        assert not await worker.ended(0.05)
        release.set()
        assert await worker.ended(20)
        assert queued.result(0) == "later"

    asyncio.run(scenario(), debug=True)


def test_a_cancelled_call_that_has_not_begun_is_not_made() -> None:
    release = threading.Event()
    made: list[int] = []

    async def scenario() -> None:
        worker = Worker("w")
        worker.submit(lambda: release.wait(60))
        waiting = asyncio.create_task(worker.call(lambda: made.append(1)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        release.set()
        worker.stop()
        assert await worker.ended(20)

    asyncio.run(scenario(), debug=True)
    assert made == []


def test_a_process_with_a_hanging_call_can_end() -> None:
    code = (
        "import threading; from netrng_hostd.hypervisor.worker import Worker; "
        "Worker('w').submit(threading.Event().wait); print('end')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{HOSTD}:{HOSTD.parent / 'guest'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "end\n"
