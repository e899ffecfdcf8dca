# SPDX-License-Identifier: Apache-2.0
"""One thread's waiting: epoll with a callback for each descriptor, and signals as one more descriptor."""

import errno
import os
import select
import signal
from typing import Callable, Dict, Optional, Set

Callback = Callable[[int], None]  # gets epoll's event bits
MS_NS = 10**6


class Loop:
    """Call ``close`` when done.  One at a time in a process, and only in its main thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._callbacks: Dict[int, Callback] = {}
        self._read_end = self._write_end = -1
        self._old_wakeup = -1
        self.signals: Set[int] = set()

    def watch(self, fd: int, events: int, callback: Callback) -> bool:
        """Calls ``callback`` on ``events``; False for what needs no waiting (a regular file)."""
        try:
            if fd in self._callbacks:
                self._epoll.modify(fd, events)
            else:
                self._epoll.register(fd, events)
        except OSError as error:
            if error.errno == errno.EPERM:
                return False
            raise
        self._callbacks[fd] = callback
        return True

    def unwatch(self, fd: int) -> None:
        """To be called before ``fd`` is closed."""
        if self._callbacks.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass  # a device that vanished took its registration along

    def catch(self, *signals: int) -> None:
        """Lets ``signals`` end the waiting and collects them in ``self.signals``."""
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_wakeup = signal.set_wakeup_fd(self._write_end)
        for number in signals:
            signal.signal(number, lambda *_: None)
        self.watch(self._read_end, select.EPOLLIN, self._on_signal)

    def wait(self, timeout_ns: Optional[int]) -> None:
        """Waits for one event or ``timeout_ns``, None for ever, and calls the callbacks."""
        seconds = None if timeout_ns is None else max(-(-timeout_ns // MS_NS), 0) / 1000
        for fd, events in self._epoll.poll(seconds):
            callback = self._callbacks.get(fd)
            if callback is not None:  # an earlier callback may have unwatched it
                callback(events)

    def close(self) -> None:
        """Gives the descriptors back."""
        if self._write_end >= 0:
            signal.set_wakeup_fd(self._old_wakeup)
            os.close(self._read_end)
            os.close(self._write_end)
            self._read_end = self._write_end = -1
        self._epoll.close()

    def _on_signal(self, events: int) -> None:
        try:
            self.signals.update(os.read(self._read_end, 4096))
        except BlockingIOError:
            pass
