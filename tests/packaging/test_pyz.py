# SPDX-License-Identifier: Apache-2.0
"""netrng-guest.pyz: the same bytes from the same sources, and nothing but the standard library inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from scripts.build_pyz import PACKAGE, build, main
from tests.edge.guest_lab import Ended, Host, listening, stream

from netrng_guest import __version__

ROOT = Path(__file__).parents[2]


def _pythons() -> list[str]:
    """This Python, and older ones where they can be found: the distribution's, or pyenv's."""
    found = {(sys.version_info.major, sys.version_info.minor): sys.executable}
    for minor in (6, 7, 8, 9):
        installed = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3"))
        candidates = [shutil.which(f"python3.{minor}", path="/usr/bin:/usr/local/bin"), *map(str, installed)]
        for path in filter(None, candidates):
            found[3, minor] = path
    return list(found.values())


PYTHONS = pytest.mark.parametrize(
    "python", _pythons(), ids=lambda path: Path(path).parts[-3] if ".pyenv" in path else Path(path).name
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dist") / "deep" / "netrng-guest.pyz"
    assert main([str(path)]) == 0
    return path


def test_the_same_bytes_from_a_copy_with_other_dates_and_rights(tmp_path: Path, archive: Path) -> None:
    copy = tmp_path / "elsewhere"
    for path in sorted(PACKAGE.rglob("*.py"), reverse=True):
        target = copy / path.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        target.chmod(0o600)
        os.utime(target, (1, 1))
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "main.cpython-311.pyc").write_bytes(b"x")
    (copy / "notes.txt").write_text("x")
    assert build(copy) == archive.read_bytes() == build()


def test_what_is_inside(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        assert names == sorted(names)
        assert set(names) == {"__main__.py"} | {f"netrng_guest/{path.name}" for path in PACKAGE.glob("*.py")}
        assert {info.date_time for info in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in opened.infolist()} == {zipfile.ZIP_STORED}


def test_the_first_line_holds_one_argument(archive: Path) -> None:
    # Linux hands everything behind the interpreter over as one argument.
    first = archive.read_bytes().split(b"\n")[0]
    assert first == b"#!/usr/bin/python3 -IS"
    assert archive.stat().st_mode & 0o777 == 0o755


@PYTHONS
def test_it_runs_without_the_environment_and_without_packages(
    python: str, archive: Path, tmp_path: Path
) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-I", "-S", str(archive), *arguments], cwd=tmp_path, capture_output=True, text=True
        )

    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"netrng-guest {__version__}\n", "")
    done = run("check", "--channel", "/nonexistent", "--sink", "kernel")
    assert (done.returncode, done.stderr) == (1, "")
    done = run("--rate", "fast")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@PYTHONS
def test_it_serves_on_each_python(python: str, archive: Path, tmp_path: Path) -> None:
    with listening(tmp_path) as listener:
        arguments = ["--channel", f"{tmp_path}/channel", "--sink", "stdout"]
        process = subprocess.Popen(
            [python, "-I", "-S", str(archive), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with process:
            assert process.stdout is not None and process.stderr is not None
            link, _ = listener.accept()
            with link:
                host, found, fd = Host(link.fileno(), chop=333), bytearray(), process.stdout.fileno()
                os.set_blocking(fd, False)

                def enough() -> bool:
                    with suppress(BlockingIOError):
                        found.extend(os.read(fd, 65536))
                    return len(found) > 20_000

                host.until(enough, "20,000 bytes")
                process.terminate()
                host.until(lambda: host.kinds(Ended), "BYE")
            assert process.wait() == 0
            assert found == stream(64, len(found))
            assert b"Traceback" not in process.stderr.read()


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs /usr/bin/python3")
def test_it_runs_by_its_first_line(archive: Path) -> None:
    done = subprocess.run([str(archive), "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"netrng-guest {__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["-h"], ["a", "b"]])
def test_misuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == "usage: scripts/build_pyz.py FILE\n"
