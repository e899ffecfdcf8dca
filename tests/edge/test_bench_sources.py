# SPDX-License-Identifier: Apache-2.0
"""The tools of `make bench-sources`: sources that go bad when they are told to, and the log's lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import feeds
from bench.feeds import BIAS, PIECE, DeviceFeed, Feed, FifoFeed, biased, good
from bench.journal import entries
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
        log = "2026-11-27 01:36:27,538 WARNING netrng.source: source a: failed: x: y\nTraceback\n2026-1"
        (entry,) = entries(log)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert entry == (1795743387.538, "WARNING", "netrng.source", "source a: failed: x: y")
