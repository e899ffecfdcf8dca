# SPDX-License-Identifier: Apache-2.0
"""contrib/xen: what stands there is what xl, libvirt, hostd and udev take; and docs/xen.md says the same."""

from __future__ import annotations

import ast
import fnmatch
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from netrng_hostd.config import load
from netrng_hostd.config.sections import SUN_PATH_MAX
from netrng_hostd.hypervisor.binding import libvirt
from netrng_hostd.hypervisor.domain_edit import is_xen
from netrng_hostd.hypervisor.domain_xml import DEFAULT_CHANNEL_NAME, find_channel, parse_domain
from netrng_hostd.main import main
from netrng_hostd.operate.attach import CHANNEL_XEN

ROOT = Path(__file__).parents[2]
XEN = ROOT / "contrib/xen"
PAGE, README = ROOT / "docs/xen.md", ROOT / "README.md"
RULES = "70-netrng-xen.rules"

# xl.cfg(5), CHANNEL_SPEC_STRING
CHANNEL_KEYS = {"name", "connection", "path", "backend"}
# udev(7): what matches and what assigns, as far as it is used here
RULE = re.compile(r'([A-Z]+(?:\{\w+\})?)(==|!=|\+=|:=|=)"([^"]*)"')
RULE_KEYS = {"SUBSYSTEM", "KERNEL", "TEST", "GOTO", "LABEL", "OWNER", "GROUP", "MODE", "ENV"}


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def xl(source: str) -> dict[str, Any]:
    """The settings of an xl.cfg, which is Python as far as it goes: one literal for each name."""
    found: dict[str, Any] = {}
    for statement in ast.parse(source).body:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        (target,) = statement.targets
        assert isinstance(target, ast.Name)
        assert target.id not in found, f"{target.id} twice"
        assert statement.lineno == statement.end_lineno, f"{target.id} takes more than one line"
        found[target.id] = ast.literal_eval(statement.value)
    return found


def channels(settings: dict[str, Any]) -> list[dict[str, str]]:
    """Each of xl's channels, as its keys and values."""
    return [dict(pair.strip().split("=") for pair in entry.split(",")) for entry in settings["channel"]]


# domu.cfg


def test_the_domu_of_xl_is_a_pv_one() -> None:
    settings = xl(text(XEN / "domu.cfg"))
    assert settings["type"] == "pv"
    assert {"name", "kernel", "ramdisk", "memory", "channel"} <= set(settings)
    assert settings["extra"].split()[-1] == "console=hvc0"


def test_xl_loses_a_dummy_and_not_the_channel() -> None:
    dummy, channel = channels(xl(text(XEN / "domu.cfg")))
    for each in (dummy, channel):
        assert set(each) <= CHANNEL_KEYS
        assert ("path" in each) == (each["connection"] == "socket")
    assert dummy["connection"] == "pty", "nobody can take its socket for the channel's"
    assert dummy["name"] != DEFAULT_CHANNEL_NAME
    assert channel["name"] == DEFAULT_CHANNEL_NAME
    assert channel["connection"] == "socket"


def test_the_socket_of_xl_is_where_it_can_be() -> None:
    _, channel = channels(xl(text(XEN / "domu.cfg")))
    path = Path(channel["path"])
    assert len(bytes(path)) <= SUN_PATH_MAX
    assert path.parent == Path("/run/xen"), "which Debian's /etc/init.d/xen makes, 0700"


def test_xl_and_hostd_speak_of_the_same_socket(tmp_path: Path) -> None:
    settings = xl(text(XEN / "domu.cfg"))
    _, channel = channels(settings)
    (static,) = load(str(XEN / "hostd.toml")).channels
    assert (static.name, static.path) == (settings["name"], channel["path"])
    # domu.cfg's comment and the page have the lines, too
    for source in (re.sub(r"^# ?", "", text(XEN / "domu.cfg"), flags=re.MULTILINE), text(PAGE)):
        lines = re.search(r"^ *\[\[channel\]\]\n *name = .*\n *path = .*\n", source, re.MULTILINE)
        assert lines is not None
        file = tmp_path / "hostd.toml"
        file.write_text(f'control = "/x"\n{lines[0]}')
        assert load(str(file)).channels == (static,)


def test_the_page_shows_the_channel_of_domu_cfg() -> None:
    (shown,) = re.findall(r"^channel = .*$", text(PAGE), re.MULTILINE)
    assert xl(shown)["channel"] == xl(text(XEN / "domu.cfg"))["channel"]


# domu.xml


