# SPDX-License-Identifier: Apache-2.0
"""Another program's FIFO: it may come, end, be late, and come again, and is never killed for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.edge.rig import wait_for

from netrng_hostd.config import SourceConfig
from netrng_hostd.sources import SourceFailure, fifo, make_source
from netrng_hostd.sources.fifo import FifoSource


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "noise"
    os.mkfifo(path)
    return path


@pytest.fixture
def source(path: Path) -> Iterator[FifoSource]:
    source = make_source(SourceConfig(kind="fifo", path=str(path)))
    assert isinstance(source, FifoSource)
    source.open()
    yield source
    path.unlink(missing_ok=True)
    with contextlib.suppress(SourceFailure):
        source.open()  # lets go of it


def writer(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # ENXIO unless somebody has it open for reading


def read(source: FifoSource, want: int = 64) -> bytes:
    buffer = bytearray(want)
    return bytes(buffer[: source.read_into(memoryview(buffer))])


def failure(source: FifoSource) -> SourceFailure:
    """That of its end, which is one when no writer has come for a while."""

    def seen() -> SourceFailure | None:
        try:
            assert source.read_into(memoryview(bytearray(8))) == 0
        except SourceFailure as found:
            return found
        return None

    found = wait_for(seen, "the end")
    assert isinstance(found, SourceFailure)
    return found


def test_what_is_written_is_read_in_pieces(source: FifoSource, path: Path) -> None:
    fd = writer(path)
    try:
        assert read(source) == b"", "nothing yet"
        os.write(fd, b"abcdef")
        assert read(source, 4) == b"abcd"
        assert read(source) == b"ef"
        os.write(fd, b"g")
        assert read(source) == b"g"
    finally:
        os.close(fd)
    assert source.kernel_name() is None


def test_without_a_writer_it_is_absent_and_looked_at_again_soon(source: FifoSource, path: Path) -> None:
    found = failure(source)
    assert (found.state, found.detail, found.soon) == ("absent", f"no program writes to {path}", True)


def test_a_writer_that_opens_it_for_each_block_anew_is_no_end(
    source: FifoSource, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fifo, "BETWEEN_S", 3600.0)
    for block in (b"one", b"two", b"three"):
        assert read(source) == b"", "no writer, for now"
        fd = writer(path)
        os.write(fd, block)
        os.close(fd)
        assert read(source) == block


def test_what_a_writer_leaves_is_read_before_its_end_is_seen(source: FifoSource, path: Path) -> None:
    fd = writer(path)
    os.write(fd, b"last words")
    os.close(fd)
    assert read(source, 4) + read(source) == b"last words"
    assert failure(source).state == "absent"
    source.close()
    source.open()
    fd = writer(path)
    os.write(fd, b"another")
    assert read(source) == b"another"
    os.close(fd)


def test_a_program_that_writes_while_the_source_is_closed_is_not_killed(
    source: FifoSource, path: Path
) -> None:
    source.close()  # as after a failed health test
    fd = writer(path)
    os.write(fd, b"meanwhile")  # SIGPIPE, here EPIPE, if nobody had it open
    source.open()
    os.write(fd, b"later")
    assert read(source) == b"later"
    os.close(fd)
    assert failure(source).state == "absent"


def test_what_a_source_that_failed_has_left_in_a_full_fifo_does_not_fail_it_again(
    source: FifoSource, path: Path
) -> None:
    fd = writer(path)
    assert os.write(fd, bytes(1 << 20)) == 65536, "all that it holds"
    assert read(source) == bytes(64)
    source.close()
    source.open()
    os.write(fd, b"good again")
    assert read(source) == b"good again"
    os.close(fd)


def test_a_writer_that_never_pauses_does_not_hold_up_the_opening(
    source: FifoSource, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = writer(path)
    os.write(fd, b"\xaa" * 65536)
    assert read(source) == b"\xaa" * 64
    source.close()
    buffers: list[bytearray] = []
    real = os.readv

    def reading(descriptor: int, views: list[bytearray]) -> int:
        count = real(descriptor, views)
        os.write(fd, b"\xbb" * count)
        buffers.extend(views)
        assert len(buffers) < 100, "it would throw away for ever"
        return count

    with monkeypatch.context() as patched:
        patched.setattr(os, "readv", reading)
        source.open()
    assert buffers
    assert not any(map(any, buffers)), "wiped"
    os.close(fd)


def test_at_its_end_it_is_looked_at_with_pauses(
    source: FifoSource, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=slept.append)
    monkeypatch.setattr(fifo, "time", clock)
    assert read(source) == read(source) == b""
    assert slept == [fifo.LOOK_S] * 2


def test_the_end_of_one_fifo_is_not_that_of_the_next(source: FifoSource, path: Path) -> None:
    assert failure(source).state == "absent"
    source.close()
    path.rename(path.with_suffix(".old"))
    os.mkfifo(path)
    source.open()
    assert source._ended_s is None


def test_a_fifo_made_anew_is_the_one_that_is_read(source: FifoSource, path: Path) -> None:
    old = writer(path)
    os.write(old, b"old")
    source.close()
    path.unlink()
    with pytest.raises(SourceFailure, match="No such file") as caught:
        source.open()
    assert (caught.value.state, caught.value.soon) == ("absent", False)
    with pytest.raises(BrokenPipeError):
        os.write(old, b"old")
    os.close(old)
    os.mkfifo(path)
    source.open()
    fd = writer(path)
    os.write(fd, b"new")
    assert read(source) == b"new"
    os.close(fd)


def test_one_that_is_exchanged_while_it_is_open_is_noticed_when_it_is_opened_again(
    source: FifoSource, path: Path
) -> None:
    path.rename(path.with_suffix(".old"))
    os.mkfifo(path)
    source.close()
    source.open()
    fd = writer(path)
    os.write(fd, b"new")
    assert read(source) == b"new"
    os.close(fd)


@pytest.mark.parametrize(
    ("other", "what"),
    [("/dev/zero", "a character device"), (__file__, "a regular file"), ("/", "a directory")],
)
def test_nothing_else_is_opened(other: str, what: str) -> None:
    source = FifoSource(other)
    with pytest.raises(SourceFailure, match=f"^{other} is {what}, not a FIFO$") as caught:
        source.open()
    assert caught.value.state == "error"


def test_what_was_opened_counts_and_not_what_the_path_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open
    source = FifoSource(str(path))
    monkeypatch.setattr(os, "open", lambda _path, flags: real("/dev/zero", flags))
    with pytest.raises(SourceFailure, match="is a character device, not a FIFO"):
        source.open()


def test_denied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SourceFailure, match="Permission denied") as caught:
        FifoSource(str(path)).open()
    assert caught.value.state == "denied"


def test_a_read_that_fails(source: FifoSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "readv", fail)
    assert failure(source).state == "error"


def test_one_program_after_the_other(source: FifoSource, path: Path) -> None:
    """Each with an end of its own, as a unit that is started again."""
    program = "import sys; open(sys.argv[1], 'wb', 0).write(sys.argv[2].encode())"
    for word in ("first", "second"):
        with subprocess.Popen([sys.executable, "-c", program, str(path), word]) as child:
            taken = bytearray()

            def ended(taken: bytearray = taken) -> bool:
                try:
                    taken += read(source)
                except SourceFailure as found:
                    assert found.soon
                    source.close()
                    source.open()
                    return bool(taken)
                return False

            wait_for(ended, f"the {word} program's end")
            assert taken.decode() == word
            assert child.wait() == 0
