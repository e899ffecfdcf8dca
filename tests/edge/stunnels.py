# SPDX-License-Identifier: Apache-2.0
"""Debian's stunnel, unpacked and never installed, with the files of conf/stunnel and new certificates."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from bed import entropy_broker
from bed.packages import package
from tests.edge.rig import PATIENCE_S, wait_for

CONF = Path(__file__).parents[2] / "conf" / "stunnel"
LOOPBACK = entropy_broker.loopback()
CLIENT, SERVER = "netrng-egd-client", "netrng-egd-server"
READY = "Configuration successful"
AS_WHO_WE_ARE = {"setuid": "", "setgid": ""}  # a machine of tests has neither that user nor that group


def certificates(folder: Path) -> None:
    """As conf/stunnel says, by its very lines, and those of a stranger's authority."""
    lines = (CONF / f"{SERVER}.conf").read_text().splitlines()
    script = "\n".join(line.removeprefix(";") for line in lines if line.startswith(";   "))
    script = script[script.index("openssl req -x509") : script.index("done") + 4]
    for where in (folder, folder / "stranger"):
        where.mkdir(exist_ok=True)
        made = subprocess.run(["bash", "-ec", script], cwd=where, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind((LOOPBACK, 0))
        return [sock.getsockname()[1] for sock in sockets]


def configured(name: str, folder: Path, settings: Mapping[str, str]) -> Path:
    """The shipped file with this test's places in the place of its own.

    A key of a section is SECTION.KEY; a setting that is "" is left out.
    """
    lines, section, left = [], "", dict(settings)
    for line in (CONF / f"{name}.conf").read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]") + "."
        key = line.partition(" = ")[0]
        if section + key not in settings:
            lines.append(line)
        elif value := left.pop(section + key):  # fails where it stands twice
            lines.append(f"{key} = {value}")
    assert not left, "in the file there is none of them"
    path = folder / f"{name}.conf"
    path.write_text("\n".join([*lines, ""]).replace("/etc/stunnel/netrng", str(folder)))
    return path


@contextlib.contextmanager
def stunnel(
    config: Path, *before: str, ending: signal.Signals = signal.SIGTERM
) -> Iterator[Path]:
    """Its log, while it runs; ``before``: what its command line begins with."""
    log_path = config.with_suffix(".log")
    program = package("stunnel4") / "usr" / "bin" / "stunnel4"
    with log_path.open("wb") as log, subprocess.Popen(
        [*before, program, config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
    ) as process:
        try:
            wait_for(lambda: READY in log_path.read_text() or process.poll() is not None, "stunnel")
            assert process.poll() is None, log_path.read_text()
            yield log_path
        finally:
            process.send_signal(ending)
            process.wait(PATIENCE_S)


def assert_told(log: Path, why: str) -> None:
    """Sooner or later: the other end may know before it is written."""
    wait_for(lambda: why in log.read_text(), f"{why!r} in {log}")