def test_libvirt_takes_the_domain() -> None:
    """Its test driver does, by the schema, with a type of domain that is not its own."""
    connection = libvirt.open("test:///default")
    try:
        libvirt.registerErrorHandler(lambda *_: None, None)
        domain = connection.defineXMLFlags(text(XEN / "domu.xml"), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        kept = parse_domain(domain.XMLDesc(0))
        domain.undefine()
    finally:
        connection.close()
    assert find_channel(kept, DEFAULT_CHANNEL_NAME) is not None


def test_the_domain_of_libvirt_has_the_channel() -> None:
    source = text(XEN / "domu.xml")
    assert is_xen(source)
    root = parse_domain(source)
    found = find_channel(root, DEFAULT_CHANNEL_NAME)
    assert found is not None
    assert canonical(ElementTree.tostring(found, encoding="unicode")) == canonical(CHANNEL_XEN)
    assert canonical(text(ROOT / "conf/libvirt/channel-xen.xml")) == canonical(CHANNEL_XEN)


def canonical(xml: str) -> str:
    return ElementTree.canonicalize(xml, strip_text=True)


# hostd.toml


def test_hostds_configuration_is_a_good_one(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(XEN / "hostd.toml")
    assert main(["check", "--config-only", "--config", file]) == 0
    assert load(file).libvirt.uris == ("xen:///system",)
    assert load(file).libvirt.transport == "socket"
    assert capsys.readouterr().err == ""


def test_the_pages_sed_makes_the_configuration_one_for_xen(tmp_path: Path) -> None:
    command = re.search(r"sed -i 's,([^,]*),([^,]*),' /etc/netrng/hostd\.toml", text(PAGE))
    assert command is not None
    file = tmp_path / "hostd.toml"
    file.write_text(text(ROOT / "conf/hostd.toml").replace(command[1], command[2]))
    assert load(str(file)).libvirt.uris == ("xen:///system",)


# The udev rule


def rules() -> list[list[tuple[str, str, str]]]:
    """Each rule's (key, operator, value)."""
    found = []
    for line in text(XEN / RULES).splitlines():
        if line and not line.startswith("#"):
            tokens = RULE.findall(line)
            assert ", ".join(f'{key}{operator}"{value}"' for key, operator, value in tokens) == line
            found.append(tokens)
    return found


def apply(device: dict[str, str], present: set[str]) -> dict[str, str]:
    """What the rules set for a device, as udev reads them: all matches of a line, then its assignments."""
    done: dict[str, str] = {}
    target = ""
    for rule in rules():
        if target and ("LABEL", "=", target) not in rule:
            continue
        target = ""
        for key, operator, value in rule:
            assert key.partition("{")[0] in RULE_KEYS
            if operator in ("==", "!="):
                holds = value in present if key == "TEST" else fnmatch.fnmatchcase(device[key], value)
                if holds != (operator == "=="):
                    break
            elif key == "GOTO":
                target = value
            elif key != "LABEL":
                done[key] = value
    assert not target, f"no label {target}"
    return done


CLOSED = {"OWNER": "root", "GROUP": "root", "MODE": "0600"}


@pytest.mark.parametrize("present", [{"/dev/xen/xenbus"}, {"/proc/xen"}, {"/dev/xen/xenbus", "/proc/xen"}])
def test_the_channels_of_a_domu_are_roots_alone(present: set[str]) -> None:
    for number in range(1, 8):
        done = apply({"SUBSYSTEM": "tty", "KERNEL": f"hvc{number}"}, present)
        assert CLOSED.items() <= done.items()
        assert done["ENV{ID_MM_DEVICE_IGNORE}"] == "1"


@pytest.mark.parametrize(
    ("subsystem", "kernel", "present"),
    [
        ("tty", "hvc0", {"/dev/xen/xenbus"}),  # the console
        ("tty", "tty1", {"/dev/xen/xenbus"}),
        ("tty", "hvc10", {"/dev/xen/xenbus"}),
        ("block", "hvc1", {"/dev/xen/xenbus"}),
        ("tty", "hvc1", set()),  # a virtio console of KVM
    ],
)
def test_all_else_is_left_alone(subsystem: str, kernel: str, present: set[str]) -> None:
    assert apply({"SUBSYSTEM": subsystem, "KERNEL": kernel}, present) == {}


# The page and the README


def steps(page: Path, title: str) -> list[tuple[str, list[str]]]:
    """Each numbered step below a heading: its name in bold, and its commands without comments."""
    below = re.search(rf"^## {title}\n(.*?)(?=^## )", text(page), re.DOTALL | re.MULTILINE)
    assert below is not None
    found = []
    for step in re.split(r"^\d\. ", below[1], flags=re.MULTILINE)[1:]:
        name = re.match(r"\*\*(.+?)\*\*", step)
        block = re.search(r"```sh\n(.*?)```", step, re.DOTALL)
        assert name is not None
        assert block is not None
        lines = [re.sub(r"(^|\s+)#.*", "", line).strip() for line in block[1].splitlines()]
        found.append((name[1], [line for line in lines if line]))
    return found


def test_the_steps_are_those_of_the_readme() -> None:
    here, there = steps(PAGE, "On a real dom0"), steps(README, "On a real host")
    assert [name for name, _ in here] == [name for name, _ in there]
    ours = [line for _, lines in here for line in lines]
    theirs = [line for _, lines in there for line in lines]
    assert [line for line in theirs if line not in ours] == [
        "sudo netrng-hostd attach web-1",
        "scp dist/netrng-guest.pyz conf/systemd/netrng-guest.service web-1:",
    ]
    more = [line for line in ours if line not in theirs]
    assert [line.split("/etc")[0].strip() for line in more] == [
        "sudo sed -i 's,qemu:///system,xen:///system,'",
        "sudo install -D -m 644 contrib/xen/netrng-hostd-dom0.conf",
        "sudo netrng-hostd attach web-1 --connect xen:///system",
        f"scp dist/netrng-guest.pyz conf/systemd/netrng-guest.service contrib/xen/{RULES} web-1:",
        "sudo install -m 644 -t",
        "sudo udevadm control --reload && sudo udevadm trigger --subsystem-match=tty",
    ]


@pytest.mark.parametrize("page", ["README.md", "docs/operating.md", "contrib/xen/README.md"])
def test_the_page_is_linked_from(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)", text(ROOT / page))
    assert PAGE in {(ROOT / page).parent.joinpath(link).resolve() for link in links}


def test_every_file_is_explained() -> None:
    links = set(re.findall(r"\]\(([^)#/]+)\)", text(XEN / "README.md")))
    assert links == {path.name for path in XEN.iterdir()} - {"README.md"}


def test_what_was_not_tried_is_said_everywhere() -> None:
    for page in (README, PAGE, XEN / "README.md"):
        said = re.sub(r"\s+", " ", text(page)).lower()
        for words in ("hvm", "pvh", "migration", "save and restore", "emulated machine", "make test-xen"):
            assert words in said, f"{page.name}: {words}"
