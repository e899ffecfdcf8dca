# SPDX-License-Identifier: Apache-2.0
"""The agent on a terminal, as a Xen console is: cooked at first, and neither end sees the other go."""

from __future__ import annotations

import contextlib
import os
import pty
from pathlib import Path

import pytest

from netrng_guest import wire
from netrng_guest.line import MAX_UNHEARD
from netrng_guest.port import PortError
from netrng_guest.session import KNOCKING, MAX_KNOCK_NS, OPEN, OPENING, GuestSession

from .guest_lab import Host, Opened, Rig, stream, until

DAY_S = 24 * 3600
OLD = b"oldhost."
KNOCK_SIZE = len(wire.encode(wire.Knock(OLD)))
MAX_STEP = 472  # bytes that the agent writes in one step
RING = 2048  # a Xen console's, from domU to dom0


class TerminalRig(Rig):
    """A rig whose channel is a terminal.  ``before`` is written to it while it is cooked and has no agent.

    ``written``: bytes that the agent wrote.
    """

    def __init__(self, folder: Path, before: bytes = b"") -> None:
        self._before = before
        self.echo = b""
        super().__init__(folder)
        self.written = 0
        self._write = self.agent._line._port.write
        self.agent._line._port.write = self._count  # type: ignore[method-assign]

    def _count(self, data: bytes | bytearray) -> int:
        size = self._write(data)
        self.written += size
        return size

    def make_channel(self, folder: Path) -> str:
        self._host_end, self._guest_end = pty.openpty()  # the second stays open: as if none went
        if self._before:
            os.write(self._host_end, self._before)
            os.set_blocking(self._host_end, False)
            until(self.read, "the terminal echoes")
        return os.ttyname(self._guest_end)

    def accept(self, *, chop: int = 1 << 20, max_window: int = 65536) -> Host:
        """A host that connects, with what its predecessor had not read before it."""
        return Host(os.dup(self._host_end), chop=chop, max_window=max_window, clock=lambda: self.now_ns)

    def read(self) -> bytes:
        """What has come to the host's end; ``echo`` gathers it."""
        with contextlib.suppress(BlockingIOError):
            self.echo += os.read(self._host_end, 65536)
        return self.echo

    def remove_channel(self) -> None:
        os.close(self._host_end)
        os.close(self._guest_end)

    @property
    def state(self) -> str:
        return self.agent._session.state

    def listen(self) -> bool:
        """The agent alone, once, at this moment; for conditions."""
        self.loop.wait(0)
        self.agent.step(self.now_ns)
        return True

    def restart_host(self) -> None:
        """Hostd is killed and comes back; what it was sent meanwhile and has not read is waiting for it."""
        os.close(self.host.link)
        self.host = self.accept()

    def unheard(self, seconds: float) -> int:
        """How much the agent writes while the host reads and says nothing."""
        end_ns, before, steps = self.now_ns + int(seconds * 1e9), self.written, 0
        while self.now_ns < end_ns:
            due_ns = self.agent.step(self.now_ns)
            self.loop.wait(0)
            steps += 1
            self.echo = b""
            self.read()
            if not self.agent._line._readable:  # else an event: another step at the same moment
                assert due_ns is not None and due_ns > self.now_ns, "the agent spins"
                self.now_ns = min(due_ns, end_ns)
        assert steps < 100 + seconds, "the agent spins"
        return self.written - before


@pytest.fixture
def rig(tmp_path: Path) -> TerminalRig:
    return TerminalRig(tmp_path)


def opened(rig: TerminalRig) -> bool:
    return bool(rig.host.session.state == "open" and rig.state == OPEN)


def test_all_values_pass_both_ways(rig: TerminalRig) -> None:
    with rig:
        rig.host.sample = 256
        rig.until(lambda: rig.host.session.acked >= 64 + 2500, "bytes arrive")
        assert rig.pool.given == stream(0, len(rig.pool.given))
        assert set(rig.pool.given) == set(range(256))


def test_what_was_cooked_and_echoed_before_the_agent_costs_nothing(tmp_path: Path) -> None:
    stale = [
        wire.encode(wire.Probe(OLD, 1, 1)),
        os.urandom(500),
        bytes(wire.encode_sample(OLD, 0, bytearray(range(256)))),
        wire.encode(wire.Hold(OLD, 4096)),
        b"\r\n\x03\x04\x11\x13\x15\x7f" * 20,
        wire.encode(wire.Probe(OLD, 1, 1)),
    ]
    rig = TerminalRig(tmp_path, b"".join(stale))
    with rig:
        assert rig.echo, "the terminal was not cooked"
        rig.until(lambda: rig.pool.reseeds, "a session opens")
        rig.pass_s(30)
        assert rig.pool.given == stream(0, len(rig.pool.given)), "stale bytes reached the kernel"
        assert len(rig.host.kinds(Opened)) == 1
        assert rig.host.session.acked == rig.host.session.sent


