# SPDX-License-Identifier: Apache-2.0
"""libvirt's one event thread: started once, stopped for certain, startable again."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import libvirt
import pytest

from netrng_hostd.hypervisor import event_thread


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    """libvirt keeps a few descriptors of its event loop for good: before the leak fixture looks."""
    event_thread.start()
    event_thread.shutdown()


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    yield
    event_thread.shutdown()


def _threads() -> int:
    return len([thread for thread in threading.enumerate() if thread.name == "libvirt-events"])


def test_one_thread_however_often_it_is_started_and_none_after_shutdown() -> None:
    assert _threads() == 0
    for _ in range(3):
        event_thread.start()
        event_thread.start()
        assert _threads() == 1
        event_thread.shutdown()
        event_thread.shutdown()
        assert _threads() == 0


def test_timers_run_in_that_thread() -> None:
    event_thread.start()
    names: list[str] = []
    ran = threading.Event()

    def tell(_timer: int, _opaque: object) -> None:
        names.append(threading.current_thread().name)
        ran.set()

    timer = libvirt.virEventAddTimeout(0, tell, None)
    assert ran.wait(20)
    libvirt.virEventRemoveTimeout(timer)
    assert set(names) == {"libvirt-events"}


def test_libvirt_prints_no_errors_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    event_thread.start()
    with pytest.raises(libvirt.libvirtError):
        libvirt.open("qemu+unix:///session?socket=/no/such/socket")
    assert capfd.readouterr() == ("", "")


def test_a_descriptor_can_be_watched_only_while_it_runs() -> None:
    with pytest.raises(RuntimeError):
        event_thread.watch(0, 1, lambda _events: None)
    event_thread.rewatch(0, 1)
    event_thread.unwatch(0)
