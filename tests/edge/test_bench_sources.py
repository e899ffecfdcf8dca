# SPDX-License-Identifier: Apache-2.0
"""The tools of `make bench-sources`: sources that go bad when told to, the log's lines, the judges."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import blackout, feeds, outage
from bench.feeds import BIAS, PIECE, DeviceFeed, Feed, FifoFeed, biased, good
from bench.journal import entries
from bench.line import Line
from tests.edge.rig import wait_for

from netrng_hostd.config import SourceConfig
from netrng_hostd.sources import Source, SourceFailure, make_source


@pytest.fixture(params=[FifoFeed, DeviceFeed])
def feed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Feed]:
    with request.param(tmp_path / "source", b"key", 1_000_000) as feed:
        yield feed


def source_of(feed: Feed) -> Source:
    source = make_source(SourceConfig(kind=feed.kind, path=str(feed.path)))
    source.open()
    return source


def taken(source: Source, n_bytes: int) -> bytes:
    got = b""
    buffer = bytearray(n_bytes)
    while len(got) < n_bytes:
        count = source.read_into(memoryview(buffer)[: n_bytes - len(got)])
        got += buffer[:count]
    return got


def test_what_is_read_is_what_was_written(feed: Feed) -> None:
    source = source_of(feed)
    assert taken(source, 3 * PIECE) == b"".join(good(b"key", number) for number in range(3))
    at = feed.turn(feeds.ZEROS)
    everything = taken(source, at - 3 * PIECE + 100)
    wait_for(lambda: len(feed.written) >= at + 100, "what was read to be counted as written")
    assert everything == feed.written[3 * PIECE : at + 100]
    assert everything[-100:] == bytes(100)
    assert any(everything[-108:-100]), "the zeros begin at the offset that was told"
    source.close()


def test_a_silent_one_brings_only_what_is_given_late(feed: Feed) -> None:
    source = source_of(feed)
    taken(source, PIECE)
    taken(source, feed.turn(feeds.SILENT) - PIECE)
    feed.late(100)
    assert taken(source, 100) == feed.written[-100:]
    source.close()


def test_one_that_is_unplugged_is_gone_until_it_is_plugged_in_again(feed: Feed) -> None:
    source = source_of(feed)
    taken(source, PIECE)
    feed.unplug()
    assert not feed.path.exists()

    def failed() -> bool:
        try:
            source.read_into(memoryview(bytearray(PIECE)))
        except SourceFailure:
            return True
        return False

    wait_for(failed, "the end")
    source.close()
    with pytest.raises(SourceFailure) as caught:
        source.open()
    assert caught.value.state == "absent"
    feed.plug()
    source.open()
    assert len(taken(source, PIECE)) == PIECE
    source.close()


def test_a_biased_one_has_its_bias() -> None:
    ones = sum(bin(byte).count("1") for number in range(64) for byte in biased(b"key", number))
    assert abs(ones / (64 * PIECE * 8) - BIAS) < 0.01


def test_the_logs_lines_have_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        log = "2026-11-27 01:36:27,538 WARNING netrng.source: source a: failed: x: y\nTraceback\n"
        log += "2026-11-27 01:36:28,000 INFO netrng.source: cut o"
        (entry,) = entries(log)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert entry == (1795743387.538, "WARNING", "netrng.source", "source a: failed: x: y")


# The judges: each promise that is broken is SHORT

ZEROS, UNPLUGGED = outage.FAULTS["zeros"], outage.FAULTS["unplugged"]
OUTAGE = outage.Outcome(
    good=9_000, failed_at=9_006, last=8_704, after=0, taken=40_000, unknown=0, doubled=0, lost=0,
    detected_s=0.02, serves_s=0.1, status="failed", check=(1, "WRONG  source first: failed"), told=3,
    back_s=5.0,
)  # fmt: skip
BLACKOUT = blackout.Outcome(
    given=0, bad_s=10.0, answer_s=0.5, cpu=0.01, recovered_s=31.0, states=("failed", "stalled")
)


def short(lines: list[Line]) -> list[int]:
    """Which of them are SHORT."""
    return [number for number, line in enumerate(lines) if not line.ok]


@pytest.mark.parametrize("fault", [ZEROS, UNPLUGGED])
def test_an_outage_that_keeps_all_promises(fault: outage.Fault) -> None:
    assert short(list(outage.judge(fault, OUTAGE))) == []
    assert len(list(outage.judge(fault, OUTAGE._replace(back_s=None)))) == 3


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        (0, {"after": 1}),
        (0, {"unknown": 15}),
        (0, {"doubled": 4}),
        (1, {"serves_s": 1.001}),
        (2, {"status": ""}),
        (2, {"check": (0, "WRONG  source first: failed")}),
        (2, {"check": (1, "")}),
        (2, {"told": 0}),
        (2, {"told": outage.MANY + 1}),
        (3, {"back_s": outage.BACK_S + 0.1}),
    ],
)
def test_an_outage_that_breaks_one(line: int, seen: dict[str, Any]) -> None:
    assert short(list(outage.judge(ZEROS, OUTAGE._replace(**seen)))) == [line]


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        (0, {"given": 1}),
        (1, {"answer_s": blackout.ANSWER_S + 0.1}),
        (1, {"cpu": blackout.CPU + 0.001}),
        (2, {"recovered_s": blackout.RECOVERED_S + 0.1}),
    ],
)
def test_a_blackout_that_breaks_a_promise(line: int, seen: dict[str, Any]) -> None:
    assert short(list(blackout.judge("zeros", BLACKOUT))) == []
    assert short(list(blackout.judge("zeros", BLACKOUT._replace(**seen)))) == [line]
