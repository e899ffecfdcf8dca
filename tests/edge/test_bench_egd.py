# SPDX-License-Identifier: Apache-2.0
"""The tools of `make bench-egd`: servers that are alike to their clients, what clients ask, the judge."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import egd
from bench.egd import BARE, CODEC, DAEMON, SCRATCH, SERVER, Turn, judge
from bench.egd_clients import SIZE, Clients, due
from bench.line import Line
from tests.edge.rig import PATIENCE_S


@pytest.fixture(params=[BARE, SCRATCH, CODEC, SERVER])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of the socket of one that runs."""
    with egd.running(request.param, str(tmp_path / "socket")):
        yield str(tmp_path / "socket")


def test_each_server_gives_what_was_asked_and_serves_the_next(path: str) -> None:
    for n_bytes in (1, 255):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(path)
            sock.send(bytes((2, n_bytes)) * 3)
            got = b""
            while len(got) < 3 * n_bytes:
                got += sock.recv(4096)
            assert len(got) == 3 * n_bytes
            assert n_bytes == 1 or any(got)
    with Clients(path, 3, 2) as clients:
        assert clients.take(0.05) > 0
        assert clients.take(0.05) > 0, "and go on"


def test_as_many_requests_follow_as_answers_have_come() -> None:
    assert [due(0, SIZE - 1), due(SIZE - 1, 1), due(SIZE, SIZE + 5), due(3 * SIZE, 0)] == [0, 1, 1, 0]


def judged(rates: list[tuple[int, int]], promised: bool = True) -> list[Line]:
    """Of rounds with the rates of the plain server and of the codec."""
    rounds = [{SCRATCH: Turn(plain, 1), CODEC: Turn(own, 1), DAEMON: Turn(1, 1)} for plain, own in rates]
    return list(judge("so many", rounds, promised))


def test_the_codec_is_to_be_as_fast_in_most_rounds() -> None:
    """The machine may have been fast when one's turn came, and slow in the other's."""
    assert [line.ok for line in judged([(10, 11), (5, 5), (100, 60)])] == [True, True, True]
    assert [line.ok for line in judged([(10, 9), (5, 6), (100, 99)])] == [True, False, True]
    assert judged([(10, 9), (5, 6), (100, 99)])[1].measured == "0.99 of scratch"
    assert all(line.ok for line in judged([(10, 9)], promised=False))
