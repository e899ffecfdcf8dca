# SPDX-License-Identifier: Apache-2.0
"""Feeding and supervising rngd: a stand-in for each way to go wrong. test_real_rngd.py has the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.edge.guest_lab import stream, until

from netrng_guest.demand import BLOCK_SIZE, SECOND_NS
from netrng_guest.loop import Loop
from netrng_guest.rngd import GRACE_NS, MAX_BACKOFF_NS, PARKED_NS, RngdSink
from netrng_guest.sink import STATES

STUB = Path(__file__).parent / "rngd_stub.py"
START_BYTES = 8


class Feeder:
    """An RngdSink on a clock of its own, fed from the stream."""

    def __init__(self, folder: Path | None, mode: str, binary: Path | None = None) -> None:
        self.folder = folder or Path("/nonexistent")
        if folder is not None:
            text = STUB.read_text().replace("#!/usr/bin/env python3", f"#!{sys.executable} -IS", 1)
            (folder / "rngd").write_text(text)
            (folder / "rngd").chmod(0o755)
            (folder / "mode").write_text(mode)
            binary = folder / "rngd"
        self.binary: Path | None = binary
        self.loop = Loop()
        self.now_ns = 10**12
        self.lines: list[str] = []
        self.offset = 0
        self.taken = 0
        self.sink = RngdSink(self.loop, self.lines.append, lambda: str(self.binary) if self.binary else None)
        self.states: list[str] = []

    def turn(self, seconds: float = 0) -> None:
        self.now_ns += int(seconds * 1e9)
        self.sink.tick(self.now_ns)
        self.taken += self.sink.settle()
        assert self.sink.state in STATES
        if self.states[-1:] != [self.sink.state]:
            self.states.append(self.sink.state)
        self.loop.wait(5_000_000)

    def offer(self, size: int = BLOCK_SIZE + 64) -> int:
        n = self.sink.offer(memoryview(stream(self.offset, size)), self.now_ns)
        self.offset += n
        return n

    def until(self, condition: Callable[[], object], what: str) -> None:
        def turned() -> object:
            self.turn()
            return condition()

        until(turned, what)

    def feed(self, what: str) -> None:
        """One block goes in and is taken."""
        self.until(self.offer, f"{what} is accepted")
        self.drain(what)

    def drain(self, what: str) -> None:
        self.until(lambda: self.taken == self.offset, f"{what} is taken")

    def until_state(self, state: str) -> None:
        self.until(lambda: self.sink.state == state, state)

    def until_ended(self) -> None:
        self.until(lambda: self.sink.pid is None, "the end of rngd")

    def starts(self) -> list[int]:
        return [int(line) for line in (self.folder / "starts").read_text().split()]

    def close(self) -> None:
        self.sink.stop()
        self.loop.close()


@pytest.fixture
def feeder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Feeder]:
    made = Feeder(tmp_path, request.param)
    yield made
    made.close()


def modes(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("feeder", names, indirect=True)


@modes("good")
def test_whole_blocks_behind_the_bytes_that_it_reads_first(feeder: Feeder) -> None:
    feeder.turn()
    assert (feeder.sink.state, feeder.sink.detail) == ("starting", "rngd 5 of rng-tools5: waits for a block")
    assert feeder.sink.pid is None, "started without need"
    assert feeder.sink.needed == BLOCK_SIZE + START_BYTES
    assert feeder.offer(BLOCK_SIZE + START_BYTES - 1) == 0
    assert feeder.offer() == BLOCK_SIZE + START_BYTES
    assert feeder.offer() == 0, "a second block is parked in the pipe"
    assert feeder.taken == 0, "acknowledged before rngd took it"
    feeder.drain("the first block")
    assert (feeder.sink.state, feeder.sink.detail) == ("ok", "rngd 5 of rng-tools5")
    for n in range(3):
        assert feeder.offer() == BLOCK_SIZE
        feeder.drain(f"block {n}")
    until(lambda: (feeder.folder / "blocks").stat().st_size == 4 * BLOCK_SIZE, "four blocks")
    blocks = (feeder.folder / "blocks").read_bytes()
    assert blocks == stream(START_BYTES, 4 * BLOCK_SIZE), "blocks begin in the wrong place"
    assert len(feeder.starts()) == 1


@modes("parked")
def test_a_parked_rngd_is_replaced_and_its_bytes_go_to_the_next(feeder: Feeder) -> None:
    feeder.turn()
    feeder.offer()
    feeder.until(lambda: (feeder.folder / "starts").exists() and feeder.starts(), "start")
    feeder.turn(PARKED_NS / SECOND_NS - 0.1)
    assert feeder.sink.state == "starting"
    feeder.turn(0.2)
    assert feeder.sink.state == "parked"
    assert feeder.sink.detail == "left 2508 bytes untaken for 15 s"
    feeder.until_ended()
    assert feeder.taken == 0
    assert feeder.sink.state == "parked", "the reason is forgotten"
    assert feeder.sink.needed == 0
    assert feeder.offer() == 0, "no backoff"
    (feeder.folder / "mode").write_text("good")
    feeder.turn(1.1)
    assert feeder.offer(1) == 0
    assert feeder.offer(0) == 0 and feeder.sink.pid is not None
    feeder.drain("what the first one left")
    blocks = feeder.folder / "blocks"
    until(
        lambda: blocks.exists() and blocks.read_bytes() == stream(START_BYTES, BLOCK_SIZE), "the same block"
    )
    feeder.until_state("ok")


@modes("deaf")
def test_one_that_ignores_sigterm_is_killed_after_three_seconds(feeder: Feeder) -> None:
    feeder.turn()
    feeder.offer()
    until(lambda: (feeder.folder / "starts").exists() and feeder.starts(), "start")
    feeder.turn(PARKED_NS / SECOND_NS)
    assert feeder.sink.state == "parked"
    pid = feeder.sink.pid
    for _ in range(20):
        feeder.turn()
    assert feeder.sink.pid == pid
    feeder.turn(GRACE_NS / SECOND_NS)
    feeder.until_ended()


@modes("dies 0 1", "dies 3 1", "dies 0 4")
def test_one_that_ends_is_noticed_whatever_its_exit_code(feeder: Feeder) -> None:
    code, blocks = (feeder.folder / "mode").read_text().split()[1:]
    for n in range(int(blocks)):
        feeder.feed(f"block {n}")
    feeder.until_state("dying")
    assert feeder.sink.detail == f"rngd ended, exit code {code}: a last word"
    assert feeder.sink.pid is None
    assert feeder.offer() == 0
    feeder.turn(1.1)
    assert feeder.offer() == BLOCK_SIZE + START_BYTES
    feeder.drain("the first block of the second rngd")
    assert int(blocks) == 1 or "ok" in feeder.states


@modes("dies 1 1")
def test_the_backoff_doubles_up_to_a_minute_and_starts_over_after_a_steady_minute(feeder: Feeder) -> None:
    waits = []
    for n in range(9):
        feeder.feed(f"block {n}")
        feeder.until_state("dying")
        due_ns = feeder.sink.next_ns()
        assert due_ns is not None
        waits.append((due_ns - feeder.now_ns) // SECOND_NS)
        feeder.turn(waits[-1])
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    (feeder.folder / "mode").write_text("dies 1 2")
    feeder.feed("one block")
    feeder.turn(61)
    feeder.feed("the next block")
    feeder.until_state("dying")
    assert feeder.sink.next_ns() == feeder.now_ns + SECOND_NS
    assert MAX_BACKOFF_NS == 60 * SECOND_NS


@modes("gives-up")
def test_one_that_gives_its_source_up_is_complaining_though_it_exits_with_0(feeder: Feeder) -> None:
    feeder.feed("a block")
    feeder.until_ended()
    assert feeder.sink.state == "complaining"
    assert feeder.sink.detail == "too many FIPS failures, disabling entropy source"


@modes("rejects 1")
def test_one_rejected_block_is_chance_and_is_over_after_two_good_ones(feeder: Feeder) -> None:
    feeder.feed("a good block")
    feeder.feed("the bad one")
    feeder.until_state("complaining")
    assert feeder.sink.detail == "block failed FIPS test: 0x1f"
    feeder.feed("a good one")
    feeder.feed("another")
    assert feeder.sink.state == "complaining"
    feeder.feed("and the one after which both are known to be good")
    feeder.until_state("ok")
    assert len(feeder.starts()) == 1


@modes("rejects 0 1 2 3")
def test_three_rejected_blocks_condemn_it(feeder: Feeder) -> None:
    for n in range(3):
        feeder.feed(f"bad block {n}")
        feeder.until(lambda n=n: sum("failed" in line for line in feeder.lines) > n, "rejected")  # type: ignore[misc]
    feeder.until_ended()
    assert feeder.sink.state == "complaining"
    assert feeder.lines[-1] == "rngd ended, signal 15: block failed FIPS test: 0x1f"


@modes("denied")
def test_without_the_right_to_credit(feeder: Feeder) -> None:
    feeder.feed("a block")
    feeder.until_ended()
    assert feeder.sink.state == "no-permission"
    assert feeder.sink.detail == "RNDADDENTROPY failed: Operation not permitted"


@modes("parked")
def test_a_flush_takes_the_block_out_of_the_pipe(feeder: Feeder) -> None:
    feeder.turn()
    feeder.offer()
    feeder.sink.flush(feeder.now_ns)
    assert feeder.sink._pipe.waiting == 0
    feeder.turn(PARKED_NS / SECOND_NS + 1)
    assert feeder.sink.state == "starting", "parked on nothing"
    assert feeder.taken == 0
    assert feeder.offer() == BLOCK_SIZE + START_BYTES


@modes("parked")
def test_a_flush_drops_what_a_predecessor_left(feeder: Feeder) -> None:
    feeder.turn()
    feeder.offer()
    feeder.turn(PARKED_NS / SECOND_NS)
    feeder.until_ended()
    left = feeder.sink._left
    assert bytes(left) == stream(0, BLOCK_SIZE + START_BYTES)
    feeder.sink.flush(feeder.now_ns)
    assert not any(left)
    feeder.turn(1.1)
    assert feeder.sink.needed == BLOCK_SIZE + START_BYTES


@modes("good")
def test_stop_leaves_no_process(feeder: Feeder) -> None:
    feeder.feed("a block")
    pid = feeder.sink.pid
    assert pid is not None
    feeder.sink.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    feeder.sink._pipe = type(feeder.sink._pipe)(feeder.loop)  # for the fixture's own stop


@modes("good")
def test_without_any_rngd_and_then_with_one(feeder: Feeder) -> None:
    binary, feeder.binary = feeder.binary, None
    feeder.turn()
    assert feeder.sink.state == "absent"
    assert feeder.offer() == 0
    feeder.binary = Path("/bin/true")
    feeder.turn(61)
    assert (feeder.sink.state, feeder.sink.detail) == ("absent", "/bin/true is no rngd that we know")
    feeder.binary = binary
    feeder.turn(30)
    assert feeder.sink.state == "absent"
    feeder.turn(31)
    feeder.feed("a block")
    assert feeder.sink.state == "ok"


@modes("slow")
def test_one_that_was_slow_to_tell_what_it_is_is_asked_again_with_more_patience(feeder: Feeder) -> None:
    feeder.sink._patience_s = 1
    feeder.turn()
    assert feeder.sink.state == "starting"
    assert feeder.sink.detail == f"{feeder.binary} has not told within 1 s what it is"
    assert feeder.sink._patience_s == 2
    assert feeder.sink.next_ns() == feeder.now_ns + 5 * SECOND_NS
    (feeder.folder / "mode").write_text("good")
    feeder.sink._patience_s = 60  # this machine may be slow as well
    feeder.turn(4)
    assert feeder.offer() == 0
    feeder.turn(2)
    feeder.feed("a block")
    assert feeder.sink.state == "ok"


@modes("good")
def test_one_that_cannot_be_started(feeder: Feeder) -> None:
    feeder.turn()
    assert feeder.binary is not None
    feeder.binary.unlink()
    assert feeder.offer() == 0
    assert feeder.sink.state == "failed"
    assert "No such file" in feeder.sink.detail


@modes("good")
def test_no_byte_of_the_data_is_in_what_is_logged(feeder: Feeder) -> None:
    feeder.feed("a block")
    assert len(feeder.lines) == 1
    assert feeder.lines[0].startswith("started ")


@modes("upstream 24", "upstream 8", "upstream 0", "upstream 40")
def test_upstream_however_much_it_reads_first(feeder: Feeder) -> None:
    first = int((feeder.folder / "mode").read_text().split()[1])
    feeder.turn()
    assert feeder.sink.needed == BLOCK_SIZE + 24
    assert feeder.offer() == BLOCK_SIZE + 24
    feeder.drain("the first block, and what it reads of the next")
    feeder.turn(1)
    feeder.turn(PARKED_NS / SECOND_NS)
    assert feeder.sink.state == "ok", feeder.sink.detail
    for n in range(2):
        feeder.feed(f"block {n}")
    # One that reads more than we knew lags behind by what is missing; no other does.
    blocks = 2 if first > 24 else 3
    written = feeder.folder / "blocks"
    until(lambda: written.exists() and written.stat().st_size >= blocks * BLOCK_SIZE, "blocks")
    assert written.read_bytes() == stream(first, blocks * BLOCK_SIZE)
    assert len(feeder.starts()) == 1


@modes("parked")
def test_a_successor_of_another_kind_gets_what_was_left_and_no_byte_twice(feeder: Feeder) -> None:
    feeder.turn()
    feeder.sink._left = bytearray(
        stream(0, BLOCK_SIZE + 24)
    )  # as one that reads 24 bytes first would leave it
    feeder.offset = BLOCK_SIZE + 24
    (feeder.folder / "mode").write_text("good")
    assert feeder.offer() == 0 and feeder.sink.pid is not None
    feeder.until(lambda: feeder.taken == BLOCK_SIZE + START_BYTES, "the first block")
    feeder.feed("the next block")
    written = feeder.folder / "blocks"
    until(lambda: written.exists() and written.stat().st_size == 2 * BLOCK_SIZE, "two blocks")
    assert written.read_bytes() == stream(START_BYTES, 2 * BLOCK_SIZE)


@modes("deaf")
def test_one_that_dies_before_it_took_what_another_had_left_loses_none_of_it(feeder: Feeder) -> None:
    feeder.turn()
    feeder.sink._left = bytearray(stream(0, BLOCK_SIZE + 24))
    feeder.offset = BLOCK_SIZE + 24
    assert feeder.offer() == 0 and feeder.sink.pid is not None
    os.kill(feeder.sink.pid, 9)
    feeder.until_ended()
    assert feeder.taken == 0
    assert feeder.sink._left == stream(0, BLOCK_SIZE + 24)


def test_the_agent_killed_takes_rngd_along(tmp_path: Path) -> None:
    (tmp_path / "rngd").write_text(
        STUB.read_text().replace("#!/usr/bin/env python3", f"#!{sys.executable} -IS", 1)
    )
    (tmp_path / "rngd").chmod(0o755)
    (tmp_path / "mode").write_text("deaf")
    text = (
        "import sys, time; from netrng_guest.loop import Loop; from netrng_guest.rngd import RngdSink\n"
        "from netrng_guest import variants; variants.HELP_S = 60\n"
        "sink = RngdSink(Loop(), print, lambda: sys.argv[1])\n"
        "sink.tick(1); sink.offer(memoryview(bytes(3000)), 1); print(sink.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", text, str(tmp_path / "rngd")],
        cwd=Path(__file__).parents[2] / "guest",
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        until(lambda: (tmp_path / "starts").exists() and (tmp_path / "starts").read_text(), "start")
        pid = int((tmp_path / "starts").read_text())
        parent.kill()

        def ended() -> bool:
            try:
                return " Z " in Path(f"/proc/{pid}/stat").read_text()
            except OSError:
                return True

        until(ended, "end")
