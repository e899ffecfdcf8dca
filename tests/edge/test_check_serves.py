# SPDX-License-Identifier: Apache-2.0
"""What `check` says of [[serve]]: a place for its socket, and whose the quotas are."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

import pytest

from netrng_hostd.config import Config, ServeConfig
from netrng_hostd.core.quota import QuotaRule
from netrng_hostd.operate.check.finding import Finding, note, problem
from netrng_hostd.operate.check.serves import check_serves
from netrng_hostd.operate.status import DaemonStatus, DomainStatus


def found(path: Path, *rules: QuotaRule, daemon: DaemonStatus | None = None) -> list[Finding]:
    config = Config("/run/x.sock", serves=(ServeConfig("rack", str(path)),), quotas=rules)
    return list(check_serves(config, daemon))


def test_a_place_that_will_do(tmp_path: Path) -> None:
    assert found(tmp_path / "rack.egd") == []
    assert found(tmp_path / "made" / "rack.egd") == []


def test_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "not" / "made" / "rack.egd"
    place = tmp_path / "not"
    assert found(path) == [
        problem(f"serve:rack: there is no folder {place} for {path}; make it, or set path")
    ]


def test_a_folder_of_somebody_else_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert found(tmp_path / "rack.egd") == [
        problem(f"serve:rack: permission denied: {tmp_path}; run as root, or set path to a place of yours")
    ]


def test_something_else_is_there(tmp_path: Path) -> None:
    path = tmp_path / "rack.egd"
    path.write_text("")
    assert found(path) == [
        problem(f"serve:rack: {path} is there and is no socket; remove it, or set path")
    ]


def test_who_listens_there_is_told_from_what_was_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "rack.egd"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        assert found(path) == []
        sock.listen()
        assert found(path) == [
            problem(f"serve:rack: another program listens on {path}; find out which: ss -xlp | grep {path}")
        ]
        name, quota = "serve:rack", (0, 0, 1, None, 64)
        own = DomainStatus(name, name, "", str(path), "serve", "listening", 0, *quota)
        assert found(path, daemon=DaemonStatus("1", domains=(own,))) == []
        unable = dataclasses.replace(own, state="unreachable")
        assert len(found(path, daemon=DaemonStatus("1", domains=(unable,)))) == 1
    assert found(path) == []


def test_a_quota_for_nobody(tmp_path: Path) -> None:
    rules = [
        QuotaRule("typo", ("serve:rock",)),
        QuotaRule("both", ("serve:rack", "serve:typo")),
        QuotaRule("right", ("db-*", "serve:ra*")),
        QuotaRule("all", ("*",)),
    ]
    assert found(tmp_path / "rack.egd", *rules) == [
        note("quota typo: 'serve:rock' matches no [[serve]] of this configuration"),
        note("quota both: 'serve:typo' matches no [[serve]] of this configuration"),
    ]
