# SPDX-License-Identifier: Apache-2.0
"""xenstore on its device: what there is, what there is not, and whatever else may come as an answer."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from netrng_guest import xenstore
from netrng_guest.xenstore import Xenstore, XenstoreError

from .xenbus import DIRECTORY, ERROR, HEADER, READ, Xenbus

TREE = {
    "device/console/2/name": "org.netrng.0",
    "device/console/1/name": "org.qemu.guest_agent.0",
    "device/console/1/state": "4",
    "empty": "",
}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenstore, "ANSWER_S", 60.0)


class Answering(Xenbus):
    """Answers every request with ``message``, the request's number in the place of its second field."""

    def __init__(self, kind: int, payload: bytes, size: int | None = None, number: int | None = None) -> None:
        super().__init__({})
        self._message = (kind, payload, len(payload) if size is None else size, number)

    def answer(self, kind: int, request: int, path: str) -> bytes:
        kind, payload, size, number = self._message
        return HEADER.pack(kind, request if number is None else number, 0, size) + payload


@pytest.fixture(params=[1, 7, 1 << 20])
def xenbus(request: pytest.FixtureRequest) -> Iterator[Xenbus]:
    with Xenbus(TREE, chop=request.param) as double:
        yield double


def test_nodes_values_and_what_is_absent(xenbus: Xenbus) -> None:
    with Xenstore(xenbus.device) as store:
        assert store.entries("device/console") == ["2", "1"], "not in xenstore's order"
        assert store.read("device/console/2/name") == "org.netrng.0"
        assert store.read("empty") == ""
        assert store.entries("empty") == []
        assert store.read("device/vif") is None
        assert store.entries("device/vif") == []
    assert xenbus.asked[:2] == [(DIRECTORY, "device/console"), (READ, "device/console/2/name")]


def test_a_whole_payload() -> None:
    with Xenbus({"node": "v" * 4096}, chop=1000) as double, Xenstore(double.device) as store:
        assert store.read("node") == "v" * 4096


def test_what_a_guest_wrote_is_made_printable() -> None:
    with Xenbus({"node": "a\x1b[2J\nb\xff", "list/\x07": ""}) as double, Xenstore(double.device) as store:
        assert store.read("node") == "a�[2J�b�"
        assert store.entries("list") == ["�"]


def test_another_error_is_named() -> None:
    with (
        Answering(ERROR, b"EACCES\0") as double,
        Xenstore(double.device) as store,
        pytest.raises(XenstoreError, match=rf"^{double.device}: EACCES on device/console$"),
    ):
        store.entries("device/console")


@pytest.mark.parametrize(
    ("kind", "payload", "size", "number"),
    [
        (READ, b"x", 4097, None),
        (READ, b"", 0xFFFFFFFF, None),
        (READ, b"x", None, 77),
        (DIRECTORY, b"x\0", None, None),
        (15, b"node\0token\0", None, None),  # a watch event, and nothing is watched
        (0xAAAAAAAA, b"\xaa" * 64, 0xAAAAAAAA, 0xAAAAAAAA),
    ],
)
def test_an_answer_to_something_else(kind: int, payload: bytes, size: int | None, number: int | None) -> None:
    with (
        Answering(kind, payload, size, number) as double,
        Xenstore(double.device) as store,
        pytest.raises(XenstoreError, match=r"answered something else$"),
    ):
        store.read("node")


@pytest.mark.parametrize("size", [None, 100])
def test_no_answer_and_half_a_one(size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenstore, "ANSWER_S", 0.05)
    with Answering(READ, b"half", size) as double:
        if size is None:
            monkeypatch.setattr(double, "answer", lambda *_: b"")
        with Xenstore(double.device) as store, pytest.raises(XenstoreError, match="no answer"):
            store.read("node")


def test_an_answer_that_is_there_is_read_though_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenstore, "ANSWER_S", -1.0)
    host, guest = socket.socketpair()
    store = Xenstore("link")
    store._fd = guest.fileno()
    with guest:
        host.sendall(HEADER.pack(READ, 1, 0, 2) + b"ok")
        assert store.read("node") == "ok"
        host.sendall(HEADER.pack(READ, 2, 0, 2) + b"o")
        host.shutdown(socket.SHUT_WR)
        with pytest.raises(XenstoreError, match=r"^link: ends in mid-answer$"):
            store.read("node")
    host.close()


def test_no_xen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(xenstore, "DEVICES", (str(first), str(second)))
    assert xenstore.find_device() is None
    with pytest.raises(XenstoreError, match=f"^{first}: No such file or directory$"), Xenstore():
        pass
    second.touch()
    assert xenstore.find_device() == str(second)
    first.touch()
    assert xenstore.find_device() == str(first)


@pytest.mark.parametrize(("code", "text"), [(errno.EACCES, "permission denied"), (errno.EIO, "Input/output")])
def test_a_device_that_cannot_be_opened(code: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(XenstoreError, match=f"^/dev/xen/xenbus: {text}"), Xenstore("/dev/xen/xenbus"):
        pass


def test_a_device_that_refuses_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Xenbus({}) as double, Xenstore(double.device) as store:
        monkeypatch.setattr(os, "write", lambda fd, message: len(message) - 1)
        with pytest.raises(XenstoreError, match=r"took half a request$"):
            store.read("node")

        def full(fd: int, message: bytes) -> int:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(XenstoreError, match=r"Resource temporarily unavailable$"):
            store.read("node")
