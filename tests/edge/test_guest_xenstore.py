# SPDX-License-Identifier: Apache-2.0
"""xenstore on its device: what there is, what there is not, and whatever else may come as an answer."""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from netrng_guest import xenstore
from netrng_guest.xenstore import Xenstore, XenstoreError

from .rig import PATIENCE_S
from .xenbus import DIRECTORY, ERROR, HEADER, READ, Xenbus

TREE = {
    "device/console/2/name": "org.netrng.0",
    "device/console/1/name": "org.qemu.guest_agent.0",
    "device/console/1/state": "4",
    "empty": "",
}


def ask(device: str | None = None, seconds: float = PATIENCE_S) -> Xenstore:
    return Xenstore(device, seconds=seconds)


class Answering(Xenbus):
    """Answers every request with this message."""

    def __init__(self, kind: int, payload: bytes, size: int | None = None, number: int = 0) -> None:
        super().__init__({})
        self._message = HEADER.pack(kind, number, 0, len(payload) if size is None else size) + payload

    def answer(self, kind: int, request: int, path: str) -> bytes:
        return self._message


@pytest.fixture(params=[1, 7, 1 << 20])
def xenbus(request: pytest.FixtureRequest) -> Iterator[Xenbus]:
    with Xenbus(TREE, chop=request.param) as double:
        yield double


def test_nodes_values_and_what_is_absent(xenbus: Xenbus) -> None:
    with ask(xenbus.device) as store:
        assert store.entries("device/console") == ["2", "1"], "not in xenstore's order"
        assert store.read("device/console/2/name") == "org.netrng.0"
        assert store.read("empty") == ""
        assert store.entries("empty") == []
        assert store.read("device/vif") is None
        assert store.entries("device/vif") == []
    assert xenbus.asked[:2] == [(DIRECTORY, "device/console"), (READ, "device/console/2/name")]


def test_a_whole_payload() -> None:
    with Xenbus({"node": "v" * 4096}, chop=1000) as double, ask(double.device) as store:
        assert store.read("node") == "v" * 4096


def test_what_a_guest_wrote_is_made_printable() -> None:
    with Xenbus({"node": "a\x1b[2J\nb\xff", "list/\x07": ""}) as double, ask(double.device) as store:
        assert store.read("node") == "a�[2J�b�"
        assert store.entries("list") == ["�"]


def test_another_error_is_named() -> None:
    with (
        Answering(ERROR, b"EACCES\0") as double,
        ask(double.device) as store,
        pytest.raises(XenstoreError, match=rf"^{double.device}: EACCES on device/console$"),
    ):
        store.entries("device/console")


@pytest.mark.parametrize(
    ("kind", "payload", "size"),
    [
        (READ, b"x", 4097),
        (READ, b"", 0xFFFFFFFF),
        (DIRECTORY, b"x\0", None),
        (15, b"node\0token\0", None),  # a watch event, and nothing is watched
        (0xAAAAAAAA, b"\xaa" * 64, 0xAAAAAAAA),
    ],
)
def test_an_answer_to_something_else(kind: int, payload: bytes, size: int | None) -> None:
    with (
        Answering(kind, payload, size) as double,
        ask(double.device) as store,
        pytest.raises(XenstoreError, match=r"answered something else$"),
    ):
        store.read("node")


def test_an_answer_with_a_number_of_the_kernels_own_is_taken() -> None:
    with Answering(READ, b"ok", number=77) as double, ask(double.device) as store:
        assert store.read("node") == "ok"


@pytest.mark.parametrize("size", [None, 100])
def test_no_answer_and_half_a_one(size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with Answering(READ, b"half", size) as double:
        if size is None:
            monkeypatch.setattr(double, "answer", lambda *_: b"")
        # The second is what a machine says that stood still before the question.
        match = "no answer|not all answered"
        with ask(double.device, 0.05) as store, pytest.raises(XenstoreError, match=match):
            store.read("node")


def test_many_nodes_and_a_slow_xenstored_do_not_hold_up_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0
    monkeypatch.setattr(xenstore, "time", SimpleNamespace(monotonic=lambda: now_s))
    tree = {f"device/console/{n}/name": "another" for n in range(1000)}
    with Xenbus(tree) as double, ask(double.device, 2000) as store:
        names = store.entries("device/console")
        with pytest.raises(XenstoreError, match=r"not all answered within 2000 s$"):
            for name in names:
                store.read(f"device/console/{name}/name")
                now_s += 250  # quicker than all that is left for one answer
    assert len(names) == 1000
    assert len(double.asked) == 1 + 2000 // 250


def test_an_answer_that_is_there_is_read_though_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    host, guest = socket.socketpair()
    store = ask("link")
    store._fd = guest.fileno()

    def stand_still(fd: int, message: bytes) -> int:
        store._end_s = 0.0
        return len(message)

    monkeypatch.setattr(os, "write", stand_still)
    with guest:
        for answer in (b"ok", b"o"):
            host.sendall(HEADER.pack(READ, 0, 0, 2) + answer)
        host.shutdown(socket.SHUT_WR)
        store._end_s = math.inf
        assert store.read("node") == "ok"
        store._end_s = math.inf
        with pytest.raises(XenstoreError, match=r"^link: ends in mid-answer$"):
            store.read("node")
    host.close()


def test_no_xen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(xenstore, "DEVICES", (str(first), str(second)))
    assert xenstore.find_device() is None
    with pytest.raises(XenstoreError, match=f"^{first}: No such file or directory$"), ask():
        pass
    second.touch()
    assert xenstore.find_device() == str(second)
    first.touch()
    assert xenstore.find_device() == str(first)


@pytest.mark.parametrize(
    ("code", "text"),
    [(errno.EACCES, r"permission denied \(run as root\)"), (errno.EIO, "Input/output error")],
)
def test_a_device_that_cannot_be_opened(code: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        assert flags & os.O_NONBLOCK, "a read would wait for xenstored for ever"
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(XenstoreError, match=f"^/dev/xen/xenbus: {text}$"), ask("/dev/xen/xenbus"):
        pass


def test_a_device_that_refuses_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Xenbus({}) as double, ask(double.device) as store:
        monkeypatch.setattr(os, "write", lambda fd, message: len(message) - 1)
        with pytest.raises(XenstoreError, match=r"took half a request$"):
            store.read("node")

        def full(fd: int, message: bytes) -> int:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(XenstoreError, match=r"Resource temporarily unavailable$"):
            store.read("node")
