# SPDX-License-Identifier: Apache-2.0
"""One thread that makes the blocking calls of one URI, in order.

Not a ThreadPoolExecutor: the interpreter waits for an executor's threads when it exits, and a call to a
libvirtd that hangs never returns.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Future
from typing import Callable, TypeVar

T = TypeVar("T")


class Worker:
    """Runs functions one after the other in a thread of its own.

    A function that never returns holds up this worker alone.  The thread is a daemon thread: it does not
    keep the process alive, and it ends by itself when such a call returns after stop().
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ended: Future[None] = Future()
        self._ended.set_running_or_notify_cancel()  # whoever gives up waiting does not cancel it
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Queue the function; its result or exception arrives in the future."""
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._jobs.put(job)
        return future

    async def call(self, function: Callable[[], T]) -> T:
        """Run the function in the thread and await its result; cancelling does not interrupt it."""
        return await asyncio.wrap_future(self.submit(function))

    def stop(self) -> None:
        """Let the thread end after what is queued."""
        self._jobs.put(None)

    async def ended(self, timeout_s: float) -> bool:
        """Wait for the thread's end after stop(); False if a call holds it up for longer than that."""
        ended = asyncio.wrap_future(self._ended)
        try:
            await asyncio.wait([ended], timeout=timeout_s)
            if not ended.done():
                return False
            self._thread.join()  # its last instruction was to say so
            return True
        finally:
            ended.cancel()

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                break
            job()
            del job  # or it would keep its result alive until the next one comes
        self._ended.set_result(None)
