# SPDX-License-Identifier: Apache-2.0
"""The frame format, version 1; docs/protocol.md describes it in full.  Pure: bytes in, frames out.

A frame is a header of 20 bytes that carries its own CRC-32, a payload, and a CRC-32 over the header's first
16 bytes and the payload.  Three laws hold for any input, and the decoder raises on none:

- a length is believed only after the header was verified, so garbage never makes a decoder wait;
- a verified header inside an unfinished frame ends that frame, so half a frame never swallows the whole
  frames behind it: a frame that arrives whole is decoded at its last byte, whatever came before it;
- what is decoded does not depend on how the stream was chopped.
"""

import json
import re
import struct
import zlib
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple, Union

MAGIC = b"\xc7N"
VERSIONS = (1, 1)  # the oldest and the newest version spoken
NONCE_SIZE = 8
SEED_SIZE = 64  # the first bytes of a session, for the kernel of the guest
MIN_WINDOW, MAX_WINDOW = SEED_SIZE, 65536
MAX_DATA = 65536  # bytes in one SAMPLE
MAX_STATUS = 512  # bytes of JSON in one STATUS
GUEST_MAX_PAYLOAD = MAX_DATA + 8  # the largest payload that a guest has to take: a SAMPLE
HOST_MAX_PAYLOAD = 1024  # a host's: twice a STATUS, room for optional frames to come

FROM_HOST, OPTIONAL = 0x80, 0x40
PROBE, ACCEPT, SAMPLE, HOLD, CLOSE = 0x81, 0x82, 0x83, 0x84, 0x85
KNOCK, OPEN, GRANT, STATUS, BYE = 0x01, 0x02, 0x03, 0x44, 0x05

CLOSE_REASONS = {"other": 0, "shutdown": 1, "violation": 2, "incompatible": 3, "removed": 4}

_FIELDS = struct.Struct(">2sBBI8s")
_HEADER = struct.Struct(">2sBBI8sI")
_LENGTH_AND_ON = struct.Struct(">I8sI")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
HEADER_SIZE = _HEADER.size
OVERHEAD = HEADER_SIZE + 4
_SAMPLE_START = HEADER_SIZE + 8
# What a header begins with: magic, any kind, a zero, and a length below 2^17.  A search in C, because a flood
# of garbage must cost less than a flood of frames.
_START = re.compile(b"\xc7N[\x00-\xff]\x00\x00[\x00\x01]", re.DOTALL).search
_START_SIZE = 6

Buffer = Union[bytes, bytearray, memoryview]


class Probe(NamedTuple):
    """Host: here is the host, and this names the session to come."""

    session: bytes
    min_version: int
    max_version: int


class Accept(NamedTuple):
    """Host: the session is open, for the guest that chose ``guest_nonce``."""

    session: bytes
    guest_nonce: bytes
    version: int
    max_window: int


class Sample(NamedTuple):
    """Host: bytes [offset, offset + len(data)) of the session.  Whoever takes ``data`` overwrites it."""

    session: bytes
    offset: int
    data: bytearray

    def __repr__(self) -> str:  # the bytes must not end in a log
        return "Sample({}, {}, {} bytes)".format(self.session.hex(), self.offset, len(self.data))


class Hold(NamedTuple):
    """Host: keep-alive; ``sent`` bytes of the session were sent so far."""

    session: bytes
    sent: int


class Close(NamedTuple):
    """Host: the session is over, for one of CLOSE_REASONS."""

    session: bytes
    reason: int


class Knock(NamedTuple):
    """Guest: I am here and have no session."""

    guest_nonce: bytes


class Open(NamedTuple):
    """Guest: the answer to a PROBE."""

    session: bytes
    guest_nonce: bytes
    min_version: int
    max_version: int


class Grant(NamedTuple):
    """Guest: send up to offset ``granted``; ``acked`` bytes are settled, ``lost`` of them never arrived."""

    session: bytes
    granted: int
    acked: int
    lost: int


class Status(NamedTuple):
    """Guest: what the agent does, as JSON."""

    session: bytes
    text: bytes


