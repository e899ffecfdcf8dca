# SPDX-License-Identifier: Apache-2.0
"""What the documentation says exists, is complete, and is so."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tomli
from scripts.status_picture import PICTURE, RECORD, draw

from netrng_guest import __version__
from netrng_guest.config import Settings
from netrng_guest.main import main as guest_main
from netrng_guest.sink import STATES as SINK_STATES
from netrng_hostd.config import (
    AdmissionConfig,
    ChannelConfig,
    Config,
    LibvirtConfig,
    ReservoirConfig,
    ServeConfig,
    SourceConfig,
    load,
)
from netrng_hostd.config.sources import KINDS
from netrng_hostd.core.quota import DEFAULT_QUOTA, QuotaRule
from netrng_hostd.core.spelling import format_size
from netrng_hostd.daemon import FIXED
from netrng_hostd.main import main as hostd_main
from netrng_hostd.operate.status import ADMISSION_STATES, DOMAIN_STATES, SOURCE_STATES, URI_STATES, from_json

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
OPERATING, ARCHITECTURE = ROOT / "docs/operating.md", ROOT / "docs/architecture.md"
PAGES = sorted(page for folder in (".", "docs", "contrib/*") for page in ROOT.glob(f"{folder}/*.md"))
MAN = sorted((ROOT / "docs/man").iterdir())
COMMANDS: dict[str, Callable[[list[str]], int]] = {"netrng-hostd": hostd_main, "netrng-guest": guest_main}

# What stands for something else in the lines that docs/operating.md explains.
PLACEHOLDERS = (
    "DEVICE", "DOMAIN", "FILE", "KEY", "N", "NAME", "PATH", "STATE", "URI", "UUID", "WHY", "X", "Y", "F"
)  # fmt: skip

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
every_man_page = pytest.mark.parametrize("page", MAN, ids=lambda page: page.name)


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code(page: Path) -> list[str]:
    """What stands between backquotes, in lines, without comments."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```$", text(page), re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text(page), flags=re.DOTALL))
    lines = [line for block in blocks for line in block.splitlines()] + spans
    return [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]


def section(page: Path, title: str) -> str:
    """What stands below a heading, up to the next of its rank or above."""
    found = re.search(
        rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,3}} |\Z)", text(page), re.DOTALL | re.MULTILINE
    )
    assert found is not None, f"{page.name} has no heading {title!r}"
    return found[2]


