# SPDX-License-Identifier: Apache-2.0
"""The proof is only as good as its tool: it must see what it is there to see."""

from __future__ import annotations

import pytest
from tests.streams import assert_disjoint, spans, stream

DATA = stream(100_000)


def test_pieces_are_found_where_they_are() -> None:
    assert spans(DATA, DATA[500:900]) == [(500, 900)]
    assert spans(DATA, DATA[500:900] + DATA[964:1003]) == [(500, 900), (964, 1003)]
    assert spans(DATA, DATA[500:507] + DATA[571:1003]) == [(575, 1003)]


def test_disjoint_pieces_are_counted() -> None:
    assert assert_disjoint(DATA, [DATA[0:64], DATA[512:1024], DATA[64:512]]) == 1024


@pytest.mark.parametrize(
    "pieces",
    [
        [DATA[0:64], DATA[63:512]],
        [DATA[100:200], DATA[100:200]],
        [DATA[0:300] + DATA[200:400]],
        [DATA[0:100] + b"something else" + DATA[100:200]],
        [bytes(64)],
    ],
)
def test_a_byte_given_twice_or_never_read_is_seen(pieces: list[bytes]) -> None:
    with pytest.raises(AssertionError):
        assert_disjoint(DATA, pieces)


def test_where_two_parts_meet_chance_is_no_alarm() -> None:
    # The first place at which what comes next in the piece is also what comes next in the stream.
    end = next(n for n in range(64, 4096) if DATA[n] == DATA[n + 64])
    piece, between = DATA[:end] + DATA[end + 64 : end + 128], DATA[end : end + 64]
    assert_disjoint(DATA, [piece, between])
    with pytest.raises(AssertionError, match=f"given out twice: {end - 32} to {end} of"):
        assert_disjoint(DATA, [piece, DATA[end - 32 : end + 64]])


def test_neither_is_it_beside_a_part_that_is_too_short_to_be_told() -> None:
    end = next(n for n in range(64, 4096) if DATA[n] == DATA[n + 64])
    assert_disjoint(
        DATA, [DATA[:end] + DATA[end + 64 : end + 70] + DATA[end + 99 : end + 199], DATA[end : end + 64]]
    )
    begin = next(n for n in range(64, 4096) if DATA[n - 1] == DATA[n + 63])
    assert_disjoint(
        DATA, [DATA[:32] + DATA[begin - 6 : begin] + DATA[begin + 64 : begin + 99], DATA[begin : begin + 64]]
    )