def test_an_echo_of_its_own_frames_is_dropped(rig: TerminalRig) -> None:
    with rig:
        for _ in range(5):
            before = rig.written
            while rig.written == before:  # until the next KNOCK
                rig.now_ns += 500_000_000
                rig.listen()
            rig.echo = b""
            until(lambda: len(rig.read()) >= KNOCK_SIZE, "the KNOCK comes")
            before = rig.written
            os.write(rig._host_end, rig.echo)  # what is at the host's end is a terminal that is not raw, say
            until(lambda: rig.listen() and rig.agent._line._unheard == 0, "the echo comes")
            assert rig.written == before, "it answers its own frame"
            assert rig.state == KNOCKING
        rig.until(lambda: opened(rig), "a host is taken as ever")


@pytest.mark.parametrize("state", [KNOCKING, OPENING, OPEN])
def test_a_host_that_is_killed_and_comes_back_gets_a_session_of_its_own(rig: TerminalRig, state: str) -> None:
    with rig:
        if state == OPENING:  # it dies between PROBE and ACCEPT
            rig.host.turn(0)
        elif state == OPEN:
            rig.until(lambda: opened(rig) and rig.host.session.acked > 64, "a session is open")
        until(lambda: rig.listen() and rig.state == state, state)
        old, given = rig.agent._session.session, len(rig.pool.given)
        rig.restart_host()
        rig.until(lambda: opened(rig) and rig.host.session.acked > 64, "the new host's session is open")
        assert rig.agent._session.session != old
        seed = rig.pool.given[given:]
        assert seed == stream(0, len(seed)), "bytes of the old session reached the new one's"


def silent_host(rig: TerminalRig) -> None:
    """A host reads and says nothing for days: the agent writes its allowance and then nothing."""
    line = rig.agent._line
    written = line._unheard + rig.unheard(DAY_S)
    assert MAX_UNHEARD <= written < MAX_UNHEARD + MAX_STEP
    assert rig.unheard(3 * DAY_S) == 0
    assert line._unheard == written


@pytest.mark.parametrize("state", [KNOCKING, OPEN])
def test_to_a_silent_host_it_soon_writes_nothing_and_answers_at_once(rig: TerminalRig, state: str) -> None:
    with rig:
        if state == OPEN:
            rig.until(lambda: opened(rig), "a session is open")
            rig.pass_s(1)
        silent_host(rig)
        assert rig.state == state, "silence ends no session"
        os.write(rig._host_end, wire.encode(wire.Hold(rig.agent._session.session or OLD, 0)))
        until(lambda: rig.listen() and rig.agent._line.has_room(), "the HOLD is heard")
        silent_host(rig)
        rig.restart_host()
        moment_ns = rig.now_ns
        rig.until(lambda: opened(rig), "the new host's session opens")
        assert rig.now_ns == moment_ns, "the answer had to wait"


def test_on_a_terminal_that_is_opened_anew_it_speaks_again(rig: TerminalRig) -> None:
    with rig:
        silent_host(rig)
        rig.agent._line._lost(PortError("closed by the host"), rig.now_ns)
        assert rig.unheard(2), "it opens the terminal and is still"
        silent_host(rig)


def test_what_is_written_unheard_fits_into_the_ring() -> None:
    session = GuestSession(lambda: OLD, wire.MAX_WINDOW)
    session.status({**dict.fromkeys(wire.STATUS_TEXTS, "x" * 1000), "taken": 1 << 70})
    session.receive(wire.encode(wire.Probe(OLD, 1, 1)), 0)
    session.receive(wire.encode(wire.Accept(OLD, OLD, 1, wire.MAX_WINDOW)), 0)
    session.tick(1 << 60)  # GRANT and STATUS are the most that is due at once
    assert len(session.take_output()) == MAX_STEP
    # A step's before the last word came, all that is written since, and the BYE of an agent that stops.
    assert MAX_STEP + (MAX_UNHEARD - 1 + MAX_STEP) + len(wire.encode(wire.Bye(OLD))) < RING


def test_a_socket_has_no_such_limit(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        written = b""
        for _ in range(2 * MAX_UNHEARD // KNOCK_SIZE):
            rig.now_ns += MAX_KNOCK_NS
            rig.agent.step(rig.now_ns)
            written += os.read(rig.host.link, 4096)
        assert len(written) > MAX_UNHEARD + MAX_STEP
