# SPDX-License-Identifier: Apache-2.0
"""Whether a source delivers, what it is, and who else reads it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from netrng_hostd.config import SourceConfig
from netrng_hostd.core.spelling import printable
from netrng_hostd.operate.check.finding import Finding, TooLate, note, problem, within
from netrng_hostd.operate.check.noise import Trial, alarm_trouble
from netrng_hostd.operate.check.upstream import check_egd, check_fifo
from netrng_hostd.sources.identity import (
    is_hwrng,
    is_virtual,
    no_name,
    refuse_reason,
    rng_current,
    wrong_name,
)

READ_BYTES = 16  # at once: a read returns when all are there
_WANTED = {
    "device": "a hardware RNG's device",
    "fifo": "the FIFO that the program writes into",
    "egd": "the EGD server's socket",
}
READ_S = 3.0  # /dev/hwrng on the slowest RNG in use, a TPM, gives 16 bytes in well under a second


class Holder(NamedTuple):
    """A process that has a device open."""

    pid: int
    name: str


def check_refused(source: SourceConfig) -> Iterator[Finding]:
    """Whether the configuration takes for hardware what is none. Nothing is opened."""
    reason = refuse_reason(source.path, source.kind)
    if reason is not None:
        yield problem(f"source {source.name}: {reason}; set path to {_WANTED[source.kind]}")


def check_source(source: SourceConfig, own_pids: frozenset[int], read_s: float = READ_S) -> Iterator[Finding]:
    """Reads what a start-up test takes, or what comes in time, which is thrown away; looks at what the kernel
    says of the device.

    A FIFO is not read, see check_fifo.
    """
    if refuse_reason(source.path, source.kind) is not None:
        return  # said by check_refused
    if source.kind == "fifo":
        yield from check_fifo(source)
        return
    if source.kind == "egd":
        yield from check_egd(source, read_s)
        return
    if source.kind == "prng":
        yield note(f"source {source.name}: {source.path} is a pseudo-random stream, for trials only")
    trouble = _try_read(source, read_s)
    if trouble is not None:
        yield problem(f"source {source.name}: {trouble}")
    if not is_hwrng(source.path):
        if source.rng_current and trouble is None:
            yield problem(f"source {source.name}: {no_name(source.path)}; take rng_current out of [[source]]")
        return
    current = rng_current()
    wrong = wrong_name(source.path, source.rng_current, current)
    if wrong is not None:
        yield problem(f"source {source.name}: {wrong}")
    elif is_virtual(current):
        yield note(
            f"source {source.name}: {source.path} is virtual ({current}): it is only as good as the word of "
            "this machine's host; pass a hardware RNG through to this machine if that is not enough"
        )
    yield from _check_holders(source, own_pids)


def _try_read(source: SourceConfig, read_s: float) -> str | None:
    """What is wrong with reading, and what to do; None if bytes came, and nothing is wrong with them."""
    path, trial = source.path, Trial(source.min_entropy)
    try:
        within(read_s, lambda: _read(path, trial, wait=source.kind == "device"))
    except TooLate:
        trial.over = True
        if not trial.n_bytes:
            return (
                f"{path} gave not one byte within {read_s:g} s; see whether its driver is stuck (dmesg) "
                "or another program reads all of it"
            )
    except BlockingIOError:
        pass  # a FIFO whose writer has no more to say now
    except OSError as error:
        return _mend(path, error)
    else:
        if not trial.n_bytes and source.kind != "prng":
            return f"{path} is at its end; set path to a device"
    return alarm_trouble(trial, source)


def _read(path: str, trial: Trial, *, wait: bool) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | (0 if wait else os.O_NONBLOCK))
    try:
        with memoryview(bytearray(READ_BYTES)) as buffer:
            while not (trial.over or trial.started_up or trial.alarm):
                count = os.readv(fd, [buffer])
                trial.feed(buffer[:count])
                buffer[:] = bytes(READ_BYTES)
                if count == 0:
                    return
    finally:
        trial.wipe()
        os.close(fd)


def _mend(path: str, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"there is no {path}; plug the RNG in, load its driver, or set path in [[source]]"
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return (
            f"{path} exists and there is no RNG behind it; plug one in or load its driver: "
            "cat /sys/class/misc/hw_random/rng_available"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{path}: permission denied; run as root, or let this user read it"
    return f"{path} cannot be read: {error.strerror or error}; see dmesg"


def holders(path: str) -> tuple[list[Holder], bool]:
    """Who has the character device at ``path`` open, and whether some processes could not be looked at.

    psutil's open_files() leaves out devices, so the links under /proc are read: readlink() never waits,
    while stat() of another program's file may wait for a dead server. So only what looks like a device is
    looked at, and what counts is its number, not its name.
    """
    try:
        wanted = Path(path).stat().st_rdev
    except OSError:
        return [], False
    found: list[Holder] = []
    hidden = False
    for process in psutil.process_iter(["name"]):
        directory = f"/proc/{process.pid}/fd"
        try:
            if any(_is_device(f"{directory}/{fd}", wanted) for fd in os.listdir(directory)):  # noqa: PTH208
                found.append(Holder(process.pid, printable(process.info["name"] or "?")))
        except PermissionError:
            hidden = True
        except OSError:
            continue  # it ended meanwhile
    return found, hidden


def _is_device(link: str, wanted: int) -> bool:
    try:
        if not os.readlink(link).startswith("/dev/"):  # noqa: PTH115
            return False
        return os.stat(link).st_rdev == wanted  # noqa: PTH116
    except FileNotFoundError:
        return False


def _check_holders(source: SourceConfig, own_pids: frozenset[int]) -> Iterator[Finding]:
    found, hidden = holders(source.path)
    for holder in found:
        if holder.pid not in own_pids:
            yield note(
                f"{holder.name} (pid {holder.pid}) holds {source.path} open as well and takes a part of it; "
                "stop it if the VMs are to have all of it"
            )
    if hidden:
        yield note(
            f"not every process could be looked at (root sees more); one of them may hold {source.path} open"
        )
