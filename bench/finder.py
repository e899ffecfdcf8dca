# SPDX-License-Identifier: Apache-2.0
"""Where in several streams the bytes that somebody got come from. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

PROBE = 8  # bytes; two equal runs of them in megabytes are beyond chance
SURE = 2 * PROBE - 1  # bytes in a row of which one probe is found for certain
JOINT = 4  # bytes; that so many more are equal where two parts meet is beyond chance as well


class Part(NamedTuple):
    """`length` bytes from `position` on in what somebody got are those from `offset` on of the stream `name`.

    `name` is "" where they are of none.
    """

    position: int
    length: int
    name: str
    offset: int

    @property
    def end(self) -> int:
        """The offset after its last byte."""
        return self.offset + self.length


class Finder:
    """Finds any SURE consecutive bytes of the streams; of what a stream has several times, the first."""

    def __init__(self, streams: Mapping[str, bytes]) -> None:
        self._streams = streams
        self._places: dict[bytes, tuple[str, int]] = {}
        for name, stream in streams.items():
            for offset in range(0, len(stream) - PROBE + 1, PROBE):
                self._places.setdefault(stream[offset : offset + PROBE], (name, offset))

    def parts(self, got: bytes) -> list[Part]:
        """All of ``got``, in order."""
        found: list[Part] = []
        known = position = 0  # up to `known` all is in `found`
        while position + PROBE <= len(got):
            place = self._places.get(got[position : position + PROBE])
            if place is None:
                position += 1
                continue
            name, offset = place
            stream = self._streams[name]
            back = _equal_before(stream, offset, got, position, position - known)
            if position - back > known:
                found.append(Part(known, position - back - known, "", 0))
            ahead = _equal_from(stream, offset, got, position)
            found.append(Part(position - back, back + ahead, name, offset - back))
            known = position = position + ahead
        if known < len(got):
            found.append(Part(known, len(got) - known, "", 0))
        return found


def unknown(parts: list[Part]) -> int:
    """How many bytes are of no stream; fewer than SURE in a row may only be hard to tell."""
    return sum(part.length for part in parts if not part.name and part.length >= SURE)


def beyond(parts: list[Part], name: str, offset: int) -> int:
    """How many bytes are of that stream, from that offset on."""
    return sum(max(0, part.end - max(offset, part.offset)) for part in parts if part.name == name)


def twice(parts: list[Part]) -> int:
    """How many bytes of the streams are in more than one of the parts, or in one twice.

    An overlap of fewer than JOINT is chance: the byte that follows a part is often like the stream's next.
    """
    ends: dict[str, int] = {}
    count = 0
    for part in sorted((part for part in parts if part.name), key=lambda part: (part.name, part.offset)):
        end = ends.get(part.name, 0)
        overlap = min(end, part.end) - part.offset
        count += overlap if overlap >= JOINT else 0
        ends[part.name] = max(end, part.end)
    return count


def _equal_before(stream: bytes, offset: int, got: bytes, position: int, most: int) -> int:
    n = 0
    while n < most and n < offset and stream[offset - n - 1] == got[position - n - 1]:
        n += 1
    return n


def _equal_from(stream: bytes, offset: int, got: bytes, position: int) -> int:
    n, step = 0, 4096
    while step:
        piece = stream[offset + n : offset + n + step]
        if len(piece) == step and piece == got[position + n : position + n + step]:
            n += step
        else:
            step //= 2
    return n
