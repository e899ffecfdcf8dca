# SPDX-License-Identifier: Apache-2.0
"""What a device source opens is looked at by its descriptor, whatever its path says by then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netrng_hostd.config import SourceConfig
from netrng_hostd.sources import SourceFailure, identity, make_source
from netrng_hostd.sources.device import DeviceSource


def exchange_while_opening(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    """The path is exchanged for ``other`` between the look at it and its opening."""
    real = os.open
    monkeypatch.setattr(os, "open", lambda _path, flags: real(other, flags))


def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service may be denied /proc (ProcSubset, hidepid); what cannot be looked at is then not there."""
    real = Path.stat

    def stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path)

    monkeypatch.setattr(Path, "stat", stat)


@pytest.mark.parametrize("proc", [True, False])
def test_what_was_opened_counts_and_not_what_the_path_named(
    proc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not proc:
        without_proc(monkeypatch)
    source = DeviceSource("/dev/null")
    exchange_while_opening(monkeypatch, "/dev/urandom")
    with pytest.raises(SourceFailure, match=r"^/dev/null is the kernel's own PRNG") as caught:
        source.open()
    assert caught.value.state == "error"


def test_what_cannot_be_examined_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fstat(_fd: int) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    source = DeviceSource("/dev/zero")
    with monkeypatch.context() as patched:
        without_proc(patched)
        patched.setattr(os, "fstat", fstat)
        try:
            source.open()
        except SourceFailure as failure:
            found = failure
    assert found.detail == "cannot examine /dev/zero: Permission denied"


def test_a_device_is_read_and_closed() -> None:
    source = DeviceSource("/dev/zero")
    source.open()
    buffer = bytearray(b"\xff" * 8)
    assert source.read_into(memoryview(buffer)[:5]) == 5
    assert buffer == bytes(5) + b"\xff" * 3
    source.close()
    source.close()  # harmless


def test_an_end_of_input_is_an_error() -> None:
    source = DeviceSource("/dev/null")
    source.open()
    with pytest.raises(SourceFailure, match="cannot read /dev/null: end of input"):
        source.read_into(memoryview(bytearray(8)))
    source.close()


@pytest.mark.parametrize("kind", ["device", "prng"])
def test_the_kernels_name_is_that_of_the_open_device(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = tmp_path / "rng_current"
    current.write_text("tpm-rng-0\n")
    monkeypatch.setattr(identity, "RNG_CURRENT", current)
    source = make_source(SourceConfig(kind=kind, path="/dev/zero"))
    assert source.kernel_name() is None  # not open
    source.open()
    assert source.kernel_name() is None  # not behind hw_random
    zero = Path("/dev/zero").stat().st_rdev
    monkeypatch.setattr(identity, "HWRNG", (os.major(zero), os.minor(zero)))
    assert source.kernel_name() == "tpm-rng-0"
    current.write_text("none\n")
    assert source.kernel_name() is None
    source.close()
