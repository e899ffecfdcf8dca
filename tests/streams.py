# SPDX-License-Identifier: Apache-2.0
"""A source stream in which every piece can be looked up, and the proof that nothing was given out twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

PROBE = 8  # bytes; two equal runs of them in megabytes are beyond chance
JOINT = 4  # bytes; that so many are equal by chance at one place is beyond it as well


def stream(length: int, key: bytes = b"netrng") -> bytes:
    """``length`` bytes that pass the health tests; any 8 in a row occur at one place alone."""
    return hashlib.shake_256(key).digest(length)


def spans(data: bytes, piece: bytes, after: int = 0) -> list[tuple[int, int]]:
    """The parts of ``data``, as (start, end), that ``piece`` is put together from, in order.

    Parts shorter than PROBE cannot be told and are left out, with JOINT bytes on either side; so are, where
    two parts meet, the bytes that may be the end of the one or the beginning of the other, because chance
    made them equal (one in 256 times at least one is).  AssertionError if the piece holds anything else that
    is not in ``data``.  ``after`` is where the first part is looked for first.
    """
    found: list[tuple[int, int]] = []
    position = unexplained = 0
    while position < len(piece):
        probe = piece[position : position + PROBE]
        place = -1
        if len(probe) == PROBE:
            place = data.find(probe, after, after + 65536)
            place = place if place >= 0 else data.find(probe)
        if place < 0:
            position += 1
            unexplained += 1
            assert unexplained < PROBE, f"bytes that the source never gave, up to offset {position}"
            continue
        length = _common(data, place, piece, position)
        if unexplained:
            _shorten(found, JOINT)
            found.append((place + min(JOINT, length), place + length))
        else:
            _shorten(found, _equal_before(data, place, piece, position))
            found.append((place, place + length))
        after = place + length
        position += length
        unexplained = 0
    if unexplained:
        _shorten(found, JOINT)
    return found


def _shorten(found: list[tuple[int, int]], n_bytes: int) -> None:
    """Leaves out the last part's last bytes."""
    if found:
        start, end = found[-1]
        found[-1] = (start, max(start, end - n_bytes))


def _equal_before(data: bytes, place: int, piece: bytes, position: int) -> int:
    """How many bytes up to there are equal."""
    n = 0
    while min(place, position) > n and data[place - n - 1] == piece[position - n - 1]:
        n += 1
    return n


def _common(data: bytes, place: int, piece: bytes, position: int) -> int:
    """How many bytes from there on are equal."""
    length = min(len(data) - place, len(piece) - position)
    low, high = 1, length
    while low < high:
        middle = (low + high + 1) // 2
        if data[place : place + middle] == piece[position : position + middle]:
            low = middle
        else:
            high = middle - 1
    return low


def assert_disjoint(data: bytes, pieces: Iterable[bytes]) -> int:
    """No byte of ``data`` is in two of the ``pieces``, or twice in one; returns how many were looked up.

    The lookups are quick where the pieces come in about the order of ``data``.
    """
    everything: list[tuple[int, int]] = []
    after = 0
    for piece in pieces:
        found = spans(data, piece, max(0, after - 32768))
        after = found[-1][1] if found else after
        everything += found
    everything.sort()
    for (_, end), (start, last) in zip(everything, everything[1:]):
        assert end <= start, f"bytes were given out twice: {start} to {min(end, last)} of the stream"
    return sum(end - start for start, end in everything)
