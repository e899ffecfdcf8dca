# SPDX-License-Identifier: Apache-2.0
"""What the service manager is told."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netrng_hostd.operate import systemd


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind(address)
        yield sock


def test_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with manager(address) as sock:
        assert systemd.notify("READY=1\nSTATUS=serving 3 domains")
        assert sock.recv(1000) == b"READY=1\nSTATUS=serving 3 domains"


def test_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"netrng-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with manager(f"\0{name}") as sock:
        assert systemd.notify("WATCHDOG=1")
        assert sock.recv(1000) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "/nonexistent/notify", "vsock:2:1", "/" + "x" * 200])
def test_nobody_listens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.notify("READY=1")


def test_not_run_by_a_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not systemd.notify("READY=1")


def test_a_manager_that_does_not_read_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with manager(address):
        assert not all(systemd.notify("WATCHDOG=1") for _ in range(100_000))
