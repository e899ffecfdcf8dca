# SPDX-License-Identifier: Apache-2.0
"""The frame format: what is decoded, what is not, and at what cost."""

from __future__ import annotations

import random
import re
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netrng_guest import wire
from netrng_guest.wire import (
    Accept,
    Bye,
    Close,
    Decoder,
    Frame,
    Grant,
    Hold,
    Knock,
    Open,
    Probe,
    Sample,
    Status,
    Unknown,
    encode,
    encode_sample,
)

GOLDEN = Path(__file__).parent / "golden"
H, H2 = bytes.fromhex("1122334455667788"), bytes.fromhex("99aabbccddeeff00")
G, G3 = bytes.fromhex("a0a1a2a3a4a5a6a7"), bytes.fromhex("c0c1c2c3c4c5c6c7")
STATUS_TEXT = b'{"detail":"","sink":"rngd","sink_state":"running","taken":64,"version":"0.1.0"}'
CONVERSATION: list[Frame] = [
    Knock(G),
    Probe(H, 1, 1),
    Open(H, G, 1, 1),
    Accept(H, G, 1, 65536),
    Grant(H, 4096, 0, 0),
    Sample(H, 0, bytearray(range(64))),
    Status(H, STATUS_TEXT),
    Grant(H, 4160, 64, 0),
    Sample(H, 64, bytearray(range(64, 80))),
    Hold(H, 80),
    Grant(H, 4160, 80, 16),
    Bye(H),
    Probe(H2, 1, 1),
    Open(H2, G3, 2, 3),
    Close(H2, 3),
]


def to_bytes(frame: Frame) -> bytes:
    assert not isinstance(frame, Unknown)
    return bytes(encode_sample(*frame)) if isinstance(frame, Sample) else encode(frame)


def from_host(frame: Frame) -> bool:
    return isinstance(frame, (Probe, Accept, Sample, Hold, Close))


def decoder(host: bool) -> Decoder:
    """The decoder of the end that receives the host's frames, or the guest's."""
    return Decoder(host, wire.GUEST_MAX_PAYLOAD if host else wire.HOST_MAX_PAYLOAD)


def raw(
    kind: int, payload: bytes = b"", session: bytes = H, reserved: int = 0, size: int | None = None
) -> bytes:
    """A frame built by hand from the documentation: whole, and right but for what is asked for."""
    length = len(payload) if size is None else size
    fields = b"\xc7N" + struct.pack(">BBI", kind, reserved, length) + session
    check = struct.pack(">I", zlib.crc32(fields))
    return fields + check + payload + struct.pack(">I", zlib.crc32(fields + payload))


HOSTS = [frame for frame in CONVERSATION if from_host(frame)]
GUESTS = [frame for frame in CONVERSATION if not from_host(frame)]


# --- the format


def golden_lines(version: int) -> list[tuple[str, str, bytes]]:
    text = (GOLDEN / f"version-{version}.txt").read_text(encoding="ascii")
    split = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return [(who, kind, bytes.fromhex(frame)) for who, kind, frame in split]


def test_version_1_never_changes() -> None:
    lines = golden_lines(1)
    assert [encoded for _, _, encoded in lines] == [to_bytes(frame) for frame in CONVERSATION]
    for (who, kind, encoded), frame in zip(lines, CONVERSATION):
        assert decoder(who == "host").feed(encoded) == [frame]
        assert encoded[2] == getattr(wire, kind)


