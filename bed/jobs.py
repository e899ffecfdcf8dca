# SPDX-License-Identifier: Apache-2.0
"""Runs scripts in a guest over its second serial line; the other half is bed/guest/jobs.

A request is repeated until its answer is here, and a guest runs it once however often it comes: so a line
that was lost while nobody listened (a restore, a migration, a reboot of the host's end) costs half a second,
or up to four where that happens to a script that runs on.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import itertools
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Callable, NamedTuple

_REPEAT_S, _MAX_REPEAT_S = 0.5, 4.0  # the longer a script runs, the less does its repetition matter


# A guest knows jobs of processes before this one, which may have had its PID.
_PROCESS = uuid.uuid4().hex[:12]


class Result(NamedTuple):
    """What a script did: its exit code and everything that it wrote to stdout and stderr."""

    rc: int
    out: str


class Jobs:
    """The host's end of one guest's job line; safe to use from several threads.

    `path` returns where the line's UNIX socket is now, None while there is none.
    """

    _numbers = itertools.count(1)

    def __init__(self, path: Callable[[], Path | None]) -> None:
        self._path = path
        self._stream: socket.socket | None = None
        self._where: Path | None = None
        self._pending = bytearray()
        self._answers: dict[str, tuple[int, bytes]] = {}
        self._lock = threading.Lock()

    def submit(self, script: str) -> str:
        """Names a job for `script` and sends it once; `answer` sees to the rest."""
        job = f"{_PROCESS}-{next(self._numbers)}"
        with self._lock:
            self._send(job, script)
        return job

    def answer(
        self, job: str, script: str, deadline_s: float, repeat: bool = True
    ) -> tuple[int, bytes] | None:
        """The job's exit code and output, None if there is none within `deadline_s`."""
        deadline = time.monotonic() + deadline_s
        gap = _REPEAT_S
        due = time.monotonic() + gap
        while True:
            with self._lock:
                self._receive()
                if job in self._answers:
                    return self._answers.pop(job)
                now = time.monotonic()
                if now >= deadline:
                    return None
                if repeat and now >= due:
                    self._send(job, script)
                    # A long script takes the guest's shell a while to read.
                    gap = min(2 * gap, _MAX_REPEAT_S)
                    due = now + gap + len(script) / 4000
            time.sleep(0.005)

    def close(self) -> None:
        """Closes the line; the next use opens it again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._pending.clear()

    def _open(self) -> socket.socket | None:
        where = self._path()
        if where != self._where:
            self._close()
            self._where = where
        if self._stream is None and where is not None:
            stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                stream.connect(str(where))
            except OSError:
                stream.close()
                return None
            stream.settimeout(0.05)
            self._stream = stream
        return self._stream

    def _send(self, job: str, script: str) -> None:
        stream = self._open()
        if stream is None:
            return
        try:
            stream.settimeout(5.0)
            stream.sendall(request(job, script))
            stream.settimeout(0.05)
        except OSError:
            self._close()  # half a line: the guest drops it, we repeat it

    def _receive(self) -> None:
        stream = self._open()
        if stream is None:
            return
        with contextlib.suppress(TimeoutError, socket.timeout):
            try:
                data = stream.recv(1 << 16)
            except ConnectionError:
                data = b""
            if not data:
                self._close()
                return
            self._pending += data
        while b"\n" in self._pending:
            line, _, rest = self._pending.partition(b"\n")
            self._pending = bytearray(rest)
            words = line.split(b" ")
            with contextlib.suppress(ValueError, binascii.Error):
                # Anything else is the terminal's echo from before the guest had set its line.
                whole = len(words) == 5 and words[3] == _checksum(words[1], words[2], words[4])
                if whole and words[0] == b"R":
                    self._answers[words[1].decode()] = (
                        int(words[2]),
                        base64.b64decode(words[4], validate=True),
                    )


def request(job: str, script: str) -> bytes:
    """The line that asks for it."""
    packed = base64.b64encode(script.encode() or b"\n")
    return b"\nJ %s %s %s .\n" % (job.encode(), _checksum(job.encode(), packed), packed)


def _checksum(*words: bytes | bytearray) -> bytes:
    """Of the job's name as well: a script under one that lost a letter would run a second time."""
    return hashlib.md5(b" ".join(words) + b"\n").hexdigest().encode()
