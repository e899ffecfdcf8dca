# SPDX-License-Identifier: Apache-2.0
"""The watcher of sockets, on real sockets in real folders."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.edge.lab import until

from netrng_hostd.config import ChannelConfig
from netrng_hostd.discovery import sockets
from netrng_hostd.discovery.globs import MAX_SOCKETS, Scan
from netrng_hostd.discovery.sockets import SocketWatcher, scan
from netrng_hostd.hypervisor.worker import Worker

QUICK_S = 0.01


@pytest.fixture
def folder() -> Iterator[Path]:
    """pytest's own folders have paths that are too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="netrng-") as name:
        yield Path(name)


def make(path: Path) -> Path:
    """A socket as QEMU leaves it."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    return path


class Recorder:
    """A watcher, and what it told: +NAME and -NAME."""

    def __init__(self, *configs: ChannelConfig, slow_s: float = 60) -> None:
        self.told: list[str] = []
        self.channels: dict[str, ChannelConfig] = {}
        self.watcher = SocketWatcher(
            configs, appeared=self._appeared, vanished=self._vanished, scan_s=QUICK_S, slow_s=slow_s
        )

    def _appeared(self, config: ChannelConfig) -> None:
        assert config.name not in self.channels
        self.channels[config.name] = config
        self.told.append(f"+{config.name}")

    def _vanished(self, config: ChannelConfig) -> None:
        assert self.channels.pop(config.name) == config
        self.told.append(f"-{config.name}")

    async def tells(self, *told: str) -> None:
        await until(lambda: self.told == list(told))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.watcher.run())
        try:
            yield
            assert not task.done()
        finally:
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=20)
            assert done, "it does not stop"
            assert task.cancelled()


def pattern(folder: Path, glob: str = "*.netrng", name: str = "vm", kind: str = "agent") -> ChannelConfig:
    return ChannelConfig(name, f"{folder}/{glob}", kind)


async def looks(watcher: SocketWatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until everything was looked at again."""
    counted = 0

    def count(path: str, known: frozenset[str]) -> Scan:
        nonlocal counted
        counted += 1
        return scan(path, known)

    with monkeypatch.context() as patched:
        patched.setattr(sockets, "scan", count)
        await until(lambda: counted >= 3)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """All but asyncio's, which says that a machine is slow."""
    records = [record for record in caplog.records if record.name != "asyncio"]
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


# It appears and vanishes


def test_sockets_that_are_there_and_that_come_and_go(folder: Path) -> None:
    async def scenario() -> None:
        made = make(folder / "101.netrng")
        recorder = Recorder(pattern(folder, kind="egd"))
        async with recorder.running():
            await recorder.tells("+vm-101")
            assert recorder.channels["vm-101"] == ChannelConfig("vm-101", str(made), "egd")
            make(folder / "102.netrng")
            await recorder.tells("+vm-101", "+vm-102")
            made.unlink()
            await recorder.tells("+vm-101", "+vm-102", "-vm-101")
            make(made)
            await recorder.tells("+vm-101", "+vm-102", "-vm-101", "+vm-101")
        assert set(recorder.watcher.served) == {"vm-101", "vm-102"}, "who stops is not to send them away"

    asyncio.run(scenario(), debug=True)


def test_a_channel_without_wildcards_needs_no_socket(folder: Path) -> None:
    async def scenario() -> None:
        recorder = Recorder(ChannelConfig("one", f"{folder}/one"))
        async with recorder.running():
            await recorder.tells("+one")

    asyncio.run(scenario(), debug=True)


def test_only_sockets_count_and_links_to_them(folder: Path) -> None:
    make(folder / "a.netrng")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    make(elsewhere / "target")
    (folder / "link.netrng").symlink_to(elsewhere / "target")
    (folder / "file.netrng").write_text("")
    (folder / "folder.netrng").mkdir()
    (folder / "dangling.netrng").symlink_to(folder / "nothing")
    (folder / "loop.netrng").symlink_to(folder / "loop.netrng")
    os.mkfifo(folder / "fifo.netrng")
    make(folder / ".hidden.netrng")
    seen = scan(f"{folder}/*.netrng")
    assert [(found.stem, found.real) for found in seen.found] == [
        ("a", f"{folder}/a.netrng"), ("link", f"{elsewhere}/target"),
    ]  # fmt: skip
    assert seen._replace(found=()) == Scan()