def test_the_example_in_the_documentation_is_that_conversation() -> None:
    text = (GOLDEN.parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    example = text.partition("```hex\n")[2].partition("```")[0]
    split = [line.split(None, 2) for line in example.splitlines() if not line.startswith("#")]
    assert [(who, kind, bytes.fromhex(frame)) for who, kind, frame in split] == golden_lines(1)


def test_the_documented_kinds_and_sizes() -> None:
    text = (GOLDEN.parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(..)` \| (\w+) \| (\w+) \| .* \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == len({type(frame) for frame in CONVERSATION})
    for kind, name, sender, size in rows:
        assert getattr(wire, name) == int(kind, 16)
        assert (int(kind, 16) & wire.FROM_HOST != 0) == (sender == "host")
        if size.isdigit():
            assert wire._LAYOUTS[int(kind, 16)][1].size == int(size) if name != "KNOCK" else size == "8"


def test_a_frame_is_as_documented() -> None:
    assert encode(Knock(G)) == raw(0x01, G, session=bytes(8))
    assert encode(Grant(H, 1, 2, 3)) == raw(0x03, struct.pack(">QQQ", 1, 2, 3))
    assert encode_sample(H, 7, b"xyz") == raw(0x83, struct.pack(">Q", 7) + b"xyz")


@pytest.mark.parametrize("size", [1, 512, wire.MAX_DATA])
def test_a_sample_of_any_size_arrives(size: int) -> None:
    data = random.Random(size).randbytes(size)
    (frame,) = decoder(True).feed(encode_sample(H, 2**63, data))
    assert frame == Sample(H, 2**63, bytearray(data))


def test_no_entropy_in_a_repr() -> None:
    (frame,) = decoder(True).feed(encode_sample(H, 0, b"secret"))
    assert repr(frame) == "Sample(1122334455667788, 0, 6 bytes)"


# --- however chopped


@pytest.mark.parametrize("host", [True, False])
def test_chopped_at_every_offset(host: bool) -> None:
    frames = HOSTS if host else GUESTS
    stream = b"".join(map(to_bytes, frames))
    for cut in range(len(stream) + 1):
        both = decoder(host)
        assert both.feed(stream[:cut]) + both.feed(stream[cut:]) == frames
    single = decoder(host)
    assert [frame for i in range(len(stream)) for frame in single.feed(stream[i : i + 1])] == frames
    assert single.garbage_bytes == single.echoed_frames == single.unknown_frames == 0


@st.composite
def dirty_streams(draw: st.DrawFn) -> bytes:
    """Frames of both directions, whole, cut, flipped and repeated, among garbage that looks like frames."""
    pieces = []
    for _ in range(draw(st.integers(0, 8))):
        piece = to_bytes(draw(st.sampled_from(CONVERSATION)))
        how = draw(st.sampled_from(["whole", "head", "tail", "flip", "garbage", "magic", "huge", "nested"]))
        if how == "head":
            piece = piece[: draw(st.integers(0, len(piece)))]
        elif how == "tail":
            piece = piece[draw(st.integers(0, len(piece))) :]
        elif how == "flip":
            place = draw(st.integers(0, len(piece) - 1))
            piece = piece[:place] + bytes([piece[place] ^ draw(st.integers(1, 255))]) + piece[place + 1 :]
        elif how == "garbage":
            piece = draw(st.binary(max_size=60))
        elif how == "magic":
            piece = draw(st.sampled_from([b"\xc7N", b"\xc7N\x83\0\0\0", b"\xc7"])) * draw(st.integers(1, 30))
        elif how == "huge":
            piece = raw(draw(st.sampled_from([0x83, 0x03])), size=draw(st.integers(0, 2**32 - 1)))
        elif how == "nested":
            piece = raw(draw(st.sampled_from([0x83, 0x44])), bytes(8) + piece)
        pieces.append(piece)
    return b"".join(pieces)


@given(dirty_streams(), st.booleans(), st.data())
def test_decodes_the_same_however_chopped(stream: bytes, host: bool, data: st.DataObject) -> None:
    whole = decoder(host)
    frames = whole.feed(stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    chopped = decoder(host)
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)])]
    assert [frame for piece in pieces for frame in chopped.feed(piece)] == frames
    for counter in ("garbage_bytes", "echoed_frames", "unknown_frames"):
        assert getattr(chopped, counter) == getattr(whole, counter)


@given(dirty_streams(), st.sampled_from(CONVERSATION))
def test_a_whole_frame_is_decoded_at_its_last_byte_whatever_came_before(stream: bytes, frame: Frame) -> None:
    receiver = decoder(from_host(frame))
    receiver.feed(stream)
    encoded = to_bytes(frame)
    for i in range(len(encoded) - 1):
        receiver.feed(encoded[i : i + 1])
    assert receiver.feed(encoded[-1:])[-1:] == [frame]


@given(st.binary(max_size=3000), st.booleans())
def test_bytes_at_random_raise_nothing_and_mean_nothing(stream: bytes, host: bool) -> None:
    assert decoder(host).feed(stream) == []


# --- damage


def test_half_a_sample_does_not_swallow_the_frames_behind_it() -> None:
    receiver = decoder(True)
    receiver.feed(encode_sample(H, 0, bytes(65536))[:300])
    assert receiver.feed(encode(Probe(H2, 1, 1))) == [Probe(H2, 1, 1)]
    assert receiver.garbage_bytes == 300


@pytest.mark.parametrize("frame", [Grant(H, 1, 2, 3), Open(H, G, 1, 1), Bye(H)])
def test_no_flipped_bit_passes(frame: Frame) -> None:
    encoded = to_bytes(frame)
    for bit in range(8 * len(encoded)):
        flipped = bytearray(encoded)
        flipped[bit // 8] ^= 1 << bit % 8
        assert decoder(False).feed(flipped) == []


def test_a_header_does_not_accept_the_payload_of_another_frame() -> None:
    first, second = encode(Grant(H, 1, 2, 3)), encode(Grant(H2, 4, 5, 6))
    assert decoder(False).feed(first[:20] + second[20:]) == []


def test_a_length_is_believed_only_after_the_header_was_verified() -> None:
    receiver = decoder(False)
    false = bytearray(encode(Grant(H, 1, 2, 3)))
    false[7] = 0xFF
    assert receiver.feed(false) == []
    assert receiver.feed(encode(Bye(H))) == [Bye(H)]


@pytest.mark.parametrize("size", [1025, 65544, 65545, 2**17, 2**32 - 1])
def test_a_huge_length_makes_nobody_wait(size: int) -> None:
    receiver = decoder(False)
    assert receiver.feed(raw(0x03, size=size)) == []
    assert len(receiver._buffer) < wire.HEADER_SIZE
    assert receiver.feed(encode(Bye(H))) == [Bye(H)]


@given(st.lists(dirty_streams(), max_size=20), st.booleans())
def test_memory_is_bounded(streams: list[bytes], host: bool) -> None:
    receiver = decoder(host)
    for stream in [*streams, raw(0x44, bytes(1024))[:-1]]:
        receiver.feed(stream)
        assert len(receiver._buffer) <= wire.OVERHEAD + receiver._max_payload


def test_garbage_that_looks_like_headers_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    crc32 = zlib.crc32

    def counted(data: bytes, start: int = 0) -> int:
        checked.append(len(data))
        return crc32(data, start)

    monkeypatch.setattr(zlib, "crc32", counted)
    decoder(False).feed(b"\xc7N" * 10_000)
    assert checked == []
    receiver = decoder(False)
    header = raw(0x44, size=1024)[:20]
    receiver.feed(header)
    for _ in range(100):  # an unfinished frame is searched for headers once, not at each byte
        receiver.feed(b"\xc7N\x01\0\0\0\0")
    assert len(checked) <= 1 + 2 * 101


# --- other directions, other kinds


@pytest.mark.parametrize("frame", CONVERSATION)
def test_an_echo_is_dropped(frame: Frame) -> None:
    receiver = decoder(not from_host(frame))
    assert receiver.feed(to_bytes(frame)) == []
    assert (receiver.echoed_frames, receiver.garbage_bytes) == (1, 0)


def test_unknown_frames_are_skipped_when_optional_and_reported_when_not() -> None:
    receiver = decoder(False)
    stream = raw(0x7F, b"news") + raw(0x3F, b"must") + encode(Bye(H))
    assert receiver.feed(stream) == [Unknown(H, 0x3F), Bye(H)]
    assert receiver.unknown_frames == 2


@pytest.mark.parametrize("kind", [0x01, 0x02, 0x03, 0x05, 0x81, 0x82, 0x83, 0x84, 0x85])
def test_a_known_kind_of_another_size_is_unknown(kind: int) -> None:
    host = bool(kind & 0x80)
    for size in (7, 9, 3) if kind != 0x83 else (0, 8, 7):
        if size != 8:
            assert decoder(host).feed(raw(kind, bytes(size))) == [Unknown(H, kind)]
    if kind == 0x83:
        assert decoder(host).feed(raw(kind, bytes(8))) == [Unknown(H, kind)]
        assert Decoder(True, 100_000).feed(raw(kind, bytes(8 + wire.MAX_DATA + 1))) == [Unknown(H, kind)]


def test_a_status_too_long_is_skipped() -> None:
    assert decoder(False).feed(raw(0x44, bytes(513))) == []
    assert decoder(False).feed(raw(0x44, bytes(512))) == [Status(H, bytes(512))]


def test_the_reserved_byte_is_zero() -> None:
    assert decoder(False).feed(raw(0x05, reserved=1)) == []


# --- wiping


def test_what_was_consumed_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = decoder(True)
    encoded = encode_sample(H, 0, b"\xff" * 100)
    receiver.feed(encoded[:60])
    first = receiver._buffer
    receiver.feed(encoded[60:90])
    second = receiver._buffer
    wiped: list[bytearray] = []
    wipe = wire.wipe

    def noted(buffer: bytearray) -> None:
        wiped.append(buffer)
        wipe(buffer)

    monkeypatch.setattr(wire, "wipe", noted)
    assert len(receiver.feed(encoded[90:])) == 1
    assert sorted(map(len, wiped)) == [90, len(encoded)]
    assert not any(map(any, [first, second, *wiped]))
    assert not receiver._buffer


def test_a_half_received_frame_can_be_wiped() -> None:
    receiver = decoder(True)
    encoded = encode_sample(H, 0, b"\xff" * 100)
    receiver.feed(encoded[:60])
    half = receiver._buffer
    receiver.wipe()
    assert not any(half)
    assert receiver.feed(encoded[60:] + encode(Hold(H, 100))) == [Hold(H, 100)]


# --- STATUS


def test_a_status_survives_the_way() -> None:
    status: wire.StatusDict = dict.fromkeys(wire.STATUS_TEXTS, "0.1.0 (rngd)")
    status["taken"] = 2**63 - 1
    assert wire.parse_status(wire.encode_status(status)) == status
    assert wire.parse_status(b"{}") == {}


def test_a_status_is_made_plain_and_short() -> None:
    text = wire.encode_status({"detail": '"\\ü\n' + "x" * 100, "taken": -5})
    assert wire.parse_status(text) == {"detail": "????" + "x" * 76, "taken": 0}
    assert wire.parse_status(wire.encode_status({"taken": 2**70})) == {"taken": 2**63 - 1}
    worst: wire.StatusDict = dict.fromkeys(wire.STATUS_TEXTS, '"' * 1000)
    assert len(wire.encode_status({**worst, "taken": 2**70})) <= wire.MAX_STATUS
    with pytest.raises(KeyError):
        wire.encode_status({"color": "blue"})


@pytest.mark.parametrize(
    "untrusted",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"3",
        b"\xff",
        b'{"color":"blue"}',
        b'{"taken":-1}',
        b'{"taken":9223372036854775808}',
        b'{"taken":1.0}',
        b'{"taken":1e5}',
        b'{"taken":NaN}',
        b'{"taken":true}',
        b'{"taken":null}',
        b'{"taken":"1"}',
        b'{"taken":' + b"9" * 500 + b"}",
        b'{"sink":1}',
        b'{"sink":null}',
        b'{"sink":["x"]}',
        b'{"sink":"a\\nb"}',
        b'{"sink":"a\\n"}',
        b'{"sink":"\\u001b[2J"}',
        b'{"sink":"\\u00fc"}',
        b'{"sink":"' + b"x" * 81 + b'"}',
        b'{"sink":"a","sink":"b"}',
        b'{"sink":{"a":1,"a":2}}',
        b"[" * 512,
        b'{"sink":' * 60,
    ],
)
def test_a_status_out_of_bounds_is_ignored(untrusted: bytes) -> None:
    assert wire.parse_status(untrusted) is None


def test_deep_nesting_is_no_error_wherever_the_stack_ends() -> None:
    def at_depth(n: int) -> object:
        return at_depth(n - 1) if n else wire.parse_status(b"[" * 512)

    assert at_depth(500) is None


@given(st.binary(max_size=512))
def test_no_status_raises(untrusted: bytes) -> None:
    wire.parse_status(untrusted)
