# SPDX-License-Identifier: Apache-2.0
"""What xenstore says, asked on the kernel's own device: no library, no command of Xen's is needed.

Each message is a header of four u32 in the machine's byte order (type, number of the request, transaction,
length of what follows) and a payload (xen/include/public/io/xs_wire.h).  The kernel takes a whole request in
one write() and hands the answer to read() (drivers/xen/xenbus/xenbus_dev_frontend.c); before Linux 4.11 it
waited for the answer within that write().  What a guest may write itself is not to be trusted, so each text
is made printable here.
"""

import os
import select
import struct
import time
from typing import List, Optional

DEVICES = ("/dev/xen/xenbus", "/proc/xen/xenbus")  # the second is that of xenfs, which older kernels have
SEARCH_S = 2.0  # for all questions of the agent, whose loop waits for them
MAX_PAYLOAD = 4096  # XENSTORE_PAYLOAD_MAX
DIRECTORY, READ, ERROR = 1, 2, 16
_HEADER = struct.Struct("=4I")


class XenstoreError(Exception):
    """xenstore cannot be asked; the text says why, in one line."""


def find_device() -> Optional[str]:
    """The device to ask xenstore on; None: this is no Xen domain, or nothing shows it to us."""
    return next((device for device in DEVICES if os.path.exists(device)), None)


class Xenstore:
    """A context manager; opening it raises XenstoreError, and so does each question.

    A path without a leading slash is below the own domain's.  After an error, begin anew with another one.
    ``seconds``: for all questions and answers together, however many nodes there are.
    """

    def __init__(self, device: Optional[str] = None, *, seconds: float) -> None:
        self._device = device or find_device() or DEVICES[0]
        self._fd = -1
        self._seconds = seconds
        self._end_s = 0.0

    def __enter__(self) -> "Xenstore":
        try:
            self._fd = os.open(self._device, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except PermissionError:
            raise self._error("permission denied (run as root)") from None
        except OSError as error:
            raise self._error(str(error.strerror)) from None
        self._end_s = time.monotonic() + self._seconds
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def entries(self, path: str) -> List[str]:
        """The names below ``path``, in xenstore's order; none where there is no such node."""
        answer = self._ask(DIRECTORY, path)
        return [_text(name) for name in answer.split(b"\0") if name] if answer else []

    def read(self, path: str) -> Optional[str]:
        """The value of the node ``path``; None where there is no such node."""
        answer = self._ask(READ, path)
        return None if answer is None else _text(answer)

    def _ask(self, kind: int, path: str) -> Optional[bytes]:
        """The payload of the answer; None if it is ENOENT."""
        if time.monotonic() >= self._end_s:
            raise self._error("not all answered within {:g} s".format(self._seconds))
        payload = path.encode("ascii", "replace") + b"\0"
        message = _HEADER.pack(kind, 0, 0, len(payload)) + payload
        try:
            if os.write(self._fd, message) != len(message):
                raise self._error("took half a request")
            # One request is out at a time, and its answer comes on no other descriptor.  So its number tells
            # nothing, and Linux 4.11 to 4.15 put one of their own there (until 29fee6eed281).
            got, _, _, size = _HEADER.unpack(self._receive(_HEADER.size))
            if got not in (kind, ERROR) or size > MAX_PAYLOAD:
                raise self._error("answered something else")
            answer = self._receive(size)
        except OSError as error:
            raise self._error(str(error.strerror)) from None
        if got != ERROR:
            return answer
        name = _text(answer.rstrip(b"\0"))
        if name == "ENOENT":
            return None
        raise self._error("{} on {}".format(name, path))

    def _receive(self, size: int) -> bytes:
        """So many bytes.  Raises OSError and XenstoreError."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        found = b""
        while len(found) < size:
            # It looks once even when the time is up: a machine that stood still may have the answer by now.
            if not poll.poll(max(self._end_s - time.monotonic(), 0) * 1000):
                raise self._error("no answer (does xenstored run?)")
            try:
                piece = os.read(self._fd, size - len(found))
            except BlockingIOError:
                continue
            if not piece:
                raise self._error("ends in mid-answer")
            found += piece
        return found

    def _error(self, text: str) -> XenstoreError:
        return XenstoreError("{}: {}".format(self._device, text))


def _text(untrusted_bytes: bytes) -> str:
    return "".join(chr(c) if 32 <= c < 127 else "\ufffd" for c in untrusted_bytes)
