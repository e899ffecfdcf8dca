# SPDX-License-Identifier: Apache-2.0
"""Waiting for descriptors, time and signals."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from netrng_guest.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_descriptor_calls_its_callback_until_unwatched(loop: Loop, pipe: tuple[int, int]) -> None:
    seen: list[int] = []
    assert loop.watch(pipe[0], select.EPOLLIN, seen.append)
    loop.wait(0)
    assert seen == []
    os.write(pipe[1], b"x")
    loop.wait(None)
    assert seen == [select.EPOLLIN]
    loop.unwatch(pipe[0])
    loop.unwatch(pipe[0])
    loop.wait(0)
    assert len(seen) == 1


def test_watching_again_changes_events_and_callback(loop: Loop, pipe: tuple[int, int]) -> None:
    first: list[int] = []
    second: list[int] = []
    loop.watch(pipe[1], select.EPOLLOUT, first.append)
    loop.watch(pipe[1], select.EPOLLOUT | select.EPOLLET, second.append)
    loop.wait(0)
    loop.wait(0)
    assert (first, second) == ([], [select.EPOLLOUT])


def test_a_regular_file_needs_no_waiting(loop: Loop, tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        assert not loop.watch(file.fileno(), select.EPOLLOUT, lambda events: None)
        loop.unwatch(file.fileno())


def test_a_closed_descriptor_is_an_error(loop: Loop) -> None:
    fd = os.dup(2)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.watch(fd, select.EPOLLIN, lambda events: None)


def test_a_callback_may_unwatch_another_of_the_same_round(loop: Loop) -> None:
    ends = os.pipe() + os.pipe()
    called: list[int] = []

    def callback_for(fd: int, other: int) -> None:
        def callback(events: int) -> None:
            called.append(fd)
            loop.unwatch(other)

        loop.watch(fd, select.EPOLLIN, callback)

    callback_for(ends[0], ends[2])
    callback_for(ends[2], ends[0])
    os.write(ends[1], b"x")
    os.write(ends[3], b"x")
    loop.wait(0)
    assert len(called) == 1
    for end in ends:
        os.close(end)


def test_a_vanished_descriptor_can_be_unwatched(loop: Loop) -> None:
    read_end, write_end = os.pipe()
    loop.watch(read_end, select.EPOLLIN, lambda events: None)
    os.close(read_end)
    os.close(write_end)
    loop.unwatch(read_end)


def test_signals_end_the_waiting_and_are_collected() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    loop = Loop()
    loop.catch(signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.wait(None)
    assert loop.signals == {signal.SIGUSR1}
    loop.wait(0)
    loop.close()
    signal.signal(signal.SIGUSR1, before)


def test_time_is_rounded_up_so_that_nobody_wakes_too_early_and_spins(loop: Loop) -> None:
    waits: list[float | None] = []

    class Recorder:
        def poll(self, timeout: float | None) -> list[tuple[int, int]]:
            waits.append(timeout)
            return []

        def close(self) -> None:
            pass

    loop._epoll.close()
    loop._epoll = Recorder()  # type: ignore[assignment]
    for timeout_ns in (None, -5, 0, 1, 999_999, 1_000_001):
        loop.wait(timeout_ns)
    assert waits == [None, 0, 0, 0.001, 0.001, 0.002]
