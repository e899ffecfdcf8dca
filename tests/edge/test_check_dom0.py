# SPDX-License-Identifier: Apache-2.0
"""What `netrng-hostd check` says of a Xen host's domains that libvirt does not list."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st
from tests.edge.rig import PATIENCE_S
from tests.edge.xenbus import ERROR, HEADER, Xenbus

from netrng_guest import xenstore
from netrng_hostd.config import ChannelConfig, Config, LibvirtConfig, load
from netrng_hostd.config.sections import NAME
from netrng_hostd.hypervisor import LiveChannel, LiveDomain, UnreachableError
from netrng_hostd.operate.check import dom0
from netrng_hostd.operate.check.dom0 import XenChannel, XenDomain, channel_name, check_dom0, toml_string
from netrng_hostd.operate.check.domains import Unread, check_domains
from netrng_hostd.operate.check.finding import Finding, note, problem, show

URI = "xen:///system"
PATH = "/var/run/xen/web-1.netrng"
NOBODY = frozenset[int]()
BY_OTHERS = "made by xl or XAPI, libvirt does not list it"
NOT_ASKED = 'no URI in libvirt.uris lists it (if libvirt made it, put "xen:///system" there)'
ELSEWHERE = ("qemu:///system",)


def config(*channels: ChannelConfig, uris: tuple[str, ...] = (URI,), file: str | None = None) -> Config:
    return Config(control="/x", file=file, libvirt=LibvirtConfig(uris), channels=channels)


def domain(number: int, name: str = "web-1") -> dict[str, str]:
    """Its nodes, with those of its primary console, which is no channel."""
    consoles = f"/local/domain/0/backend/console/{number}/0"
    return {f"/local/domain/{number}/name": name, f"{consoles}/state": "4", f"{consoles}/protocol": "vt100"}


def channel(
    number: int, path: str = PATH, device: int = 1, connection: str = "socket", name: str = "org.netrng.0"
) -> dict[str, str]:
    node = f"/local/domain/0/backend/console/{number}/{device}"
    values = {"name": name, "connection": connection, "path": path, "state": "1"}
    return {f"{node}/{key}": value for key, value in values.items() if value}


@contextlib.contextmanager
def dom0_with(*nodes: dict[str, str]) -> Iterator[Xenbus]:
    tree = {"/local/domain/0/name": "Domain-0", "/local/domain/0/backend/vbd": ""}
    for more in nodes:
        tree.update(more)
    with Xenbus(tree) as xenbus, pytest.MonkeyPatch.context() as patched:
        patched.setattr(xenstore, "DEVICES", (xenbus.device,))
        yield xenbus


@pytest.fixture(autouse=True)
def capabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What xenfs says in dom0."""
    file = tmp_path / "capabilities"
    file.write_text("control_d\n")
    monkeypatch.setattr(dom0, "CAPABILITIES", file)
    return file


def said(
    *nodes: dict[str, str], wanted: Config | None = None, listed: frozenset[int] | None = NOBODY
) -> list[Finding]:
    with dom0_with(*nodes):
        return list(check_dom0(wanted or config(), listed, PATIENCE_S))


def told(
    *nodes: dict[str, str], wanted: Config | None = None, listed: frozenset[int] | None = NOBODY
) -> list[str]:
    """Those of which nothing is to be pasted."""
    found = said(*nodes, wanted=wanted, listed=listed)
    assert not any(finding.more for finding in found)
    return [("! " if finding.wrong else "") + finding.text for finding in found]


def lines(name: str = "web-1", path: str = PATH) -> tuple[str, str, str]:
    return "[[channel]]", f'name = "{name}"', f'path = "{path}"'


# Domains that libvirt does not list


def test_the_lines_to_paste() -> None:
    assert said(domain(5), channel(5)) == [
        note(
            f"web-1 (Xen domain 5): {BY_OTHERS}; to serve it, put these lines into /etc/netrng/hostd.toml:",
            *lines(),
        )
    ]
    (found,) = said(domain(5), channel(5), wanted=config(file="/a/b.toml"))
    assert found.text.endswith(" put these lines into /a/b.toml:")


