# SPDX-License-Identifier: Apache-2.0
"""Finding the channel: a port through sysfs, a console through xenstore; and what to do about none."""

from __future__ import annotations

from pathlib import Path

import pytest

from netrng_guest import xenstore
from netrng_guest.finder import NoChannel, find_channel, find_virtio, how_to_attach

from .rig import PATIENCE_S
from .xenbus import ERROR, HEADER, Xenbus


@pytest.fixture(autouse=True)
def no_xen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenstore, "DEVICES", ())


def make_ports(folder: Path, **names: str) -> str:
    for device, name in names.items():
        (folder / device).mkdir()
        (folder / device / "name").write_text(name + "\n")
    return str(folder)


def missing(sysfs: str) -> tuple[str, str]:
    """What is said of the channel that is not found, and what to do."""
    with pytest.raises(NoChannel) as caught:
        find_channel(sysfs)
    return str(caught.value), caught.value.how


def in_xen(tree: dict[str, str], sysfs: str, monkeypatch: pytest.MonkeyPatch) -> str:
    with Xenbus(tree) as double:
        monkeypatch.setattr(xenstore, "DEVICES", (double.device,))
        monkeypatch.setattr(xenstore, "SEARCH_S", PATIENCE_S)
        return find_channel(sysfs, "/dev")


def test_the_port_is_found_by_its_name(tmp_path: Path) -> None:
    sysfs = make_ports(
        tmp_path, vport0p1="org.qemu.guest_agent.0", vport0p2="org.netrng.0", vport1p1="org.netrng.01"
    )
    (tmp_path / "vport0p0").mkdir()  # a console has no name
    assert find_virtio(sysfs, "/dev") == "/dev/vport0p2"
    assert find_channel(sysfs, "/dev") == "/dev/vport0p2"


def test_no_such_port(tmp_path: Path) -> None:
    sysfs = make_ports(tmp_path, vport0p1="org.netrng.00")
    assert find_virtio(sysfs) is None
    assert missing(sysfs) == ("no channel org.netrng.0", "on the host: netrng-hostd attach DOMAIN")


def test_neither_virtio_nor_xen(tmp_path: Path) -> None:
    text, how = missing(str(tmp_path / "absent"))
    assert text == "no channel org.netrng.0: neither virtio-serial nor Xen is here"
    assert how == "modprobe virtio_console, or on the host: netrng-hostd attach DOMAIN"


@pytest.mark.parametrize(
    ("devids", "numbers"),
    [
        (["1"], [1]),
        (["1", "2", "3"], [1, 2, 3]),
        (["3", "5"], [1, 2]),
        (["2", "1"], [1, 2]),
        (["8", "9", "10", "11"], [1, 2, None, 3]),
    ],
)
def test_the_number_is_the_place_among_those_that_linux_takes(
    devids: list[str], numbers: list[int | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wanted, number in zip(devids, numbers):
        tree = {f"device/console/{devid}/name": f"org.netrng.{int(devid != wanted)}" for devid in devids}
        if number is None:
            with pytest.raises(NoChannel):
                in_xen(tree, str(tmp_path), monkeypatch)
        else:
            assert in_xen(tree, str(tmp_path), monkeypatch) == f"/dev/hvc{number}"


def test_a_console_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {
        "console/tty": "/dev/pts/1",
        "device/console/1/name": "org.qemu.guest_agent.0",
        "device/console/3/state": "4",  # one without a name
        "device/console/4/name": "org.netrng.0",
        "device/console/5/name": "org.netrng.01",
    }
    assert in_xen(tree, str(tmp_path / "absent"), monkeypatch) == "/dev/hvc3"
    assert in_xen(tree, str(tmp_path), monkeypatch) == "/dev/hvc3", "virtio-serial without our port"
    sysfs = make_ports(tmp_path, vport0p1="org.netrng.0")
    assert in_xen(tree, sysfs, monkeypatch) == "/dev/vport0p1", "virtio comes first"


@pytest.mark.parametrize("tree", [{}, {"device/console/1/name": "another", "console/tty": "/dev/pts/1"}])
def test_no_such_console(tree: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoChannel, match=r"^no channel org\.netrng\.0$") as caught:
        in_xen(tree, str(tmp_path / "absent"), monkeypatch)
    assert "netrng-hostd attach DOMAIN, then switch the domain off and start it" in caught.value.how
    assert caught.value.how.endswith("with xl: in its xl.cfg, after a dummy (the first one is lost)")
    assert "modprobe" not in caught.value.how


def test_a_xenstore_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Xenbus, kind: int, request: int, path: str) -> bytes:
        return HEADER.pack(ERROR, request, 0, 7) + b"EACCES\0"

    monkeypatch.setattr(Xenbus, "answer", refuse)
    message = r"^no channel org\.netrng\.0 found: .*: EACCES on device/console$"
    with pytest.raises(NoChannel, match=message) as caught:
        in_xen({}, str(tmp_path / "absent"), monkeypatch)
    assert "--channel /dev/hvcN" in caught.value.how


def test_a_search_takes_so_long_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Xenbus({"device/console/1/name": "org.netrng.0"}) as double:
        monkeypatch.setattr(xenstore, "DEVICES", (double.device,))
        monkeypatch.setattr(xenstore, "SEARCH_S", 0.0)
        with pytest.raises(NoChannel, match="not all answered within 0 s"):
            find_channel(str(tmp_path))
    assert double.asked == []


def test_how_to_attach_depends_on_what_the_channel_is() -> None:
    assert how_to_attach("/dev/vport1p1") == "on the host: netrng-hostd attach DOMAIN"
    assert "then switch the domain off" in how_to_attach("/dev/hvc1")
