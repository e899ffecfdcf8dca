# SPDX-License-Identifier: Apache-2.0
"""A program that must not outlive us: its standard input is ours to feed, what it says is read by lines."""

import os
import select
import signal
import subprocess
from typing import Callable, List, Optional

from .loop import Loop

MAX_LINE = 200  # characters
MAX_READ = 4096
PR_SET_PDEATHSIG = 1  # prctl(2)

_prctl: Optional[Callable[..., int]] = None
try:  # loaded here, because nothing may be imported between fork and exec
    import ctypes

    _prctl = ctypes.CDLL(None, use_errno=True).prctl
except (ImportError, OSError, AttributeError, MemoryError):
    pass  # no ctypes, or no memory for code in this confinement: SIGKILL of the agent may leave an orphan


class Child:
    """Runs ``argv`` with ``stdin_fd`` as its standard input.  Raises OSError when it cannot be started.

    ``said`` is called with each line that it prints, shortened and in plain ASCII.
    """

    def __init__(self, loop: Loop, argv: List[str], stdin_fd: int, said: Callable[[str], None]) -> None:
        self._loop = loop
        self._said = said
        self._line = bytearray()
        parent = os.getpid()

        def die_with_parent() -> None:
            if _prctl is not None:
                _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != parent:
                    os._exit(1)

        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=stdin_fd,
                stdout=write_end,
                stderr=write_end,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one thread
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        os.set_blocking(read_end, False)
        self._output: Optional[int] = read_end
        loop.watch(read_end, select.EPOLLIN, lambda events: self.read())

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self._process.pid

    def read(self) -> None:
        """Reads what it has said since."""
        if self._output is None:
            return
        try:
            data = os.read(self._output, MAX_READ)
        except BlockingIOError:
            return
        self._line += data
        *lines, rest = bytes(self._line).split(b"\n")
        self._line = bytearray(rest[:MAX_LINE])
        if not data:
            lines.append(rest)
            self._close_output()
        for line in lines:
            text = " ".join(line[:MAX_LINE].decode("ascii", "replace").split())
            if text:
                self._said("".join(c if " " <= c <= "~" else "?" for c in text))

    def poll(self) -> Optional[str]:
        """None while it runs, else how it ended, after all that it said was read."""
        code = self._process.poll()
        if code is None:
            return None
        self.read_rest()
        return "exit code {}".format(code) if code >= 0 else "signal {}".format(-code)

    def read_rest(self) -> None:
        """Reads until nothing is left; a grandchild that holds the pipe open is not waited for."""
        while self._output is not None:
            try:
                if not select.select([self._output], [], [], 0)[0]:
                    break
            except (OSError, ValueError):
                break
            self.read()
        self._close_output()

    def signal(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def stop(self, grace_s: float) -> None:
        """SIGTERM, and after ``grace_s`` SIGKILL; waits for the end."""
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self._process.wait()
        self.read_rest()

    def _close_output(self) -> None:
        if self._output is not None:
            self._loop.unwatch(self._output)
            os.close(self._output)
            self._output = None
