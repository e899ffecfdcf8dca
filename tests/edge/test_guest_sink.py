# SPDX-License-Identifier: Apache-2.0
"""The kernel as the sink."""

from __future__ import annotations

import fcntl

import pytest
from tests.edge.guest_lab import FakePool, stream

from netrng_guest.kernel import KernelPool
from netrng_guest.sink import STATES, KernelSink, Sink

T0 = 10**12
DATA = stream(0, 1000)


def offer(sink: Sink, data: bytes, now_ns: int = T0) -> int:
    sink.tick(now_ns)
    assert sink.state in STATES
    return sink.offer(memoryview(data), now_ns)


@pytest.mark.parametrize(
    ("rate", "piece"), [(1, 64), (64, 64), (100, 100), (512, 512), (10**6, 512), (None, 512)]
)
def test_the_kernels_pieces(rate: int | None, piece: int) -> None:
    assert KernelSink(FakePool(), rate).piece == piece


def test_the_kernel_takes_64_bytes_or_more_and_reseeds() -> None:
    pool = FakePool()
    sink = KernelSink(pool, 100)
    assert offer(sink, DATA[:63]) == 0
    assert pool.reseeds == 0
    assert offer(sink, DATA[:64]) == 64
    assert offer(sink, DATA[64:164]) == 100
    assert sink.settle() == 164
    assert sink.settle() == 0
    assert pool.given == DATA[:164]
    assert pool.reseeds == 2
    assert sink.state == "ok"
    sink.flush(T0)
    sink.stop()


def test_a_kernel_that_does_not_credit() -> None:
    sink = KernelSink(FakePool(denied="RNDADDENTROPY: Operation not permitted"), 100)
    assert offer(sink, DATA[:64]) == 64
    assert (sink.state, sink.detail) == ("no-permission", "RNDADDENTROPY: Operation not permitted")


def test_a_kernel_that_fails() -> None:
    sink = KernelSink(FakePool(OSError(5, "Input/output error")), 100)
    assert offer(sink, DATA[:64]) == 0
    assert sink.settle() == 0
    assert (sink.state, sink.detail) == ("failed", "Input/output error")


@pytest.mark.parametrize(
    ("offered", "taken"), [(64, 64), (512, 512), (513, 449), (575, 511), (576, 512), (577, 512), (1000, 512)]
)
def test_at_most_512_bytes_at_once_and_never_a_rest_that_is_too_small(offered: int, taken: int) -> None:
    pool = FakePool()
    assert offer(KernelSink(pool, 100), DATA[:offered]) == taken
    assert pool.given == DATA[:taken]


def test_what_was_credited_before_a_failure_is_not_credited_again(monkeypatch: pytest.MonkeyPatch) -> None:
    credited = bytearray()
    fails_at = 2
    calls = 0

    def ioctl(fd: int, request: int, argument: bytearray | int = 0, mutate: bool = False) -> int:
        nonlocal calls
        if isinstance(argument, bytearray):
            calls += 1
            if calls == fails_at:
                raise OSError(5, "Input/output error")
            credited.extend(argument[8:])
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    sink = KernelSink(KernelPool("/dev/null"), None)
    given = 0
    for _ in range(4):  # as the agent does, which comes again with what was not taken
        given += offer(sink, DATA[given:])
    assert credited == DATA, "a byte was credited twice or not at all"
    assert sink.settle() == given == len(DATA)
    assert calls == 3
    sink.stop()
