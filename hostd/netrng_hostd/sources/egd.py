# SPDX-License-Identifier: Apache-2.0
"""A client of the EGD protocol: EGD servers, EntropyBroker's EGD front end, a remote one through stunnel.

A request is a command and a number n of bytes, 1 to 255.  Command 1 is answered at once with a count, 0 to
n, and so many bytes; command 2 waits, and is answered with n bytes and nothing else (the commands are those
of egd.pl, the first such server).  Command 1 is used, because only its answers say how long they are:
EntropyBroker 2.9 answers command 2 with fewer bytes than were asked for when it runs low (measured), and who
counts on n waits for ever.  A server that knows command 2 alone, as those made for QEMU, does not answer
command 1: then the connection is made anew and command 2 is used.

One request is on its way at a time, so that what comes unasked is noticed.  (Eight brought nothing with
EntropyBroker, 0.66 MB/s instead of 0.64.)
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time

from netrng_hostd.sources.failure import SourceFailure
from netrng_hostd.sources.identity import refuse_reason

GET_AVAILABLE = 1  # answered with a count
GET_WAITING = 2
MAX_REQUEST = 255  # bytes

CONNECT_S = 2.0  # to a port of this host: more than enough, and less than stall_timeout by default
POLL_S = 0.2  # a read waits no longer, so that its thread can be stopped
EMPTY_S = 0.2  # between two requests of a server that has nothing
UNKNOWN_S = 2.0  # command 1 is answered at once, or not known
SHORT_S = 10.0  # without a byte in the midst of an answer, or before one to command 1: there will be no more
SILENT_S = 60.0  # without an answer to command 2, which may have to be waited for


class EgdSource:
    """Connects to a UNIX socket at ``path`` or to ``address``, a port of this host; the other one is ""."""

    def __init__(self, path: str, address: str = "") -> None:
        self._path = path
        self._place = path or address
        self._addresses = [(socket.AF_UNIX, path)] if path else _loopback(address)
        self._socket: socket.socket | None = None
        self._command = GET_AVAILABLE
        self._asked = 0  # bytes of a request whose count has not come yet
        self._due = 0  # bytes of the answer that are still to come
        self._answered = False  # whether anything has come on this connection
        self._begun = False  # whether anything of this answer has
        self._heard_s = 0.0  # when bytes came last, or a request was made

    def open(self) -> None:
        reason = refuse_reason(self._path, "egd")
        if reason is not None:
            raise SourceFailure("error", reason)
        self._connect(GET_AVAILABLE)

    def read_into(self, view: memoryview) -> int:
        try:
            return self._read_into(view)
        except OSError as error:
            raise SourceFailure.of(error, "read", self._place) from None

    def kernel_name(self) -> str | None:
        return None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self, command: int) -> None:
        self.close()
        failures: list[SourceFailure] = []
        for family, address in self._addresses:
            try:
                self._socket = self._connected(family, address)
                break
            except socket.timeout:
                failures.append(SourceFailure("error", f"{self._place} does not take the connection"))
            except OSError as error:
                failures.append(SourceFailure.of(error, "connect to", self._place))
        else:
            raise failures[0]
        self._command, self._asked, self._due = command, 0, 0
        self._answered = self._begun = False

    def _connected(self, family: int, address: str | tuple[str, int]) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        end = time.monotonic() + CONNECT_S
        try:
            sock.settimeout(CONNECT_S)
            while True:
                try:
                    sock.connect(address)
                    break
                except BlockingIOError:  # unix(7): the server has not accepted those who came before
                    if time.monotonic() > end:
                        raise socket.timeout from None
                    time.sleep(EMPTY_S)
            if family != socket.AF_UNIX and sock.getsockname() == sock.getpeername():
                # Where nobody listens, TCP may connect a socket with itself: our requests would come back.
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock

    def _read_into(self, view: memoryview) -> int:
        sock = self._socket
        assert sock is not None, "not open"
        if not self._asked and not self._due:
            self._nothing_unasked(sock)
            self._request(sock, min(MAX_REQUEST, len(view)))
        if not _readable(sock, POLL_S):
            return self._silence()
        if self._asked:
            self._take_count(sock)
            return 0
        with view[: self._due] as wanted:
            count = sock.recv_into(wanted)
            if count == 0:
                return self._closed()
            self._due -= count
            self._heard()
            try:
                if not self._due:
                    self._nothing_unasked(sock)
            except SourceFailure:
                wanted[:] = bytes(len(wanted))
                raise
        return count

    def _request(self, sock: socket.socket, n_bytes: int) -> None:
        sock.sendall(bytes((self._command, n_bytes)))
        self._begun, self._heard_s = False, time.monotonic()
        if self._command == GET_AVAILABLE:
            self._asked = n_bytes
        else:
            self._due = n_bytes

    def _take_count(self, sock: socket.socket) -> None:
        answer = sock.recv(1)
        if not answer:
            self._closed()
            return
        asked, self._asked, self._due = self._asked, 0, answer[0]
        self._heard()
        if self._due > asked:
            raise self._too_much()
        if not self._due:
            self._nothing_unasked(sock)
            time.sleep(EMPTY_S)  # it has none

    def _heard(self) -> None:
        self._answered = self._begun = True
        self._heard_s = time.monotonic()

    def _silence(self) -> int:
        silent_s = time.monotonic() - self._heard_s
        if self._command == GET_AVAILABLE and not self._answered:
            if silent_s >= UNKNOWN_S:
                self._connect(GET_WAITING)
            return 0
        patience_s = SHORT_S if self._command == GET_AVAILABLE or self._begun else SILENT_S
        if silent_s < patience_s:
            return 0
        if self._command == GET_WAITING and self._begun:
            raise SourceFailure("error", f"{self._place} has answered with {self._due} bytes too few")
        raise SourceFailure("stalled", f"{self._place} has not answered for {patience_s:g} s")

    def _closed(self) -> int:
        if self._command == GET_AVAILABLE and not self._answered:
            self._connect(GET_WAITING)
            return 0
        raise SourceFailure("error", f"{self._place} closed the connection")

    def _nothing_unasked(self, sock: socket.socket) -> None:
        if _readable(sock, 0) and sock.recv(1, socket.MSG_PEEK):
            raise self._too_much()

    def _too_much(self) -> SourceFailure:
        return SourceFailure("error", f"{self._place} sends more than was asked for: it is no EGD server")


def _readable(sock: socket.socket, wait_s: float) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(wait_s * 1000))


def _loopback(address: str) -> list[tuple[int, tuple[str, int]]]:
    """Where an address that config/sources.py has let pass is: on loopback, whatever a resolver would say."""
    host, _, port = address.rpartition(":")
    hosts = ("127.0.0.1", "::1") if host == "localhost" else (host.strip("[]"),)
    return [(socket.AF_INET6 if ":" in each else socket.AF_INET, (each, int(port))) for each in hosts]