def test_they_stand_below_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    show(note("what:", "[[channel]]", 'name = "a"'))
    assert capsys.readouterr().out == 'note   what:\n       [[channel]]\n       name = "a"\n'


def test_what_was_pasted_is_served_and_not_told_again(tmp_path: Path) -> None:
    (found,) = said(domain(5, "Büro (1)"), channel(5, path='/run/a "b" \\ c'))
    file = tmp_path / "hostd.toml"
    file.write_text("\n".join(('control = "/x"', "[libvirt]", f'uris = ["{URI}"]', *found.more)))
    loaded = load(str(file))
    assert loaded.channels == (ChannelConfig("B-ro-1", '/run/a "b" \\ c'),)
    assert said(domain(5, "Büro (1)"), channel(5, path='/run/a "b" \\ c'), wanted=loaded) == []


def test_a_path_by_another_name_is_the_same_socket(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "var").symlink_to("run")
    served = config(ChannelConfig("any", f"{tmp_path}/run/s"))
    assert said(domain(5), channel(5, path=f"{tmp_path}/var/s"), wanted=served) == []
    assert said(domain(5), channel(5, path=f"{tmp_path}/var/t"), wanted=served) != []


def test_each_gets_a_name_of_its_own() -> None:
    found = said(
        domain(12), channel(12, "/b"), domain(5), channel(5, "/a"), domain(13, "db"), channel(13, "/c"),
        wanted=config(ChannelConfig("db", "/d")),
    )  # fmt: skip
    assert [finding.more for finding in found] == [
        lines("web-1", "/a"), lines("web-1-12", "/b"), lines("db-13", "/c"),
    ]  # fmt: skip


def test_those_that_libvirt_lists_are_not_told() -> None:
    nodes = (domain(5), channel(5), domain(6))
    assert said(*nodes, listed=frozenset({5, 6})) == []
    (found,) = said(*nodes, listed=frozenset({6, 7}))
    assert found.text.startswith("web-1 (Xen domain 5): ")
    assert said(*nodes, listed=None) == [], "libvirt did not answer, and may list them"


def test_without_libvirts_xen_it_is_not_said_who_made_them() -> None:
    (found,) = said(domain(5), channel(5), wanted=config(uris=ELSEWHERE))
    assert found.text.startswith(f"web-1 (Xen domain 5): {NOT_ASKED}; ")
    assert found.more == lines()
    (text,) = told(domain(5), wanted=config(uris=ELSEWHERE))
    assert text.startswith(f"web-1 (Xen domain 5): {NOT_ASKED}; it has no channel")


def test_what_libvirt_made_is_libvirts_to_find() -> None:
    path = "/var/lib/libvirt/libxl/channel/target/web-1"
    assert told(domain(5), channel(5, path), wanted=config(uris=ELSEWHERE)) == [
        'web-1 (Xen domain 5): its channel is one of libvirt\'s; put "xen:///system" into libvirt.uris'
    ]
    served = config(ChannelConfig("any", path), uris=ELSEWHERE)
    assert told(domain(5), channel(5, path), wanted=served) == []
    (found,) = said(domain(5), channel(5, path))
    assert found.more == lines(path=path), "a domain of another libvirt"


def test_two_channels_on_one_socket(tmp_path: Path) -> None:
    """As of a domain that was copied with its path."""
    (tmp_path / "run").mkdir()
    (tmp_path / "var").symlink_to("run")
    path, same = f"{tmp_path}/run/s", f"{tmp_path}/var/s"
    nodes = (domain(5), channel(5, path), domain(6, "db"), channel(6, same), domain(7), channel(7))
    both = (
        f"web-1 (Xen domain 5) and db (Xen domain 6): their channels have the same socket, {path}; "
        "give each domU its own path in xl.cfg"
    )
    for served in (config(), config(ChannelConfig("any", path))):
        found = said(*nodes, wanted=served)
        assert found[0] == problem(both)
        assert [finding.more for finding in found[1:]] == [lines()], "nothing but the third"
    seventh = frozenset({7})
    assert told(*nodes, listed=seventh) == ["! " + both]
    assert told(*nodes, listed=seventh | {5}) == ["! " + both], "xl's is a copy of libvirt's"
    assert told(*nodes, listed=seventh | {5, 6}) == []
    assert told(*nodes, listed=None) == []
    ptys = [more for number in (5, 6) for more in (domain(number), channel(number, "", connection="pty"))]
    assert all("no socket" in text for text in told(*ptys))


