# SPDX-License-Identifier: Apache-2.0
"""Crediting the kernel's pool; where this runs as root, that of the machine, which takes no harm."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tests.edge.guest_lab import needs_root, needs_strace

from netrng_guest import kernel
from netrng_guest.kernel import KernelPool

GUEST = Path(__file__).parents[2] / "guest"


class Ioctls:
    """Stands in for ioctl(2): remembers what was asked and keeps the buffers."""

    def __init__(self, error: OSError | None = None) -> None:
        self.calls: list[tuple[int, bytes]] = []
        self.buffers: list[bytearray] = []
        self.error = error

    def __call__(self, fd: int, request: int, argument: bytearray | int = 0, mutate: bool = False) -> int:
        if isinstance(argument, bytearray):
            self.buffers.append(argument)
            self.calls.append((request, bytes(argument)))
        else:
            self.calls.append((request, b""))
        if self.error is not None:
            raise self.error
        return 0


def test_rand_pool_info_as_linux_random_h_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ioctls = Ioctls()
    monkeypatch.setattr(fcntl, "ioctl", ioctls)
    pool = KernelPool("/dev/null")
    data = bytearray(range(200)) + bytearray(range(200)) + bytearray(200)
    pool.credit(data)
    assert pool.reseed()
    assert [request for request, _ in ioctls.calls] == [0x40085203, 0x40085203, 0x5207]
    assert ioctls.calls[0][1] == struct.pack("=ii", 4096, 512) + data[:512]
    assert ioctls.calls[1][1] == struct.pack("=ii", 704, 88) + data[512:]
    assert not any(any(buffer) for buffer in ioctls.buffers), "the ioctl's buffer was not overwritten"
    assert pool.credited == 600
    assert pool.denied == ""
    pool.close()
    pool.close()


def test_without_permission_the_bytes_are_mixed_in_unpaid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "urandom").touch()
    ioctls = Ioctls(PermissionError(1, "Operation not permitted"))
    monkeypatch.setattr(fcntl, "ioctl", ioctls)
    pool = KernelPool(str(tmp_path / "urandom"))
    pool.credit(bytearray(b"x" * 64))
    pool.reseed()
    pool.close()
    assert (tmp_path / "urandom").read_bytes() == b"x" * 64
    assert pool.denied == "RNDADDENTROPY: Operation not permitted"
    assert pool.credited == 0
    assert not any(any(buffer) for buffer in ioctls.buffers)
    ioctls.error = None
    pool.credit(bytearray(64))
    assert pool.denied == "", "permitted again, and still said to be denied"
    pool.close()


def test_what_is_no_pool_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", Ioctls(OSError(5, "Input/output error")))
    pool = KernelPool("/dev/null")
    with pytest.raises(OSError, match="Input/output error"):
        pool.credit(bytearray(64))
    pool.close()
    with pytest.raises(FileNotFoundError):
        KernelPool("/nonexistent").credit(bytearray(64))
    assert not KernelPool("/nonexistent").reseed()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTTY])
def test_a_kernel_that_knows_no_reseeding(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(fcntl, "ioctl", Ioctls(OSError(code, "")))
    pool = KernelPool("/dev/null")
    assert pool.reseed() is False
    pool.close()


def test_as_this_user_on_this_kernel() -> None:
    pool = KernelPool()
    pool.credit(bytearray(64))
    pool.reseed()
    pool.close()
    assert (pool.credited, bool(pool.denied)) == ((64, False) if os.geteuid() == 0 else (0, True))


@needs_root
@needs_strace
def test_what_strace_sees(tmp_path: Path) -> None:
    text = (
        "from netrng_guest.kernel import KernelPool\n"
        "pool = KernelPool(); pool.credit(bytearray(b'x' * 64)); pool.reseed()"
    )
    trace = tmp_path / "trace"
    subprocess.run(
        ["strace", "-f", "-e", "trace=ioctl", "-o", str(trace), sys.executable, "-S", "-c", text],
        cwd=GUEST,
        check=True,
    )
    seen = [line for line in trace.read_text().splitlines() if "RND" in line]
    assert len(seen) == 2
    assert "RNDADDENTROPY, {entropy_count=512, buf_size=64" in seen[0] and seen[0].endswith("= 0")
    assert "RNDRESEEDCRNG" in seen[1] and seen[1].endswith("= 0")


def test_the_device_is_the_one_that_never_blocks() -> None:
    assert kernel.DEVICE == "/dev/urandom"
