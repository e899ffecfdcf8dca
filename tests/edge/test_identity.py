# SPDX-License-Identifier: Apache-2.0
"""Nothing but a device passes for hardware, whatever its name."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from netrng_hostd.config import Config, ConfigError, SourceConfig
from netrng_hostd.sources import identity
from netrng_hostd.sources.identity import (
    is_hwrng,
    is_virtual,
    refuse_reason,
    refuse_sources,
    rng_current,
)


@pytest.mark.parametrize("path", ["/dev/urandom", "/dev/random"])
def test_the_kernels_prng_is_refused(path: str, tmp_path: Path) -> None:
    assert "the kernel's own PRNG" in str(refuse_reason(path, "device"))
    link = tmp_path / "hwrng"
    link.symlink_to(path)
    reason = refuse_reason(str(link), "device")
    assert reason == (
        f'{link} is the kernel\'s own PRNG ({path}), not a hardware RNG; only kind = "prng" may read it'
    )
    assert refuse_reason(path, "prng") is None


def test_the_kernels_prng_by_its_number(tmp_path: Path) -> None:
    node = tmp_path / "hwrng"
    try:
        os.mknod(node, 0o20600, os.makedev(1, 9))
    except PermissionError:
        pytest.skip("needs root")
    assert "the kernel's own PRNG (/dev/urandom)" in str(refuse_reason(str(node), "device"))


def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"4")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    bound = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(bound))
    prng = 'only kind = "prng" may read it'
    for path, what, reader in (
        (file, "a regular file", prng),
        (fifo, "a FIFO", 'kind = "fifo" reads it'),
        (tmp_path, "a directory", prng),
        (bound, "a socket", 'kind = "egd" reads it, if an EGD server listens there'),
    ):
        assert refuse_reason(str(path), "device") == f"{path} is {what}, not a hardware RNG; {reader}"
        assert refuse_reason(str(path), "prng") is None
        as_fifo, as_egd = refuse_reason(str(path), "fifo"), refuse_reason(str(path), "egd")
        assert as_fifo == (None if path == fifo else f"{path} is {what}, not a FIFO")
        assert as_egd == (None if path == bound else f"{path} is {what}, not an EGD server's socket")


def test_a_source_with_an_address_has_no_path_to_refuse() -> None:
    assert refuse_reason("", "egd") is None


def test_one_source_by_two_names_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    fifo, zero = SourceConfig("a", "fifo", str(tmp_path / "fifo")), SourceConfig("b", path="/dev/zero")
    absent = SourceConfig("c", path="/nonexistent/rng")
    port = SourceConfig("d", "egd", "", "localhost:7777")
    others = (
        SourceConfig("e", "fifo", str(tmp_path / "other")), SourceConfig("f", path="/dev/null"),
        SourceConfig("g", path="/nonexistent/other"), SourceConfig("h", "egd", "", "127.0.0.2:7777"),
        SourceConfig("i", "egd", "", "127.0.0.1:7778"),
    )  # fmt: skip
    well = (fifo, zero, absent, port, *others)
    refuse_sources(Config("/x", sources=well))
    for kind, path, address, other in (
        ("fifo", str(tmp_path / "link"), "", "a"),
        ("device", str(tmp_path / "null"), "", "f"),
        ("egd", "", "[::1]:7777", "d"),
        ("egd", "", "127.0.0.1:7777", "d"),
    ):
        twice = SourceConfig("z", kind, path, address)
        with pytest.raises(ConfigError, match=f"source 'z': .* is what source '{other}' reads, at "):
            refuse_sources(Config("/x", sources=(*well, twice)))


def test_a_device_is_not_refused() -> None:
    assert refuse_reason("/dev/null", "device") is None


@pytest.mark.parametrize("path", ["/nonexistent/hwrng", "/dev/null/hwrng", "/a\0b"])
def test_what_cannot_be_examined_is_for_open_to_say(path: str) -> None:
    assert refuse_reason(path, "device") is None
    assert not is_hwrng(path)


def test_only_the_kernels_device_is_hwrng(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_hwrng("/dev/null")
    null = Path("/dev/null").stat().st_rdev
    monkeypatch.setattr(identity, "HWRNG", (os.major(null), os.minor(null)))
    assert is_hwrng("/dev/null")


@pytest.mark.parametrize(
    ("content", "name", "virtual"),
    [
        ("virtio_rng.0\n", "virtio_rng.0", True),
        ("tpm-rng-0\n", "tpm-rng-0", False),
        ("none\n", None, False),
        ("\n", None, False),
    ],
)
def test_rng_current(
    content: str, name: str | None, virtual: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rng_current"
    file.write_text(content)
    monkeypatch.setattr(identity, "RNG_CURRENT", file)
    assert rng_current() == name
    assert is_virtual(rng_current()) is virtual


def test_a_kernel_without_hw_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "RNG_CURRENT", tmp_path / "rng_current")
    assert rng_current() is None