class Bye(NamedTuple):
    """Guest: the agent stops."""

    session: bytes


class Unknown(NamedTuple):
    """A whole frame of a kind or size that this version does not know, and that is not optional."""

    session: bytes
    kind: int


Control = Union[Probe, Accept, Hold, Close, Knock, Open, Grant, Status, Bye]
Frame = Union[Control, Sample, Unknown]

_LAYOUTS: Dict[int, Tuple[Callable[..., Control], struct.Struct]] = {
    PROBE: (Probe, struct.Struct(">BB")),
    ACCEPT: (Accept, struct.Struct(">8sBI")),
    HOLD: (Hold, _U64),
    CLOSE: (Close, struct.Struct(">B")),
    OPEN: (Open, struct.Struct(">8sBB")),
    GRANT: (Grant, struct.Struct(">QQQ")),
    BYE: (Bye, struct.Struct("")),
}
_KINDS: Dict[object, int] = {make: kind for kind, (make, _) in _LAYOUTS.items()}


def wipe(buffer: bytearray) -> None:
    """Overwrites ``buffer`` with zeros."""
    buffer[:] = bytes(len(buffer))


def _frame(kind: int, session: bytes, payload: bytes) -> bytes:
    fields = _FIELDS.pack(MAGIC, kind, 0, len(payload), session)
    crc = zlib.crc32(fields)
    return fields + _U32.pack(crc) + payload + _U32.pack(zlib.crc32(payload, crc))


def encode(frame: Control) -> bytes:
    """The bytes of any frame but a SAMPLE."""
    if isinstance(frame, Knock):
        return _frame(KNOCK, bytes(NONCE_SIZE), frame.guest_nonce)
    if isinstance(frame, Status):
        return _frame(STATUS, frame.session, frame.text)
    kind = _KINDS[type(frame)]
    return _frame(kind, frame.session, _LAYOUTS[kind][1].pack(*frame[1:]))


def encode_sample(session: bytes, offset: int, data: Buffer) -> bytearray:
    """The bytes of a SAMPLE with 1 to 65,536 bytes; the caller overwrites both once they are spent."""
    size = len(data)
    frame = bytearray(_SAMPLE_START + size + 4)  # at once: growing would leave copies behind
    _FIELDS.pack_into(frame, 0, MAGIC, SAMPLE, 0, 8 + size, session)
    with memoryview(frame) as view:
        crc = zlib.crc32(view[:16])
        _U32.pack_into(frame, 16, crc)
        _U64.pack_into(frame, HEADER_SIZE, offset)
        view[_SAMPLE_START : _SAMPLE_START + size] = data
        _U32.pack_into(frame, _SAMPLE_START + size, zlib.crc32(view[HEADER_SIZE : _SAMPLE_START + size], crc))
    return frame


