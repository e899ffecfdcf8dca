# SPDX-License-Identifier: Apache-2.0
"""guest.conf and the flags: what is taken, and the one line for what is not."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from netrng_guest import config
from netrng_guest.config import ConfigError, Settings, load, parse_rate
from netrng_hostd.core import spelling

SHIPPED = Path(__file__).parents[2] / "conf" / "guest.conf"
DEFAULTS = Settings(sink="rngd", channel=None, rate=100, window=4096)


def written(folder: Path, text: str) -> str:
    path = folder / "guest.conf"
    path.write_text(text)
    return str(path)


def test_the_defaults_and_an_absent_default_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", str(tmp_path / "absent"))
    assert load(None, {}) == DEFAULTS


def test_the_default_file_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", written(tmp_path, "[netrng]\nwindow = 100\n"))
    assert load(None, {}).window == 100


def test_the_shipped_file_says_what_is_built_in() -> None:
    assert load(str(SHIPPED), {}) == DEFAULTS


def test_the_shipped_files_comments_are_the_defaults(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=[a-z]+ = )", "", SHIPPED.read_text(), flags=re.MULTILINE)
    keys = re.findall(r"^([a-z]+) = ", text, re.MULTILINE)
    assert sorted(keys) == sorted(Settings._fields)
    found = load(written(tmp_path, text), {})
    assert found == DEFAULTS._replace(channel="/dev/vport1p1")


def test_flags_win(tmp_path: Path) -> None:
    path = written(tmp_path, "[netrng]\nsink = stdout\nchannel = /a\nrate = 5\nwindow = 64\n")
    assert load(path, {}) == Settings("stdout", "/a", 5, 64)
    flags = {"sink": "pipe:/p", "channel": "/b", "rate": "none", "window": "65536"}
    assert load(path, flags) == Settings("pipe:/p", "/b", None, 65536)


@pytest.mark.parametrize(
    ("sink", "rate"), [("rngd", 100), ("kernel", 100), ("pipe:/x", None), ("stdout", None)]
)
def test_a_readers_pace_needs_no_rate(sink: str, rate: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", "/nonexistent")
    assert load(None, {"sink": sink}).rate == rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100", 100),
        ("5B/s", 5),
        ("10KiB/s", 10240),
        ("10 KiB/s", 10240),
        ("2kB/s", 2000),
        ("1MiB/s", 1 << 20),
        ("1MB/s", 10**6),
        ("1GiB/s", 1 << 30),
        (" 1.5KiB/s ", 1536),
        ("7/s", 7),
        (str(1 << 40), 1 << 40),
        ("none", None),
    ],
)
def test_rates(text: str, rate: int | None) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "1.5", "1e3", "KiB/s", "1kb/s", "1/m", "٣", "²", "None", "9" * 13, "1 2", "10KiB", "5B",
     "1MB", "0.5B/s", "1KB/s", "1K/s", "10KiB/s/s", "1\n0", str((1 << 40) + 1), "9" * 5000],
)  # fmt: skip
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        parse_rate(text)


@pytest.mark.parametrize(
    "text",
    ["100", "5B/s", "10 KiB/s", "10  KiB/s", "10KiB /s", "1.5KiB/s", "1.0", "1.0/s", "10KiB", "5B", "1kb/s",
     "2000GiB/s", "/s", "7 /s", "1e3/s", "3MB/s", "0.001kB/s", "0.0001kB/s"],
)  # fmt: skip
def test_a_rate_is_written_as_on_the_host(text: str) -> None:
    def read(parse: Callable[[str], int | None]) -> int | None:
        try:
            return parse(text)
        except ValueError:
            return None

    assert read(parse_rate) == read(spelling.parse_rate)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sinc = rngd", 'sinc: found "rngd", allowed keys are sink, channel, rate, window'),
        ("sink = syslog", 'sink: found "syslog", allowed is rngd, kernel, pipe:PATH or stdout'),
        ("sink = pipe:", 'sink: found "pipe:", allowed is rngd, kernel, pipe:PATH or stdout'),
        (
            "rate = 10KiB",
            'rate: found "10KiB", allowed is bytes per second such as 100, "10KiB/s" or "2kB/s", or none',
        ),
        (
            "rate = fast",
            'rate: found "fast", allowed is bytes per second such as 100, "10KiB/s" or "2kB/s", or none',
        ),
        ("rate = none", 'rate: found "none", allowed is with rngd a rate, because rngd takes whatever comes'),
        ("window = 63", 'window: found "63", allowed is bytes, 64 to 65536'),
        ("window = 65537", 'window: found "65537", allowed is bytes, 64 to 65536'),
        ("window = 4KiB", 'window: found "4KiB", allowed is bytes, 64 to 65536'),
        ("channel =", 'channel: found "", allowed is a path'),
    ],
)
def test_one_line_with_file_key_found_and_allowed(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path, f"[netrng]\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert str(caught.value) == f"{path}: {told}"


def test_a_wrong_flag_is_named_as_one() -> None:
    with pytest.raises(ConfigError, match=r'^--window: found "x", allowed is bytes, 64 to 65536$'):
        load(str(SHIPPED), {"window": "x"})


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"[netrng]\n[other]\n", "section [other]: allowed is [netrng]"),
        (b"sink = rngd\n", "File contains no section headers"),
        (b"[netrng]\nsink = rngd\nsink = kernel\n", "already exists"),
        (b"[netrng]\nsink\n", "contains parsing errors"),
        (b"[netrng]\nsink = \xff\n", "not UTF-8 text"),
        (b"[netrng]\nsink = %(x)s\n", 'sink: found "%(x)s"'),
    ],
)
def test_what_is_no_guest_conf(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "guest.conf"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load(str(path), {})
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and told in text and "\n" not in text


def test_a_named_file_must_be_there_and_readable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent: no such file$"):
        load(str(tmp_path / "absent"), {})
    with pytest.raises(ConfigError, match=r": Is a directory$"):
        load(str(tmp_path), {})


@pytest.mark.parametrize("key", ["channel", "sink"])
def test_a_path_that_is_none(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = "pipe:" if key == "sink" else ""
    with pytest.raises(ConfigError, match=f"{key}: found .*, allowed is a path"):
        load(written(tmp_path, f"[netrng]\n{key} = {prefix}/dev/a\0b\n"), {})

    def ascii_only(path: str) -> bytes:  # Python 3.6 in the C locale
        return path.encode("ascii")

    monkeypatch.setattr("netrng_guest.config.os.fsencode", ascii_only)
    with pytest.raises(ConfigError, match=f"{key}: found .*, allowed is a path"):
        load(None, {key: f"{prefix}/tmp/é"})


def test_an_unreadable_file(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    Path(path).chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # who reads everything
            os.seteuid(65534)
        with pytest.raises(ConfigError, match=r": Permission denied$"):
            load(path, {})
    finally:
        os.seteuid(user)
