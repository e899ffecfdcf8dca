# SPDX-License-Identifier: Apache-2.0
"""Equal lengths of all sources, each byte in one mixed byte and no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netrng_hostd.core.mixer import Mixer
from netrng_hostd.core.reservoir import Part, Reservoir


def mixer_of(*names: str, size: int = 100) -> Mixer:
    mixer = Mixer(size)
    assert mixer.use(names) == {}
    return mixer


def test_what_all_have_is_mixed_and_the_rest_waits() -> None:
    mixer = mixer_of("a", "b")
    assert mixer.put("a", bytearray(b"\x0f\xf0\x55\xaa")) == 4
    assert mixer.take() == b""
    mixer.put("b", bytearray(b"\xff\xff"))
    assert mixer.take() == b"\xf0\x0f"
    assert (mixer.held("a"), mixer.held("b"), mixer.room("a"), mixer.room("b")) == (2, 0, 98, 100)
    mixer.put("b", bytearray(b"\x00\x01\x02"))
    assert mixer.take() == b"\x55\xab"
    assert (mixer.held("a"), mixer.held("b")) == (0, 1)


def test_one_source_is_passed_on_and_none_gives_nothing() -> None:
    mixer = mixer_of("a")
    mixer.put("a", bytearray(b"abc"))
    assert mixer.take() == b"abc"
    assert mixer.take() == b""
    assert Mixer(10).take() == b""


def test_a_source_that_leaves_takes_its_bytes_along_and_the_others_keep_theirs() -> None:
    mixer = mixer_of("a", "b", "c")
    for name in "abc":
        mixer.put(name, bytearray(b"xyz"))
    places = mixer._queues["b"]._general._places
    assert mixer.use(("a", "c")) == {"b": 3}
    assert not any(places)
    assert (mixer.held("a"), mixer.held("b"), mixer.held("c")) == (3, 0, 3)
    assert mixer.use(("a", "c", "b")) == {}
    assert mixer.take() == b"", "the one that came back has nothing yet"


def test_a_full_queue_takes_no_more_and_a_failed_source_s_is_zeroed() -> None:
    mixer = mixer_of("a", "b", size=4)
    assert mixer.put("a", bytearray(b"123456")) == 4
    places = mixer._queues["a"]._general._places
    assert mixer.destroy("a") == 4
    assert not any(places)
    assert mixer.destroy("a") == 0
    assert mixer.room("a") == 4


def test_what_was_taken_to_be_mixed_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = list[bytearray]()
    take = Reservoir.take

    def remember(*arguments: Any) -> tuple[bytearray, list[Part]]:
        result = take(*arguments)
        taken.append(result[0])
        return result

    monkeypatch.setattr(Reservoir, "take", remember)
    mixes = list[npt.NDArray[np.uint8]]()
    zeros = np.zeros

    def remember_mix(*arguments: Any) -> npt.NDArray[np.uint8]:
        mixes.append(zeros(*arguments))
        return mixes[-1]

    monkeypatch.setattr(np, "zeros", remember_mix)
    mixer = mixer_of("a", "b")
    mixer.put("a", bytearray(b"abc"))
    mixer.put("b", bytearray(b"xyz"))
    assert any(mixer.take())
    assert taken == [bytearray(3), bytearray(3)]
    assert [mixed.tolist() for mixed in mixes] == [[0, 0, 0]]


def test_no_bytes_in_words() -> None:
    mixer = mixer_of("a", "b")
    mixer.put("a", bytearray(b"key"))
    assert repr(mixer) == "Mixer(a=3, b=0)"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.binary(max_size=30)), max_size=30))
def test_however_they_come_the_mix_is_the_xor_of_the_streams(puts: list[tuple[str, bytes]]) -> None:
    mixer = mixer_of("a", "b", "c", size=2000)
    streams = dict.fromkeys("abc", b"")
    mixed = b""
    for name, data in puts:
        assert mixer.put(name, bytearray(data)) == len(data)
        streams[name] += data
        mixed += mixer.take()
    expected = bytes(a ^ b ^ c for a, b, c in zip(*streams.values()))
    assert mixed == expected
    for name, stream in streams.items():
        assert mixer.held(name) == len(stream) - len(expected)
