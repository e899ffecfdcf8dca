# SPDX-License-Identifier: Apache-2.0
"""``netrng-guest check``: each thing that may be missing, and the way to mend it."""

from __future__ import annotations

import errno
import os
import pty
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from netrng_guest import check as module
from netrng_guest import port, variants, xenstore
from netrng_guest.check import check
from netrng_guest.config import Settings

from .rig import PATIENCE_S
from .xenbus import Xenbus

RNGD = Settings("rngd", None, 100, 4096)
KERNEL = Settings("kernel", None, 100, 4096)


@pytest.fixture
def vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A VM in which all is well: a channel (a terminal in its place), an rngd, and the right to credit."""
    host, guest = pty.openpty()
    (tmp_path / "sys" / "vport1p1").mkdir(parents=True)
    (tmp_path / "sys" / "vport1p1" / "name").write_text("org.netrng.0\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "vport1p1").symlink_to(os.ttyname(guest))
    monkeypatch.setattr(xenstore, "DEVICES", ())
    monkeypatch.setattr(xenstore, "SEARCH_S", PATIENCE_S)
    monkeypatch.setattr(module, "_may_credit", lambda: True)
    monkeypatch.setattr(variants, "find_rngd", lambda: "/usr/sbin/rngd")
    monkeypatch.setattr(variants, "identify", lambda path, _: variants.Variant("rng-tools5", "5", [path], 8))
    yield tmp_path
    os.close(host)
    os.close(guest)


def told(settings: Settings, vm: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = check(settings, str(vm / "sys"), str(vm / "dev"))
    return code, capsys.readouterr().out


def test_all_is_well(vm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = told(RNGD, vm, capsys)
    assert code == 0
    assert text.splitlines() == [
        f"ok     channel {vm}/dev/vport1p1",
        "ok     may credit the kernel's pool",
        "ok     /usr/sbin/rngd is version 5 of rng-tools5",
    ]


def test_no_channel(vm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (vm / "sys" / "vport1p1" / "name").write_text("other\n")
    code, text = told(KERNEL, vm, capsys)
    assert code == 1
    assert "wrong  no channel org.netrng.0\n       on the host: netrng-hostd attach DOMAIN" in text
    assert "modprobe" not in text


def test_no_driver(vm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (vm / "sys").rename(vm / "gone")
    code, text = told(KERNEL, vm, capsys)
    assert code == 1
    assert "modprobe virtio_console" in text and "netrng-hostd attach DOMAIN" in text


def test_a_xen_domain(vm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (vm / "sys").rename(vm / "gone")
    with Xenbus({"device/console/1/name": "org.netrng.0"}) as double:
        monkeypatch.setattr(xenstore, "DEVICES", (double.device,))
        (vm / "dev" / "hvc1").symlink_to((vm / "dev" / "vport1p1").readlink())
        code, text = told(KERNEL, vm, capsys)
        assert code == 0 and text.startswith(f"ok     channel {vm}/dev/hvc1\n")
        assert "connected" not in text, "a terminal cannot tell"
        double.tree = {"device/console/1/name": "another"}
        code, text = told(KERNEL, vm, capsys)
    assert code == 1
    assert "wrong  no channel org.netrng.0\n" in text and "attach DOMAIN, then switch the domain off" in text
    assert "after a dummy (the first one is lost)" in text
    assert "modprobe" not in text


def test_no_device_node(vm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (vm / "dev" / "vport1p1").unlink()
    code, text = told(KERNEL, vm, capsys)
    assert code == 1
    assert "mount -t devtmpfs none /dev" in text


@pytest.mark.parametrize(
    ("code", "exit_code", "line"), [(errno.EBUSY, 0, "in use"), (errno.EACCES, 1, "as root")]
)
def test_a_port_that_cannot_be_opened(
    vm: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    exit_code: int,
    line: str,
) -> None:
    def fail(self: port.Port) -> int:
        raise port.PortError(f"{self.path}: {port._explain(OSError(code, ''))}")

    monkeypatch.setattr(port.Port, "open", fail)
    found, text = told(KERNEL, vm, capsys)
    assert found == exit_code
    assert line in text


@pytest.mark.parametrize(
    ("user", "own", "how"),
    [
        (0, False, "on the host: netrng-hostd attach DOMAIN"),
        (0, True, "give another --channel, or none: it is then looked for"),
        (1000, False, "run netrng-guest check as root"),
    ],
)
def test_a_channel_that_is_lost(
    vm: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    user: int,
    own: bool,
    how: str,
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "")

    path = str(vm / "dev" / "vport1p1")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(os, "readv", fail)
    code, text = told(KERNEL._replace(channel=path) if own else KERNEL, vm, capsys)
    assert code == 1
    assert f"wrong  {path}: detached or closed by the host\n       {how}\n" in text


def test_a_channel_of_ones_own(vm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(vm / "socket")
    code, text = told(KERNEL._replace(channel=path), vm, capsys)
    assert code == 1 and f"{path} does not exist" in text
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        assert told(KERNEL._replace(channel=path), vm, capsys)[0] == 0


def test_no_host_is_a_note(
    vm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port.Port, "read_all", lambda self: (bytearray(), False, False))
    code, text = told(KERNEL, vm, capsys)
    assert code == 0
    assert "note   no host is connected to it: is netrng-hostd running?" in text


def test_no_right_to_credit(
    vm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_may_credit", lambda: False)
    code, text = told(KERNEL, vm, capsys)
    assert code == 1
    assert "run as root (CAP_SYS_ADMIN)" in text


def test_a_urandom_that_is_none(
    vm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("/dev/null", "/nonexistent"):
        monkeypatch.setattr(module, "DEVICE", path)
        code, text = told(KERNEL, vm, capsys)
        assert code == 1
        assert f"mknod -m 666 {path} c 1 9" in text


@pytest.mark.parametrize(
    ("error", "note"), [(BlockingIOError(), "not seeded yet"), (OSError(38, ""), "cannot say")]
)
def test_a_pool_that_is_not_seeded_is_a_note(
    vm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, note: str
) -> None:
    def getrandom(size: int, flags: int) -> bytes:
        raise error

    monkeypatch.setattr(os, "getrandom", getrandom)
    code, text = told(KERNEL, vm, capsys)
    assert code == 0
    assert "note   " in text and note in text


def test_no_rngd_and_no_known_rngd(
    vm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "identify", lambda path, _: None)
    code, text = told(RNGD, vm, capsys)
    assert code == 1 and "/usr/sbin/rngd is no rngd that we know" in text

    def slow(path: str, seconds: int) -> variants.Variant:
        raise variants.Slow(f"{path} has not told within {seconds} s what it is")

    monkeypatch.setattr(variants, "identify", slow)
    code, text = told(RNGD, vm, capsys)
    assert code == 1 and "wrong  /usr/sbin/rngd has not told within 12 s what it is\n" in text
    assert "run it: /usr/sbin/rngd --help\n" in text
    monkeypatch.setattr(variants, "find_rngd", lambda: None)
    code, text = told(RNGD, vm, capsys)
    assert code == 1 and "apt install rng-tools5" in text
    assert told(KERNEL, vm, capsys)[0] == 0, "the kernel sink needs no rngd"


def test_the_pipe(vm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = vm / "fifo"
    settings = Settings(f"pipe:{path}", None, None, 4096)
    code, text = told(settings, vm, capsys)
    assert code == 1 and f"mkfifo {path}" in text
    os.mkfifo(path)
    code, text = told(settings, vm, capsys)
    assert code == 0 and f"ok     pipe {path}" in text
    monkeypatch.setattr(os, "access", lambda *_: False)
    code, text = told(settings, vm, capsys)
    assert code == 1 and "cannot be written to" in text


def test_the_right_to_credit_is_read_from_the_capabilities() -> None:
    assert module._may_credit() == (os.geteuid() == 0)