class Decoder:
    """Turns one direction of a stream into frames.

    ``from_host`` says whose frames are wanted; those of the other direction are our own, echoed by a
    terminal, and dropped.  Holds at most one frame of ``max_payload`` bytes and the bytes fed last; what is
    consumed is overwritten.
    """

    def __init__(self, from_host: bool, max_payload: int) -> None:
        self._direction = FROM_HOST if from_host else 0
        self._max_payload = max_payload
        self._buffer = bytearray()
        self._scanned = 0  # no verified header begins before this place of the unfinished frame in the buffer
        self.garbage_bytes = 0
        self.echoed_frames = 0
        self.unknown_frames = 0

    def feed(self, data: Buffer) -> List[Frame]:
        """The frames that ``data`` completes.  Raises on no input."""
        if self._buffer:
            buffer = self._buffer + data
            wipe(self._buffer)
        else:
            buffer = bytearray(data)
        frames: List[Frame] = []
        used = self._decode(buffer, frames)
        if used:
            self._buffer = buffer[used:]
            wipe(buffer)
        else:
            self._buffer = buffer
        return frames

    def wipe(self) -> None:
        """Forgets and overwrites a half-received frame."""
        wipe(self._buffer)
        self._buffer = bytearray()
        self._scanned = 0

    def _decode(self, buffer: bytearray, frames: List[Frame]) -> int:
        """Appends what is complete; returns how much of the buffer is spent."""
        end, place = len(buffer), 0
        scanned, self._scanned = self._scanned, 0
        while True:
            start = self._find_header(buffer, place, end)
            self.garbage_bytes += start - place
            if start + HEADER_SIZE > end:
                return start
            _, kind, _, length, session, crc = _HEADER.unpack_from(buffer, start)
            stop = start + OVERHEAD + length
            limit = min(stop, end)
            inner = self._find_header(buffer, max(start + 2, scanned), limit)
            if inner + HEADER_SIZE <= limit:
                place = inner
                self.garbage_bytes += inner - start
                continue
            if stop > end:
                self._scanned = inner - start
                return start
            with memoryview(buffer) as view, view[start + HEADER_SIZE : stop - 4] as payload:
                if zlib.crc32(payload, crc) == _U32.unpack_from(buffer, stop - 4)[0]:
                    frame = self._parse(kind, session, payload)
                    if frame is not None:
                        frames.append(frame)
                    place = stop
                else:
                    self.garbage_bytes += 1
                    place = start + 1

    def _find_header(self, buffer: bytearray, place: int, end: int) -> int:
        """Where the first verified header begins, or else where one may yet be beginning."""
        while True:
            match = _START(buffer, place, end)
            if match is None:
                return max(place, end - _START_SIZE + 1)
            place = match.start()
            if place + HEADER_SIZE > end:
                return place
            length, _, crc = _LENGTH_AND_ON.unpack_from(buffer, place + 4)
            if length <= self._max_payload and zlib.crc32(buffer[place : place + 16]) == crc:
                return place
            place += 1

    def _parse(self, kind: int, session: bytes, payload: memoryview) -> Optional[Frame]:
        if kind & FROM_HOST != self._direction:
            self.echoed_frames += 1
            return None
        size = len(payload)
        layout = _LAYOUTS.get(kind)
        if layout is not None:
            if size == layout[1].size:
                return layout[0](session, *layout[1].unpack(payload))
        elif kind == SAMPLE:
            if 8 < size <= 8 + MAX_DATA:
                return Sample(session, _U64.unpack_from(payload)[0], bytearray(payload[8:]))
        elif kind == KNOCK:
            if size == NONCE_SIZE:
                return Knock(bytes(payload))
        elif kind == STATUS and size <= MAX_STATUS:
            return Status(session, bytes(payload))
        self.unknown_frames += 1
        return None if kind & OPTIONAL else Unknown(session, kind)


# --- what a STATUS says

STATUS_TEXTS = ("version", "sink", "sink_state", "detail")
STATUS_NUMBERS = ("taken",)
MAX_TEXT = 80
StatusDict = Dict[str, Union[str, int]]


def encode_status(status: StatusDict) -> bytes:
    """The JSON of a STATUS: texts cut to 80 characters, '?' for what is not plain printable ASCII.

    Raises KeyError on a key that the protocol does not know.
    """
    clean: StatusDict = {}
    for key, value in status.items():
        if key in STATUS_TEXTS:
            clean[key] = re.sub(r'[^ -~]|["\\]', "?", str(value)[:MAX_TEXT])
        elif key in STATUS_NUMBERS:
            clean[key] = min(max(int(value), 0), 2**63 - 1)
        else:
            raise KeyError(key)
    return json.dumps(clean, sort_keys=True, separators=(",", ":")).encode("ascii")


def _no_duplicates(pairs: List[Tuple[str, object]]) -> Dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def parse_status(untrusted_text: bytes) -> Optional[StatusDict]:
    """What a STATUS says, or None unless every key is known and every value in its bounds.  Never raises."""
    try:
        found = json.loads(untrusted_text.decode("ascii"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        return None
    if type(found) is not dict:
        return None
    for key, value in found.items():
        if key in STATUS_TEXTS:
            if type(value) is not str or len(value) > MAX_TEXT or not re.match(r"[ -~]*\Z", value):
                return None
        elif key not in STATUS_NUMBERS or type(value) is not int or not 0 <= value < 2**63:
            return None
    return dict(found)