def test_the_channel_is_not_connected_to(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.setblocking(False)
        assert len(said(domain(5), channel(5, str(tmp_path / "s")))) == 1
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_domain_without_a_channel() -> None:
    why = "it has no channel, or one that stands first in xl.cfg and is lost"
    rule = "a dummy must come first in channel = [...]"
    text = f"web-1 (Xen domain 5): {BY_OTHERS}; {why}: {rule}"
    assert told(domain(5)) == [text]
    assert told(domain(5), channel(5, name="org.qemu.guest_agent.0")) == [text]


@pytest.mark.parametrize("path", ["", "/dev/pts/7"])
@pytest.mark.parametrize("connection", ["pty", ""])
def test_a_channel_that_is_no_socket(connection: str, path: str) -> None:
    assert told(domain(5), channel(5, path, connection=connection)) == [
        f"! web-1 (Xen domain 5): {BY_OTHERS}; "
        "its channel is no socket: set connection=socket and a path in xl.cfg"
    ]


def test_a_socket_may_lie_in_dev() -> None:
    (found,) = said(domain(5), channel(5, "/dev/shm/x.sock"))
    assert found.more == lines(path="/dev/shm/x.sock")


def test_a_path_that_is_too_long_for_a_socket() -> None:
    longest = "/run/" + 102 * "x"
    (found,) = said(domain(5), channel(5, longest))
    assert found.more == lines(path=longest)
    assert told(domain(5), channel(5, longest + "x")) == [
        f"! web-1 (Xen domain 5): {BY_OTHERS}; "
        "its channel's socket has a path of more than 107 bytes: set a shorter one in xl.cfg"
    ]


@pytest.mark.parametrize(("path", "shown"), [("/run/b\xfcro", "/run/b\ufffdro"), ("run/s", "run/s")])
def test_a_path_that_cannot_stand_in_the_file(path: str, shown: str) -> None:
    assert told(domain(5), channel(5, path)) == [
        f"! web-1 (Xen domain 5): {BY_OTHERS}; its channel's socket is {shown}: "
        "set an absolute path of ASCII characters in xl.cfg"
    ]


def test_who_is_no_vm_is_left_out() -> None:
    ended = {"/local/domain/4/vm": "/vm/x"}
    stub = {**domain(6, "web-1-dm"), "/local/domain/6/target": "5"}
    strange = {"/local/domain/x/name": "x"}
    served = config(ChannelConfig("web-1", PATH))
    assert said(ended, domain(5), channel(5), stub, strange, wanted=served) == []


def test_a_name_that_would_command_the_terminal() -> None:
    (found,) = said(domain(5, "evil\x1b[2J\nname"), channel(5))
    assert found.text.isprintable()
    assert all(line.isprintable() and line.isascii() for line in found.more)


def test_a_name_is_made_printable_whatever_xenstore_let_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = [XenDomain(number, "evil\x1b[2J\nname", XenChannel("socket", path)) for number, path in
            ((5, PATH), (6, "/same"), (7, "/same"))]  # fmt: skip
    monkeypatch.setattr(dom0, "read_domains", lambda _: evil)
    with dom0_with():
        found = list(check_dom0(config(), NOBODY, PATIENCE_S))
    assert len(found) == 2
    for finding in found:
        assert "evil\\x1b[2J\\nname (Xen domain " in finding.text
        assert finding.text.isprintable()


# Whether this is a dom0 at all


def test_no_xen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenstore, "DEVICES", ("/nonexistent/xenbus",))
    monkeypatch.setattr(dom0, "read_domains", lambda _: 1 // 0)
    assert list(check_dom0(config(), NOBODY, PATIENCE_S)) == []


def test_another_domain_than_dom0(capabilities: Path) -> None:
    capabilities.write_text("")
    with dom0_with(domain(5), channel(5)) as xenbus:
        assert list(check_dom0(config(), NOBODY, PATIENCE_S)) == []
        assert xenbus.asked == []


def test_without_xenfs_the_backends_tell(capabilities: Path) -> None:
    capabilities.unlink()
    assert len(said(domain(5), channel(5))) == 1
    tree = {node: value for node, value in domain(5).items() if "backend" not in node}
    with Xenbus(tree) as xenbus, pytest.MonkeyPatch.context() as patched:
        patched.setattr(xenstore, "DEVICES", (xenbus.device,))
        assert list(check_dom0(config(), NOBODY, PATIENCE_S)) == []


def test_a_xenstore_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenstore, "DEVICES", (str(tmp_path),))
    (found,) = check_dom0(config(), NOBODY, PATIENCE_S)
    cannot = "whether there are domains that libvirt does not list cannot be seen: "
    assert found == note(f"{cannot}{tmp_path}: Is a directory")
    assert list(check_dom0(config(uris=("qemu:///system",)), NOBODY, PATIENCE_S)) == []


