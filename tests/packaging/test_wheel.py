# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is inside, and that both commands run from it where it is installed."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from netrng_guest import __version__

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "hostd/netrng_hostd", ROOT / "guest/netrng_guest")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
# Nothing of the development environment; the leak check's warnings stay with the tests.
CLEAN = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", str(target), str(ROOT)], check=True)
    (found,) = target.iterdir()
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As on a real host: made with --system-site-packages, the wheel inside."""
    place = tmp_path_factory.mktemp("opt") / "netrng"
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(place)], check=True)
    install = [*PIP[1:], "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([str(place / "bin/python"), *install], check=True, env=CLEAN)
    return place


def run(command: Path, *arguments: str, pythonpath: str = "") -> subprocess.CompletedProcess[str]:
    env = {**CLEAN, "PYTHONPATH": pythonpath} if pythonpath else CLEAN
    return subprocess.run([str(command), *arguments], capture_output=True, text=True, env=env, timeout=60)


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(package.parent).as_posix()
        for package in PACKAGES
        for path in package.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert inside == expected


def test_a_guest_installs_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert (metadata["Name"], metadata["Version"]) == ("netrng-vm", __version__)
    needed = metadata.get_all("Requires-Dist", [])
    assert [line for line in needed if "extra ==" not in line] == []
    hostd = {re.match(r"[\w-]+", line)[0] for line in needed if re.search(r"extra == .hostd", line)}  # type: ignore[index]
    assert hostd == {"libvirt-python", "numpy", "psutil", "rich", "tomli"}


@pytest.mark.parametrize("command", ["netrng-hostd", "netrng-guest"])
def test_both_commands_run(environment: Path, command: str) -> None:
    # What hostd needs besides comes from where the tests have it.
    others = sysconfig.get_paths()["purelib"] if command == "netrng-hostd" else ""
    program = environment / "bin" / command
    version = run(program, "--version", pythonpath=others)
    assert (version.returncode, version.stdout, version.stderr) == (0, f"{command} {__version__}\n", "")
    told = run(program, "--help", pythonpath=others)
    assert (told.returncode, told.stderr) == (0, "")
    assert re.search(rf"examples?:\n  {command} ", told.stdout)
    assert run(program, "--no-such-option", pythonpath=others).returncode == 2


def test_it_is_the_wheel_that_runs(environment: Path) -> None:
    others = sysconfig.get_paths()["purelib"]
    where = "import netrng_hostd.main, netrng_guest.main as g; print(netrng_hostd.main.__file__, g.__file__)"
    told = run(environment / "bin/python", "-c", where, pythonpath=others)
    assert told.stderr == ""
    for path in told.stdout.split():
        assert Path(path).is_relative_to(environment)


def test_the_guest_needs_nothing_but_the_standard_library(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    # -I: nothing of the environment or the folder; -S: no site-packages.
    script = f"import sys; sys.path.append({str(tmp_path)!r}); from netrng_guest.main import main; "
    script += "sys.exit(main())"
    told = run(Path(sys.executable), "-I", "-S", "-c", script, "--version")
    assert (told.returncode, told.stdout, told.stderr) == (0, f"netrng-guest {__version__}\n", "")
    for package in ("tomli", "netrng_hostd.core.quota"):
        refused = run(Path(sys.executable), "-I", "-S", "-c", f"import {package}")
        assert "ModuleNotFoundError" in refused.stderr, f"{package} was to be had: this test shows nothing"


def test_every_module_of_the_guest_can_be_imported_so(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    modules = sorted(path.stem for path in (tmp_path / "netrng_guest").glob("[!_]*.py"))
    assert "agent" in modules
    script = f"import sys; sys.path.append({str(tmp_path)!r}); "
    script += "; ".join(f"import netrng_guest.{name}" for name in modules)
    told = run(Path(sys.executable), "-I", "-S", "-W", "error", "-c", script)
    assert (told.returncode, told.stderr) == (0, "")
