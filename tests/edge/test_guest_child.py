# SPDX-License-Identifier: Apache-2.0
"""A child program: heard line by line, stopped for certain, and its pipe that holds one block."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from tests.edge.guest_lab import until

from netrng_guest.blockpipe import BlockPipe
from netrng_guest.child import MAX_LINE, Child
from netrng_guest.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open("/dev/null", os.O_RDONLY)
    yield fd
    os.close(fd)


def run(loop: Loop, null: int, script: str) -> tuple[list[str], str]:
    """What it said, and how it ended."""
    lines: list[str] = []
    child = Child(loop, ["/bin/sh", "-c", script], null, lines.append)
    ends: list[str | None] = []

    def ended() -> bool:
        loop.wait(1_000_000)
        assert len(child._line) <= MAX_LINE, "a line without an end grows and grows"
        ends.append(child.poll())
        return ends[-1] is not None

    until(ended, "the end")
    return lines, str(ends[-1])


def test_lines_from_both_outputs_and_the_end(loop: Loop, null: int) -> None:
    lines, how = run(loop, null, "echo one; echo two >&2; echo; printf three; exit 3")
    assert (lines, how) == (["one", "two", "three"], "exit code 3")


def test_an_end_by_a_signal(loop: Loop, null: int) -> None:
    assert run(loop, null, "kill -9 $$") == ([], "signal 9")


def test_what_is_said_is_bounded_and_plain(loop: Loop, null: int) -> None:
    lines, _ = run(loop, null, r"head -c 100000 /dev/zero | tr '\0' x; echo; printf 'a\033[31m\344b\n'")
    assert {len(line) <= MAX_LINE for line in lines} == {True}
    assert sum(map(len, lines)) < 100_000 // 4096 * MAX_LINE + 1000
    assert lines[-1] == "a?[31m?b"


def test_a_grandchild_that_holds_the_output_open_is_not_waited_for(loop: Loop, null: int) -> None:
    lines, how = run(loop, null, "sleep 300 & echo $!; exit 0")
    assert how == "exit code 0"
    os.kill(int(lines[0]), signal.SIGKILL)


def test_stop_kills_what_does_not_end(loop: Loop, null: int) -> None:
    lines: list[str] = []
    child = Child(
        loop, ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], null, lines.append
    )

    def ready() -> list[str]:
        loop.wait(1_000_000)
        return lines

    until(ready, "ready")
    child.stop(0.05)
    assert child.poll() == "signal 9"
    child.signal(signal.SIGTERM)


def test_what_cannot_be_started(loop: Loop, null: int) -> None:
    with pytest.raises(FileNotFoundError):
        Child(loop, ["/nonexistent"], null, print)


def test_the_environment_of_signals_is_restored(loop: Loop, null: int) -> None:
    # Python ignores SIGPIPE; a program that inherited that would not end with its reader.
    lines, _ = run(loop, null, "grep SigIgn /proc/self/status")
    assert int(lines[0].split()[1], 16) & 1 << (signal.SIGPIPE - 1) == 0


def test_a_block_pipe_counts_what_was_read(loop: Loop) -> None:
    pipe = BlockPipe(loop)
    block = bytearray(os.urandom(2508))
    assert pipe.count() == 0
    pipe.put(block)
    assert (pipe.waiting, pipe.count()) == (2508, 0)
    reader = os.open(f"/proc/self/fd/{pipe.read_end}", os.O_RDONLY)
    assert os.read(reader, 8) == block[:8]
    assert (pipe.count(), pipe.waiting, pipe.count()) == (8, 2500, 0)
    assert os.read(reader, 1000) == block[8:1008]
    rest, taken = pipe.take_back()
    assert (rest, taken, pipe.waiting) == (block[1008:], 1000, 0)
    pipe.put(block)
    os.read(reader, 4096)
    assert pipe.take_back() == (bytearray(), 2508)
    assert pipe.take_back() == (bytearray(), 0)
    os.close(reader)
    pipe.close()


def test_a_block_pipe_wakes_the_loop_when_it_is_empty_and_only_then(loop: Loop) -> None:
    pipe = BlockPipe(loop)
    woken: list[int] = []
    pipe._on_empty = woken.append  # type: ignore[assignment,method-assign]
    pipe.put(bytearray(2508))
    loop.wait(0)
    os.read(pipe.read_end, 8)
    loop.wait(0)
    assert woken == []
    os.read(pipe.read_end, 2500)
    loop.wait(0)
    assert len(woken) == 1
    BlockPipe._on_empty(pipe, 0)
    loop.wait(0)
    assert len(woken) == 1, "it would wake us for ever"
    pipe.close()
