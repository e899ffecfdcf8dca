# SPDX-License-Identifier: Apache-2.0
"""Debian's EntropyBroker, unpacked and never installed: its broker, a feeder, and its EGD front end.

The broker mixes what it is fed into pools by AES and SHA-512, so what comes out of it looks random whatever
went in: fed with a counter 00..ff it takes it for full entropy (its own tests are off in Debian's
configuration) and gives out what no test can tell from noise.  The same counter unmixed, from the very
program that feeds the broker, is what `unmixed` gives.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bed.packages import BedError, package

PATIENCE_S = 60.0
USER, PASSWORD = "netrng", "of-a-test"

# What differs from Debian's file: EntropyBroker gives each user some hundred bytes per second and sleeps for
# up to a minute where its pools are full or empty.
_SETTINGS = {
    "max_get_put_size": "1048576",
    "default_max_get_bps": "2000000000",
    "default_sleep_time_when_pools_full": "1",
    "default_sleep_when_pools_empty": "1",
    "default_max_sleep_when_pools_empty": "1",
    "when_pools_full_allow_submit_interval": "1",
    "max_number_of_disk_pools": "0",
    "webserver_port": "-1",
}


def loopback() -> str:
    """An address of this host for this process alone: a port that was free there stays so."""
    pid = os.getpid()  # less than 1 << 22: proc(5)
    return f"127.{64 + (pid >> 16)}.{pid >> 8 & 255}.{pid & 255}"


def program(name: str) -> str:
    """The path of one of its programs. Raises BedError."""
    return str(package("entropybroker") / "usr" / "bin" / name)


@contextlib.contextmanager
def running(directory: Path, feed: str = "/dev/urandom") -> Iterator[Path]:
    """The UNIX socket of its EGD front end, while the broker is fed from ``feed``, a device or a FIFO.

    ``directory`` holds its configuration, its logs and the socket.  Raises BedError.
    """
    port = _free_port()
    broker = f"{loopback()}:{port}"
    password, egd = directory / "password", directory / "egd.sock"
    _write_private(password, f"{USER}\n{PASSWORD}\n")
    _write_private(directory / "users", f"{USER}|{PASSWORD}|2000000000\n")
    (directory / "broker.conf").write_text(_configuration(directory, port))
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            _started(
                directory, "entropy_broker", "-c", str(directory / "broker.conf"),
                before=_own_var(directory),
            )
        )  # fmt: skip
        _wait(lambda: _listens(socket.AF_INET, (loopback(), port)), "the broker", directory)
        common = ("-I", broker, "-X", str(password))
        stack.enter_context(_started(directory, "eb_server_stream", *common, "-d", feed))
        stack.enter_context(_started(directory, "eb_client_egd", *common, "-d", str(egd)))
        _wait(lambda: _listens(socket.AF_UNIX, str(egd)), "its EGD front end", directory)
        yield egd


@contextlib.contextmanager
def unmixed(directory: Path, feed: str) -> Iterator[Path]:
    """A FIFO into which EntropyBroker's own feeder writes what it reads from ``feed``."""
    fifo = directory / "unmixed"
    os.mkfifo(fifo, 0o600)
    with _started(directory, "eb_server_stream", "-d", feed, "-o", str(fifo)):
        yield fifo


@contextlib.contextmanager
def counter(directory: Path) -> Iterator[str]:
    """A FIFO that gives the bytes 00 to ff again and again: a feed for the other two."""
    fifo = directory / "counter"
    os.mkfifo(fifo, 0o600)
    with _process([sys.executable, "-c", _COUNTER, str(fifo)], directory / "counter.log"):
        yield str(fifo)


_COUNTER = """
import signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
with open(sys.argv[1], "wb", 0) as fifo:
    while True:
        fifo.write(bytes(range(256)))
"""


def _own_var(directory: Path) -> tuple[str, ...]:
    """The broker keeps pools and counts in /var, which is compiled in: it gets one that goes with it.

    Raises BedError.
    """
    if any(Path(path).resolve().is_relative_to("/var") for path in (program("entropy_broker"), directory)):
        raise BedError(f"EntropyBroker gets its own /var: {directory} and the cache may not lie there")
    own_root = () if os.geteuid() == 0 else ("-r",)
    script = 'mount -t tmpfs none /var && mkdir /var/cache && exec "$0" "$@"'
    alone = ("unshare", "-m", *own_root, "sh", "-c", script)
    tried = subprocess.run([*alone, "true"], capture_output=True, text=True)
    if tried.returncode:
        raise BedError(f"EntropyBroker needs a /var of its own: {tried.stderr.strip()}; run as root")
    return alone


def _started(
    directory: Path, name: str, *arguments: str, before: tuple[str, ...] = ()
) -> contextlib.AbstractContextManager[None]:
    own = ("-n", "-P", str(directory / f"{name}.pid"))  # in the foreground, and nothing in /var/run
    return _process([*before, program(name), *own, *arguments], directory / f"{name}.log")


@contextlib.contextmanager
def _process(command: list[str], log_path: Path) -> Iterator[None]:
    """Runs until the end of the block; then it and its children are killed: EntropyBroker's ends are slow."""
    with log_path.open("ab") as log, subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    ) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _configuration(directory: Path, port: int) -> str:
    """Debian's file, with our settings in the place of its own."""
    settings = {
        **_SETTINGS,
        "listen_adapter": f"::FFFF:{loopback()}",
        "listen_port": str(port),
        "users": str(directory / "users"),
    }
    shipped = package("entropybroker") / "etc/entropybroker/entropy_broker.conf"
    kept = [
        line for line in shipped.read_text().splitlines() if line.partition("=")[0].strip() not in settings
    ]
    return "\n".join([*kept, *(f"{key} = {value}" for key, value in settings.items()), ""])


def _write_private(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((loopback(), 0))
        port: int = sock.getsockname()[1]
        return port


def _listens(family: socket.AddressFamily, address: tuple[str, int] | str) -> bool:
    """Whether it takes connections; the file of a UNIX socket is there before it does."""
    with socket.socket(family) as sock:
        sock.settimeout(1)
        return sock.connect_ex(address) == 0


def _wait(condition: Callable[[], bool], what: str, directory: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise BedError(f"EntropyBroker: {what} does not come up; see the logs in {directory}")
        time.sleep(0.02)
