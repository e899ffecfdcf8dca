# SPDX-License-Identifier: Apache-2.0
"""What somebody got is found in the streams that it is of, and what is of none, or came twice, is told."""

from __future__ import annotations

from bench import finder
from bench.finder import JOINT, SURE, Finder, Part
from hypothesis import given
from hypothesis import strategies as st
from tests.streams import stream

STREAMS = {"a": stream(20_000, b"a"), "b": stream(20_000, b"b")}
FINDER = Finder(STREAMS)

pieces = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 19_000), st.integers(2 * SURE, 900)), max_size=12
)


@given(pieces)
def test_every_piece_is_found_where_it_is_from(cut: list[tuple[str, int, int]]) -> None:
    parts = FINDER.parts(b"".join(STREAMS[name][at : at + length] for name, at, length in cut))
    position = 0
    for part in parts:
        assert part.position == position, "nothing is left out"
        position += part.length
    assert position == sum(length for _, _, length in cut)
    assert finder.unknown(parts) == 0
    # Where two pieces meet, a byte or two may by chance be of either; pieces that follow on are one.
    known = [part for part in parts if part.name]
    for name, at, length in cut:
        assert any(
            part.name == name and part.offset <= at + JOINT and at + length <= part.end + JOINT
            for part in known
        )


def test_what_is_of_no_stream_is_unknown() -> None:
    parts = FINDER.parts(STREAMS["a"][100:300] + bytes(64) + STREAMS["b"][7:100])
    assert [part.name for part in parts] == ["a", "", "b"]
    assert 64 - 2 * JOINT <= finder.unknown(parts) <= 64
    assert finder.unknown([Part(0, SURE - 1, "", 0)]) == 0, "so few may only be hard to tell"


def test_what_is_beyond_an_offset_is_counted() -> None:
    parts = [Part(0, 100, "a", 0), Part(100, 50, "a", 200), Part(150, 900, "b", 0), Part(1050, 90, "", 0)]
    counts = [finder.beyond(parts, "a", offset) for offset in (250, 249, 200, 150, 99, 0)]
    assert counts == [0, 1, 50, 50, 51, 150]


def test_what_came_twice_is_counted() -> None:
    once = [Part(0, 100, "a", 0), Part(100, 100, "b", 0), Part(200, 50, "a", 100), Part(250, 9, "", 0)]
    assert finder.twice(once) == 0
    assert finder.twice([*once, Part(259, 30, "a", 90)]) == 30
    assert finder.twice([*once, Part(259, 30, "a", 149 - JOINT)]) == JOINT + 1
    assert finder.twice([*once, Part(259, 30, "a", 151 - JOINT)]) == 0, "chance"


def test_of_what_a_stream_repeats_the_first_is_meant() -> None:
    (part,) = Finder({"zeros": stream(1000) + bytes(5000)}).parts(bytes(64))
    assert (part.name, part.length) == ("zeros", 64)
    assert 1000 <= part.offset < 1000 + finder.PROBE