def table(page: Path, title: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    rows = [line for line in section(page, title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def plain(roff: str) -> str:
    """A man page's words as they are typed."""
    return re.sub(r"\\f.", "", roff).replace("\\-", "-").replace("\\(dq", '"')


# README and docs/*.md


@every_page
def test_every_make_target_is_one(page: Path) -> None:
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for line in code(page) for target in re.findall(r"(?:^|\s)make ([a-z-]+)$", line)}
    assert named <= there


def test_the_readme_begins_with_what_a_newcomer_needs() -> None:
    first_screen = text(README).partition("\n## ")[0]
    assert "source.read → health.check →" in first_screen
    assert "apt-get install -y git make" in first_screen
    assert {"make demo", "make test"} <= set(code(README))
    assert f"({PICTURE.relative_to(ROOT)})" in first_screen


@every_page
def test_every_command_is_one(page: Path) -> None:
    for line in code(page):
        for program, main in COMMANDS.items():
            found = re.search(rf"(?:^|/|sudo ){program} ((?:[a-z]+|--[a-z-]+)(?: .*)?)$", line)
            if found is not None:
                words = re.findall(r"--[a-z-]+", found[1]) + re.findall(r"^[a-z]+", found[1])
                assert set(words) <= help_words(main, words[-1:]), line


def help_words(main: Callable[[list[str]], int], command: list[str]) -> set[str]:
    """Options and commands in the help, and in that of the command if it has its own."""
    words: set[str] = set()
    for arguments in ([], [word for word in command if not word.startswith("-")]):
        words |= set(re.findall(r"--[a-z][a-z-]*", help_of(main, arguments)))
        words |= set(re.findall(r"^    ([a-z]+) ", help_of(main, arguments), re.MULTILINE))
        for braced in re.findall(r"{([a-z,]+)}", help_of(main, arguments)):
            words |= set(braced.split(","))
    return words


def help_of(main: Callable[[list[str]], int], arguments: list[str]) -> str:
    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.raises(SystemExit):
        main([*arguments, "--help"])
    return told.getvalue()


@every_page
def test_every_link_resolves(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text(page), flags=re.DOTALL)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """As GitHub names them: lower case, without punctuation, hyphens for spaces."""
    titles = re.findall(r"^#+ (.*)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = re.findall(
        r"(?<![\w/.-])((?:conf|contrib|docs|scripts|tests|guest|hostd)/[\w./-]+\.\w+)(?![\w*])", text(page)
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("title", "states"),
    [("Sources", SOURCE_STATES), ("Domains", DOMAIN_STATES), ("URIs", URI_STATES)],
)
def test_the_states_are_those_of_status(title: str, states: dict[str, str]) -> None:
    rows = table(OPERATING, title)
    assert {row[0].strip("`"): row[1] for row in rows} == states
    assert [row[0].strip("`") for row in rows] == list(states)
    assert all(row[2] for row in rows), "each says what to do"


def test_the_verdicts_of_admission_are_those_of_status() -> None:
    assert {row[0].strip("`"): row[1] for row in table(OPERATING, "Admission")} == ADMISSION_STATES


def test_the_sink_states_are_the_agents() -> None:
    rows = table(OPERATING, "Sink states")
    assert [row[0].strip("`") for row in rows] == list(SINK_STATES)


def literals(folder: Path) -> str:
    """All strings of the code, a line each; what is filled in is a NUL."""
    found = []
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(text(path))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sd]", "\0", node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = (value.value if isinstance(value, ast.Constant) else "\0" for value in node.values)
                found.append("".join(map(str, parts)))
    return "\n".join(found)


@pytest.mark.parametrize("title", ["Error lines", "Log lines", "Sockets, the default"])
def test_every_line_that_is_explained_is_one_that_is_written(title: str) -> None:
    written = literals(ROOT / "hostd")
    for row in table(OPERATING, title):
        for line in re.findall(r"`([^`]+)`", row[0]):
            logger = re.match(r"(netrng[\w.]*): ", line)
            said = line[logger.end() :] if logger else line
            for piece in re.split(rf"…|: |\b(?:{'|'.join(PLACEHOLDERS)})\b", said):
                assert piece.strip(" :,();") in written, f"{line}: nothing writes {piece!r}"
            if logger:
                module = (ROOT / "hostd" / logger[1].replace(".", "/")).with_suffix(".py")
                assert logger[1] in written or module.exists(), line


def test_what_needs_a_restart_is_what_the_daemon_does_not_reload() -> None:
    page = section(OPERATING, "Reload and restart")
    told = re.search(r"((?:`[^`]+`(?:,| and)\s)+`[^`]+`)\sneed a restart", page)
    assert told is not None
    assert set(re.findall(r"`([^`]+)`", told[1])) == {name.split()[0] for name in FIXED.values()}


def test_the_quotas_defaults() -> None:
    told = {row[0].strip("`"): row[2].strip('`"') for row in table(OPERATING, "Quotas")}
    assert told == {
        "reservation": str(DEFAULT_QUOTA.reservation),
        "weight": str(DEFAULT_QUOTA.weight),
        "limit": "none",
        "burst": format_size(DEFAULT_QUOTA.burst).replace("KiB", " KiB"),
    }
    assert DEFAULT_QUOTA.limit is None


def examples() -> list[str]:
    """The pieces of configuration that stand in docs/*.md and, as comments, in conf/hostd.toml."""
    pages = "".join(map(text, PAGES))
    shown = re.findall(r"^```toml\n(.*?)^```$", pages, re.DOTALL | re.MULTILINE)
    commented = re.findall(r"(?:^#   .*\n)+", text(ROOT / "conf/hostd.toml"), re.MULTILINE)
    return shown + [
        piece for lines in commented if "[[" in (piece := re.sub(r"^#   ", "", lines, flags=re.MULTILINE))
    ]


@pytest.mark.parametrize("example", examples())
def test_every_example_of_a_configuration_is_a_good_one(example: str, tmp_path: Path) -> None:
    file = tmp_path / "hostd.toml"
    file.write_text(f'control = "/x"\n{example}')
    load(str(file))


def test_every_kind_of_source_has_an_example() -> None:
    shown = re.findall(r'^\[\[source\]\]\n(?:\w.*\n)*?kind = "(\w+)"', "\n".join(examples()), re.MULTILINE)
    assert {*shown, "device"} == set(KINDS)  # which is the default


def _module_names() -> set[str]:
    folders = (ROOT / "hostd/netrng_hostd", ROOT / "guest/netrng_guest")
    return {path.name for folder in folders for path in folder.rglob("*.py")}


def test_the_house_is_described_as_it_is() -> None:
    contracts = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    told = re.search(r"\*\*Imports point one way\*\*: `([^`]+)`", text(ARCHITECTURE))
    assert told is not None
    assert re.sub(r"\s+", " ", told[1]) == " → ".join(layers[1:]), "but for __main__"
    for package, heading in ((ROOT / "hostd/netrng_hostd", "hostd"), (ROOT / "guest/netrng_guest", "guest")):
        rows = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", section(ARCHITECTURE, "The house"), re.MULTILINE)
        named = {name.rstrip("/") for row in rows for name in re.findall(r"`([^`]+)`", row)}
        there = {path.name for path in package.iterdir() if not path.name.startswith(("_", "py.typed"))}
        assert there <= named, f"{heading}: not described"
    missing = {name for name in named if name.endswith(".py")} - _module_names()
    assert not missing, f"described and not there: {missing}"


def test_the_host_is_forbidden_every_guest_module_but_three() -> None:
    contracts = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (forbidden,) = (c["forbidden_modules"] for c in contracts if c["name"].startswith("the host takes only"))
    modules = {f"netrng_guest.{path.stem}" for path in (ROOT / "guest/netrng_guest").glob("*.py")}
    shared = {f"netrng_guest.{name}" for name in ("__init__", "wire", "stdio", "xenstore")}
    assert set(forbidden) == modules - shared


def test_every_host_module_but_the_hypervisor_package_is_forbidden_libvirt() -> None:
    contracts = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (held,) = (c["source_modules"] for c in contracts if c["name"].startswith("only the hypervisor package"))
    house = ROOT / "hostd/netrng_hostd"
    there = {path.stem for path in house.glob("*.py")} | {
        path.parent.name for path in house.glob("*/__init__.py")
    }
    assert sorted(held) == sorted(f"netrng_hostd.{name}" for name in there - {"__init__", "hypervisor"})


def test_the_journey_is_the_same_everywhere() -> None:
    journeys = {line.strip("` ") for page in PAGES for line in text(page).splitlines() if "║" in line}
    assert len(journeys) == 1


# man pages


@every_man_page
def test_a_man_page_is_well_formed(page: Path) -> None:
    assert f'"netrng {__version__}"' in text(page).splitlines()[1]
    checkers = {
        "man": ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(page)],
        "mandoc": ["mandoc", "-T", "lint", "-W", "warning", str(page)],
    }
    present = [arguments for name, arguments in checkers.items() if works(name)]
    if not present:
        pytest.skip("needs man and groff, or mandoc (Debian: man-db, mandoc)")
    for arguments in present:
        told = subprocess.run(
            arguments, capture_output=True, text=True,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"},
        )  # fmt: skip
        complaints = told.stderr + (told.stdout if arguments[0] == "mandoc" else "")
        assert (told.returncode, complaints) == (0, "")