def test_wildcards_in_folders(folder: Path) -> None:
    for name in ("a", "b", ".hidden", "without"):
        (folder / name).mkdir()
    for name in ("a/vm-1.s", "a/other", "b/vm-22.s", ".hidden/vm-3.s", "vm-4.s"):
        make(folder / name)
    (folder / "link").symlink_to(folder / "a")
    seen = scan(f"{folder}/*/vm-*.s")
    assert [(found.stem, found.real) for found in seen.found] == [
        ("a-1", f"{folder}/a/vm-1.s"), ("b-22", f"{folder}/b/vm-22.s"), ("link-1", f"{folder}/a/vm-1.s"),
    ]  # fmt: skip
    assert [found.stem for found in scan(f"{folder}/?/other").found] == ["a"]
    assert scan(f"{folder}/*/nothing/*") == Scan(), "a folder that is not everywhere is no trouble"
    assert scan(f"{folder}/a/other").found[0].stem == ""


def test_names_that_are_not_utf_8(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(Path(os.fsdecode(os.fsencode(folder) + b"/\xff\x1b.netrng")))
    make(folder / "é.netrng")

    async def scenario() -> None:
        recorder = Recorder(pattern(folder))
        async with recorder.running():
            await recorder.tells("+vm-é")

    asyncio.run(scenario(), debug=True)
    (said,) = warnings(caplog)
    why = "its name has characters that cannot be printed"
    assert said == rf"vm: {folder}/\udcff\x1b.netrng is not served: {why}"


# Reload


def test_a_reload_touches_only_what_changed(folder: Path) -> None:
    make(folder / "1.netrng")
    make(folder / "1.other")
    vm, other = pattern(folder), pattern(folder, "*.other", "other")
    one, moved = ChannelConfig("one", f"{folder}/one"), ChannelConfig("one", f"{folder}/elsewhere")

    async def scenario() -> None:
        recorder = Recorder(vm, one)
        async with recorder.running():
            await until(lambda: recorder.told == ["+one", "+vm-1"])
            recorder.told.clear()
            recorder.watcher.use((vm, other, moved))
            assert recorder.told == ["-one", "+one"]
            await recorder.tells("-one", "+one", "+other-1")
            recorder.told.clear()
            recorder.watcher.use((other,))
            assert sorted(recorder.told) == ["-one", "-vm-1"], "at once"
            recorder.told.clear()
            recorder.watcher.use((other, vm))
            await recorder.tells("+vm-1")
            recorder.told.clear()
            recorder.watcher.use((pattern(folder, kind="egd"), other))
            await recorder.tells("-vm-1", "+vm-1")
            assert recorder.channels["vm-1"].kind == "egd"

    asyncio.run(scenario(), debug=True)


def test_a_look_that_waits_for_its_thread_outlives_a_reload(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waited for it is cancelled, and the next one waits for the same."""
    make(folder / "1.netrng")
    before, after = pattern(folder), pattern(folder, kind="egd")
    held = threading.Event()

    class Busy(Worker):
        """Its thread has something else to do first."""

        def __init__(self, name: str) -> None:
            super().__init__(name)
            super().submit(lambda: held.wait(60))

    monkeypatch.setattr(sockets, "Worker", Busy)

    async def scenario() -> None:
        recorder = Recorder(before)
        try:
            async with recorder.running():
                await until(lambda: f"{folder}/*.netrng" in recorder.watcher._looks)
                for configs in ((after,), (before,), (after,)):
                    recorder.watcher.use(configs)
                    for _ in range(10):
                        await asyncio.sleep(0)  # all that was due
                held.set()
                await recorder.tells("+vm-1")
                assert recorder.channels["vm-1"].kind == "egd"
        finally:
            held.set()

    asyncio.run(scenario(), debug=True)


def test_a_socket_that_two_name_is_the_others_when_the_first_is_gone(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(folder / "1.netrng")
    first, second = pattern(folder, name="a"), pattern(folder, "1.*", name="b")

    async def scenario() -> None:
        recorder = Recorder(first, second)
        async with recorder.running():
            await looks(recorder.watcher, monkeypatch)
            assert list(recorder.channels) == ["a-1"]
            recorder.watcher.use((second,))
            await until(lambda: list(recorder.channels) == ["b-netrng"])

    asyncio.run(scenario(), debug=True)
    assert set(warnings(caplog)) <= {
        f"b: {folder}/1.netrng is served as a-1 already",
        f"a: {folder}/1.netrng is served as b-netrng already",
    }


# What is in the way


def test_a_folder_that_is_not_there_is_said_once(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    late = folder / "late"

    async def scenario() -> None:
        recorder = Recorder(pattern(late))
        async with recorder.running():
            await looks(recorder.watcher, monkeypatch)
            late.mkdir()
            make(late / "1.netrng")
            await recorder.tells("+vm-1")
            (late / "1.netrng").unlink()
            late.rmdir()
            await recorder.tells("+vm-1", "-vm-1")

    asyncio.run(scenario(), debug=True)
    said = [(record.levelname, record.getMessage()) for record in caplog.records if record.name != "asyncio"]
    assert said == [("INFO", f"vm: no folder {late}; looking on")] * 2


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO])
def test_a_folder_that_cannot_be_read_is_said_once_and_what_was_there_stays(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    make(folder / "1.netrng")

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        raise OSError(error, os.strerror(error), path)

    async def scenario() -> None:
        recorder = Recorder(pattern(folder))
        async with recorder.running():
            await recorder.tells("+vm-1")
            with monkeypatch.context() as patched:
                patched.setattr(os, "scandir", refuse)
                await looks(recorder.watcher, monkeypatch)
            assert recorder.told == ["+vm-1"]
            (folder / "1.netrng").unlink()
            await recorder.tells("+vm-1", "-vm-1")

    asyncio.run(scenario(), debug=True)
    assert warnings(caplog) == [f"vm: {folder}: {os.strerror(error).lower()}"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("mode", [0o000, stat.S_IRUSR])
def test_a_folder_of_somebody_else(folder: Path, mode: int) -> None:
    """Not to be listed, or not to be entered."""
    make(folder / "1.netrng")
    folder.chmod(mode)
    try:
        assert scan(f"{folder}/*") == Scan(unread=((str(folder), "permission denied"),))
    finally:
        folder.chmod(0o700)


def test_a_socket_that_cannot_be_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(folder / "1.netrng")
    look = os.stat

    def refuse(path: str, **options: bool) -> os.stat_result:
        if str(path).endswith(".netrng"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return look(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    assert scan(f"{folder}/*.netrng") == Scan(unread=((str(folder), "permission denied"),))
    assert scan(f"{folder}/1.netrng") == Scan(unread=((str(folder), "permission denied"),))


def test_no_more_than_so_many_and_those_that_are_served_first(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "MAX_SOCKETS", 3)
    for number in range(5, 8):
        make(folder / f"{number}.netrng")
    whole = scan(f"{folder}/*")
    assert (len(whole.found), whole.more) == (3, False)

    async def scenario() -> None:
        recorder = Recorder(pattern(folder))
        async with recorder.running():
            await recorder.tells("+vm-5", "+vm-6", "+vm-7")
            for number in range(5):
                make(folder / f"{number}.netrng")
            await looks(recorder.watcher, monkeypatch)
            assert len(recorder.told) == 3
            (folder / "6.netrng").unlink()
            await until(lambda: recorder.told[3:] == ["-vm-6", "+vm-0"])

    asyncio.run(scenario(), debug=True)
    assert warnings(caplog) == [
        f"vm: more than {MAX_SOCKETS} sockets match {folder}/*.netrng; the others are left out"
    ]


def test_odd_names_take_no_others_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "MAX_SOCKETS", 2)
    for name in ("\x01", "\x02", "\x03", "a", "b"):
        make(folder / name)
    assert [found.stem for found in scan(f"{folder}/*").found] == ["a", "b"]


def test_thousands_of_sockets(folder: Path) -> None:
    for number in range(MAX_SOCKETS + 1):
        os.mknod(folder / f"{number:04}.netrng", stat.S_IFSOCK | 0o600)
    seen = scan(f"{folder}/*.netrng")
    assert (len(seen.found), seen.more) == (MAX_SOCKETS, True)

    async def scenario() -> None:
        recorder = Recorder(pattern(folder))
        async with recorder.running():
            await until(lambda: len(recorder.channels) == MAX_SOCKETS)

    asyncio.run(scenario())


# A file system that hangs


class Hang:
    """Looks below a folder do not return until they may; all others do."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started = self.others = 0
        self.go_on = threading.Event()
        self._folder = f"{folder}/"
        monkeypatch.setattr(sockets, "scan", self._scan)

    def _scan(self, path: str, known: frozenset[str]) -> Scan:
        if path.startswith(self._folder):
            self.started += 1
            self.go_on.wait(60)
        else:
            self.others += 1
        return scan(path, known)

    async def looks_elsewhere(self) -> None:
        """Until another folder was looked at several times from now on."""
        before = self.others
        await until(lambda: self.others >= before + 3)


def test_a_look_that_does_not_return_holds_up_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    bad, good = folder / "bad", folder / "good"
    bad.mkdir()
    good.mkdir()
    make(bad / "1.netrng")
    hanging, working = pattern(bad, name="bad"), pattern(good, name="good")

    async def scenario() -> None:
        recorder = Recorder(hanging, working, slow_s=0.05)
        try:
            async with recorder.running():
                await recorder.tells("+bad-1")
                hang = Hang(bad, monkeypatch)
                await until(lambda: bool(warnings(caplog)))
                make(good / "1.netrng")
                await recorder.tells("+bad-1", "+good-1")
                for configs in ((working,), (hanging, working)) * 3:  # reloads
                    recorder.watcher.use(configs)
                    await hang.looks_elsewhere()
                caplog.clear()
                assert hang.started == 1, "no second look while one has not returned"
                await until(lambda: bool(warnings(caplog)))
                (bad / "1.netrng").unlink()
                make(bad / "2.netrng")
                hang.go_on.set()
                await until(lambda: set(recorder.channels) == {"bad-2", "good-1"})
                assert f"bad: the file system of {bad}/*.netrng answers again" in caplog.messages
                hang.go_on.clear()
                before = hang.started
                await until(lambda: hang.started > before)
            # It has stopped, although the look has not returned.
        finally:
            hang.go_on.set()

    asyncio.run(scenario(), debug=True)
    said = f"bad: no answer from the file system of {bad}/*.netrng in 0.05 s; what is known there stays"
    assert set(warnings(caplog)) == {said}


def test_a_mistake_of_ours_is_not_kept_quiet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, known: frozenset[str]) -> Scan:
        raise ZeroDivisionError

    monkeypatch.setattr(sockets, "scan", fail)
    watcher = Recorder(pattern(folder)).watcher
    with pytest.raises(ZeroDivisionError):
        asyncio.run(watcher.run())


def test_much_to_look_at_is_looked_at_less_often(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    def slow(path: str, known: frozenset[str]) -> Scan:
        end_s = time.thread_time() + 0.02
        while time.thread_time() < end_s:
            pass
        return Scan()

    async def record(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def scenario() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(sockets, "scan", slow)
            patched.setattr(asyncio, "sleep", record)
            task = asyncio.create_task(Recorder(pattern(folder)).watcher.run())
            while len(pauses) < 2:
                await sleep(0.01)
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(scenario())
    assert min(pauses) >= 0.02 * sockets.REST
