# SPDX-License-Identifier: Apache-2.0
"""Hearing from the kernel that this VM is a copy."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

import pytest
from tests.edge.guest_lab import until

from netrng_guest import generation
from netrng_guest.generation import heard_new_generation, open_uevents

UEVENT = Path("/sys/class/misc/hw_random/uevent")


class FakeSocket:
    """recvfrom with what it is told to return or raise."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    def recvfrom(self, size: int) -> object:
        answer = self.answers.pop(0) if self.answers else BlockingIOError()
        if isinstance(answer, Exception):
            raise answer
        return answer


NEW = b"change@/devices/x\0ACTION=change\0NEW_VMGENID=1\0SEQNUM=7\0"


@pytest.mark.parametrize(
    ("answers", "heard"),
    [
        ([], False),
        ([(NEW, (0, 1))], True),
        ([(b"add@/x\0", (0, 1)), (NEW, (0, 1)), (b"add@/y\0", (0, 1))], True),
        ([(NEW, (4711, 1))], False),  # not the kernel's
        ([(b"add@/x\0NEW_VMGENID=10\0", (0, 1))], False),
        ([(b"add@/x\0XNEW_VMGENID=1\0", (0, 1))], False),
        ([OSError(105, "No buffer space available")], True),  # some were lost: it may have been among them
        ([OSError(105, "No buffer space available"), (b"add@/x\0", (0, 1))], True),
        ([(NEW, (0, 1)), OSError(9, "Bad file descriptor")], True),
    ],
)
def test_what_counts(answers: list[object], heard: bool) -> None:
    assert heard_new_generation(FakeSocket(*answers)) is heard  # type: ignore[arg-type]


def test_an_error_that_stays_ends_the_reading() -> None:
    uevents = FakeSocket(*[OSError(9, "Bad file descriptor")] * 5)
    assert heard_new_generation(uevents) is False  # type: ignore[arg-type]
    assert len(uevents.answers) == 4, "it was read again"


def test_what_is_not_permitted_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise PermissionError(1, "Operation not permitted")

    class Unbound(socket.socket):
        def bind(self, address: object) -> None:
            refuse()

    monkeypatch.setattr(socket, "socket", Unbound)
    assert open_uevents() is None
    monkeypatch.setattr(socket, "socket", refuse)
    assert open_uevents() is None


@pytest.mark.skipif(os.geteuid() != 0 or not UEVENT.exists(), reason="needs root and a device with events")
def test_the_kernels_events_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = str(uuid.uuid4())  # other devices have events as well, /dev/kvm with each VM
    monkeypatch.setattr(generation, "NEW_GENERATION", f"SYNTH_UUID={ours}".encode())
    uevents = open_uevents()
    assert uevents is not None
    with uevents:
        assert not heard_new_generation(uevents)
        UEVENT.write_text(f"change {ours}")
        until(lambda: heard_new_generation(uevents), "the event")
