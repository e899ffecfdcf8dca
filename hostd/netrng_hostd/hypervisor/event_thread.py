# SPDX-License-Identifier: Apache-2.0
"""The one thread in which libvirt's own event loop runs.

libvirt's asyncio binding (libvirtaio) is not used: libvirt calls an event implementation from whichever
thread happens to open a connection, that one must be called in asyncio's thread alone, and opening a
connection there would freeze the serving of connected domains whenever libvirtd hangs.  libvirt's own
poll loop may be called from any thread; what it finds crosses into asyncio with call_soon_threadsafe.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from netrng_hostd.hypervisor.binding import libvirt
from netrng_hostd.hypervisor.errors import translated

_lock = threading.Lock()
_registered = False
_thread: threading.Thread | None = None
_stop = threading.Event()

# A failing poll(2) must not become a busy loop.
_PAUSE_AFTER_ERROR_S = 0.1


def start() -> None:
    """Register libvirt's event loop and run it, once per process; to be called before any connection.

    Raises UnreachableError where libvirt's Python module is missing.
    """
    global _registered, _thread
    with _lock, translated("libvirt", "start the event loop"):
        if not _registered:
            # libvirt prints each error to stderr besides raising it; raising is enough.
            libvirt.registerErrorHandler(_silence, None)
            libvirt.virEventRegisterDefaultImpl()
            _registered = True
        if _thread is None:
            _stop.clear()
            _thread = threading.Thread(target=_run, name="libvirt-events", daemon=True)
            _thread.start()


def shutdown() -> None:
    """Stop the thread and wait for its end; every connection must be closed before.  start() may follow."""
    global _thread
    with _lock:
        if _thread is None:
            return
        # The poll waits without limit: a timer that is due at once wakes it.
        timer = libvirt.virEventAddTimeout(0, _stop_now, None)
        _thread.join()
        libvirt.virEventRemoveTimeout(timer)
        _thread = None


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