def works(program: str) -> bool:
    """Minimal images have a `man` that only says that there is none."""
    if shutil.which(program) is None:
        return False
    return program != "man" or (shutil.which("groff") is not None and shutil.which("mandb") is not None)


@pytest.mark.parametrize("program", COMMANDS)
def test_a_commands_man_page_is_complete(program: str) -> None:
    page = plain(text(ROOT / f"docs/man/{program}.8"))
    main = COMMANDS[program]
    commands = sorted(word for word in help_words(main, []) if not word.startswith("-"))
    assert {"run", "check"} <= set(commands)
    for command in commands:
        assert re.search(rf"^\.TP\n\.B {command}$", page, re.MULTILINE), f"no paragraph on {command}"
    separate = [[command] for command in commands] if program == "netrng-hostd" else []
    in_help = {
        option
        for arguments in ([], *separate)
        for option in re.findall(r"^  (?:-\w, )?(--[a-z-]+)", help_of(main, arguments), re.MULTILINE)
    }
    in_page = set(re.findall(r"^\.TP\n\.(?:BI?|BR -h \", \") (--[a-z-]+)", page, re.MULTILINE))
    assert in_page == in_help


def test_the_states_of_the_man_page_are_those_of_status() -> None:
    states = text(ROOT / "docs/man/netrng-hostd.8").partition(".SH STATES")[2].partition(".SH ")[0]
    told = re.findall(r"^\.BR (\w+) [,.]$", states, re.MULTILINE)
    assert told == [*SOURCE_STATES, *DOMAIN_STATES, *URI_STATES]


