# SPDX-License-Identifier: Apache-2.0
"""The one thread in which libvirt's own event loop runs.

libvirt's asyncio binding (libvirtaio) is not used: libvirt calls an event implementation from whichever
thread happens to open a connection, that one must be called in asyncio's thread alone, and opening a
connection there would freeze the serving of connected domains whenever libvirtd hangs.  libvirt's own
poll loop may be called from any thread; what it finds crosses into asyncio with call_soon_threadsafe.
"""

from __future__ import annotations

import select
import threading
import time
from typing import Any, Callable

from netrng_hostd.hypervisor.binding import libvirt
from netrng_hostd.hypervisor.errors import translated

_lock = threading.Lock()
_registered = False
_thread: threading.Thread | None = None
_stop = threading.Event()

# libvirt's binding never frees what it remembers of a handle.  So there is one handle, this epoll's, and the
# sockets of streams, which come and go, are in the epoll.
_epoll: select.epoll | None = None
_handle = -1
_ready: dict[int, Callable[[int], None]] = {}

# A failing poll(2) must not become a busy loop.
_PAUSE_AFTER_ERROR_S = 0.1


def start() -> None:
    """Register libvirt's event loop and run it, once per process; to be called before any connection.

    Raises UnreachableError where libvirt's Python module is missing.
    """
    global _registered, _thread, _epoll, _handle
    with _lock, translated("libvirt", "start the event loop"):
        if not _registered:
            # libvirt prints each error to stderr besides raising it; raising is enough.
            libvirt.registerErrorHandler(_silence, None)
            libvirt.virEventRegisterDefaultImpl()
            _registered = True
        if _thread is None:
            _stop.clear()
            _epoll = select.epoll()
            _handle = libvirt.virEventAddHandle(
                _epoll.fileno(), libvirt.VIR_EVENT_HANDLE_READABLE, _dispatch, None
            )
            _thread = threading.Thread(target=_run, name="libvirt-events", daemon=True)
            _thread.start()
            _wait_until_it_runs()


def shutdown() -> None:
    """Stop the thread and wait for its end; every connection must be closed before.  start() may follow."""
    global _thread, _epoll
    with _lock:
        if _thread is None or _epoll is None:
            return
        libvirt.virEventRemoveHandle(_handle)
        # The poll waits without limit: a timer that is due at once wakes it.
        timer = libvirt.virEventAddTimeout(0, _stop_now, None)
        _thread.join()
        libvirt.virEventRemoveTimeout(timer)
        _thread = None
        _epoll.close()
        _epoll = None


def watch(fd: int, events: int, ready: Callable[[int], None]) -> None:
    """Call ``ready(events)`` in the event thread while one of the epoll ``events`` holds; may be spurious."""
    if _epoll is None:
        raise RuntimeError("the event thread does not run")
    _ready[fd] = ready
    _epoll.register(fd, events)


def rewatch(fd: int, events: int) -> None:
    """Change what is waited for."""
    if _epoll is not None:
        _epoll.modify(fd, events)


def unwatch(fd: int) -> None:
    """To be called before the descriptor is closed."""
    if _ready.pop(fd, None) is not None and _epoll is not None:
        _epoll.unregister(fd)


def _dispatch(_watch: int, _fd: int, _events: int, _opaque: Any) -> None:
    if _epoll is None:
        return
    for fd, events in _epoll.poll(0):
        ready = _ready.get(fd)
        if ready is not None:
            ready(events)


def _wait_until_it_runs() -> None:
    running = threading.Event()
    timer = libvirt.virEventAddTimeout(0, lambda _timer, _opaque: running.set(), None)
    running.wait()
    libvirt.virEventRemoveTimeout(timer)


def _run() -> None:
    while not _stop.is_set():
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            time.sleep(_PAUSE_AFTER_ERROR_S)


def _stop_now(_timer: int, _opaque: Any) -> None:
    _stop.set()


def _silence(_context: Any, _error: Any) -> None:
    pass