def test_more_domains_than_one_answer_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    real_answer = Xenbus.answer

    def answer(self: Xenbus, kind: int, request: int, path: str) -> bytes:
        if path != "/local/domain":
            return real_answer(self, kind, request, path)
        return HEADER.pack(ERROR, request, 0, 6) + b"E2BIG\0"

    monkeypatch.setattr(Xenbus, "answer", answer)
    assert told(domain(5)) == [
        "whether there are domains that libvirt does not list cannot be seen: "
        "there are more domains than one answer of xenstore holds"
    ]


def test_a_xenstore_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(xenstore, "DEVICES", (str(tmp_path),))
    monkeypatch.setattr(dom0, "read_domains", lambda _: go_on.wait(PATIENCE_S) and [])
    try:
        (found,) = check_dom0(config(), NOBODY, 0.05)
    finally:
        go_on.set()
    assert found.text.endswith("no answer from xenstore in 0.05 s; see whether xenstored runs")


# With what libvirt lists


def test_one_listing_serves_both() -> None:
    asked: list[str] = []
    live = LiveDomain("web-1", "u", URI, 5, LiveChannel("xen", "/nonexistent", "bind", None))

    def ask(uri: str) -> Sequence[LiveDomain]:
        asked.append(uri)
        return [live] if uri == URI else [dataclasses.replace(live, uri=uri, id=6, channel=None)]

    nodes = [more for number in (5, 6) for more in (domain(number), channel(number, f"/s{number}"))]
    with dom0_with(*nodes):
        found = list(check_domains(config(uris=(URI, "qemu:///system")), ask, PATIENCE_S, PATIENCE_S))
    assert asked == [URI, "qemu:///system"]
    assert [finding.more for finding in found if finding.more] == [lines(path="/s6")], "QEMU's 6 is another"


def test_libvirts_domain_whose_xml_cannot_be_read_is_not_said_to_be_xls() -> None:
    with dom0_with(domain(5), channel(5), domain(6), channel(6, "/s6")):
        found = list(check_domains(config(), lambda _: [Unread(5, "no")], PATIENCE_S, PATIENCE_S))
    assert [finding.more for finding in found if finding.more] == [lines(path="/s6")]


def test_a_libvirt_that_is_down_is_blamed_for_no_domain() -> None:
    def refuse(uri: str) -> Sequence[LiveDomain]:
        raise UnreachableError(f"{uri}: cannot connect")

    with dom0_with(domain(5), channel(5)):
        found = list(check_domains(config(), refuse, PATIENCE_S, PATIENCE_S))
    assert [finding.text for finding in found] == [f"{URI}: cannot connect"]


# What is written into the file


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_is_a_string_of_toml(text: str) -> None:
    written = toml_string(text)
    assert tomli.loads(f"a = {written}") == {"a": text}
    assert written.isascii()
    assert written.isprintable()


@given(st.text(), st.integers(0, 20))
def test_any_domain_has_a_name_that_the_file_may_have(name: str, taken: int) -> None:
    named = XenDomain(65535, name, None)
    names: set[str] = set()
    for _ in range(taken + 1):
        free = channel_name(named, names)
        assert NAME.fullmatch(free)
        assert free not in names
        names.add(free)