def test_the_configurations_man_page_is_complete() -> None:
    page = plain(text(ROOT / "docs/man/netrng-hostd.toml.5"))
    told: dict[str, list[str]] = {}
    for title, body in re.findall(r"^\.SH (.*)\n((?:(?!\.SH).*\n)*)", page, re.MULTILINE):
        keys = re.findall(r"^\.TP\n\.B (\w+)$", body, re.MULTILINE)
        if keys:
            told[title] = keys
    shapes = {
        "[reservoir]": ReservoirConfig, "[libvirt]": LibvirtConfig, "[[source]]": SourceConfig,
        "[[quota]]": QuotaRule, "[admission]": AdmissionConfig, "[[channel]]": ChannelConfig,
        "[[serve]]": ServeConfig,
    }  # fmt: skip
    there = {title: [field.name for field in dataclasses.fields(shape)] for title, shape in shapes.items()}
    there["TOP LEVEL"] = ["sample_size", "control"]
    there["[sources]"] = ["policy", "min_sources"]
    assert told == there
    tables = {"reservoir", "libvirt", "sources", "quotas", "admission", "channels", "serves"}
    single = {"file", "sample_size", "control", "policy", "min_sources"}
    fields = {field.name for field in dataclasses.fields(Config)}
    assert fields == tables | single, "a new key needs its paragraph"


def test_the_agents_man_page_names_every_key_of_its_configuration() -> None:
    files = text(ROOT / "docs/man/netrng-guest.8").partition(".SH FILES")[2].partition(".SH NOTES")[0]
    assert [key for key in Settings._fields if not re.search(rf"^\.BR? {key}\b", files, re.MULTILINE)] == []


# The picture


def drawn(picture: str) -> list[str]:
    """The words in the picture; how they are set is the affair of the version of rich."""
    root = ElementTree.fromstring(picture)
    words = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    return "".join(words).replace("\N{NO-BREAK SPACE}", " ").split()


def test_the_picture_shows_the_recorded_status_as_status_would_show_it_today() -> None:
    assert drawn(text(PICTURE)) == drawn(draw(text(RECORD))), "run scripts/status_picture.py"


def test_the_picture_asks_nothing_of_other_sites() -> None:
    assert re.findall(r'(?:url\(|href=")(?!#)[^)"]*', text(PICTURE)) == []


def test_the_recorded_status_is_a_real_one() -> None:
    recorded = from_json(text(RECORD))
    assert '"recorded": "the answer of netrng-hostd' in text(RECORD)
    assert recorded.ledger_ok
    for domain in recorded.domains:
        fates = (domain.bytes_acked, domain.bytes_lost, domain.in_flight)
        assert domain.bytes_sent == sum(n or 0 for n in fates)
    sent = sum(domain.bytes_sent for domain in recorded.domains)
    (source,) = recorded.sources
    held = source.bytes_read - source.bytes_discarded - recorded.reservoir.stored - sent
    assert 0 <= held < 1024, "what is neither sent nor stored waits in the health tests"
