# SPDX-License-Identifier: Apache-2.0
"""What a path really is: hardware, a kernel's PRNG, a file, or a virtual device.

Nothing here reads from the device.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from netrng_hostd.config import Config, ConfigError, SourceConfig

RNG_CURRENT = Path("/sys/class/misc/hw_random/rng_current")

# Documentation/admin-guide/devices.txt: 1:8 is /dev/random, 1:9 is /dev/urandom, 10:183 is /dev/hwrng.
KERNEL_PRNGS = {(1, 8): "/dev/random", (1, 9): "/dev/urandom"}
HWRNG = (10, 183)

# Names in rng_current that are another machine's word: drivers/char/hw_random/virtio-rng.c names its
# devices "virtio_rng.N"; pseries-rng.c asks the hypervisor with H_RANDOM.
VIRTUAL_PREFIXES = ("virtio_rng", "pseries")

_FILE_TYPES = (
    (stat.S_ISREG, "a regular file"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
)
_READERS = (
    (stat.S_ISFIFO, 'kind = "fifo" reads it'),
    (stat.S_ISSOCK, 'kind = "egd" reads it, if an EGD server listens there'),
)


def refuse_reason(path: str, kind: str) -> str | None:
    """Why ``path`` may not be a source of this ``kind``, in one line; None if it may.

    Never raises: a path that cannot be examined is not refused here, opening it says what is wrong.
    Nor is an empty one, of a source that has an address.
    """
    if not path:
        return None
    try:
        status = Path(path).stat()  # follows links: what counts is the device, not its name
    except (OSError, ValueError):
        return None
    return refuse_status(status, path, kind)


def refuse_sources(config: Config) -> None:
    """A PRNG or a file called a device, one source twice, or our own socket, is a mistake in the
    configuration, not trouble with a device.

    Raises ConfigError.
    """
    refuse_circles(config)
    for source in config.sources:
        reason = refuse_reason(source.path, source.kind) or read_twice(source, config)
        if reason is not None:
            raise _refused(config, source, reason)


def refuse_circles(config: Config) -> None:
    """A source that is one of our own [[serve]] would read what was given out.  Raises ConfigError."""
    for source in config.sources:
        reason = feeds_itself(source, config)
        if reason is not None:
            raise _refused(config, source, reason)


def _refused(config: Config, source: SourceConfig, reason: str) -> ConfigError:
    return ConfigError(f"{config.file or 'built-in configuration'}: source {source.name!r}: {reason}")


def feeds_itself(source: SourceConfig, config: Config) -> str | None:
    """Why ``source`` is one of our own [[serve]], by another path; None if it is not."""
    place = os.path.realpath(source.path) if source.path else ""
    for serve in config.serves:
        if place == os.path.realpath(serve.path):
            why = "bytes would go round in circles"
            return f"{source.path} is [[serve]] {serve.name!r}, at {serve.path}: {why}"
    return None


def read_twice(source: SourceConfig, config: Config) -> str | None:
    """Why ``source`` is one that comes before it, by another name; None if it is not.

    Mixed with itself it would count twice.
    """
    this = _what_is_read(source)
    for other in config.sources[: config.sources.index(source)]:
        if this & _what_is_read(other):
            read = f"{source.place} is what source {other.name!r} reads, at {other.place}"
            return f"{read}; leave one of them out"
    return None


def _what_is_read(source: SourceConfig) -> set[tuple[object, ...]]:
    """What names that differ have in common where they lead to the same; empty if nothing is there."""
    if source.address:
        host, _, port = source.address.rpartition(":")
        hosts = ("127.0.0.1", "[::1]") if host == "localhost" else (host,)
        return {(each, port) for each in hosts}
    try:
        status = Path(source.path).stat()
    except (OSError, ValueError):
        return set()
    if stat.S_ISCHR(status.st_mode):
        return {("device", status.st_rdev)}
    return {(status.st_dev, status.st_ino)}


def refuse_status(status: os.stat_result, path: str, kind: str) -> str | None:
    """The same of what ``status`` describes: an open descriptor's cannot be exchanged behind our back.

    ``path`` is its name in the answer.
    """
    if kind == "prng":
        return None
    mode = status.st_mode
    what = next((name for test, name in _FILE_TYPES if test(mode)), "not a device")
    if kind == "fifo":
        return None if stat.S_ISFIFO(mode) else f"{path} is {what}, not a FIFO"
    if kind == "egd":
        return None if stat.S_ISSOCK(mode) else f"{path} is {what}, not an EGD server's socket"
    if not stat.S_ISCHR(mode):
        reader = next((kind for test, kind in _READERS if test(mode)), 'only kind = "prng" may read it')
        return f"{path} is {what}, not a hardware RNG; {reader}"
    device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    if device in KERNEL_PRNGS:
        what = f"the kernel's own PRNG ({KERNEL_PRNGS[device]})"
        return f'{path} is {what}, not a hardware RNG; only kind = "prng" may read it'
    return None


def wrong_name(path: str, required: str, current: str | None) -> str | None:
    """Why ``path`` may not be read while the kernel has ``current`` (rng_current) behind it; None if it may.

    ``required`` is the configuration's rng_current; "" requires nothing.
    """
    if required in ("", current):
        return None
    return (
        f"the kernel has {current or 'nothing'} behind {path}, and the configuration requires {required}; "
        f"choose it: echo {required} > /sys/class/misc/hw_random/rng_current"
    )


def no_name(path: str) -> str:
    """Why ``path`` cannot have a required name: it is not the kernel's hardware RNG device."""
    return f"{path} is not the kernel's hardware RNG device (/dev/hwrng), so it cannot have an rng_current"


def is_hwrng(path: str) -> bool:
    """Whether ``path`` is the kernel's hardware RNG device, so that `rng_current` speaks of it."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return False
    return _is_hwrng(status)


def _is_hwrng(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and (os.major(status.st_rdev), os.minor(status.st_rdev)) == HWRNG


def fd_is_hwrng(fd: int) -> bool:
    """The same of an open descriptor. Raises OSError."""
    return _is_hwrng(os.fstat(fd))


def kernel_name(fd: int) -> str | None:
    """`rng_current`, if the open descriptor ``fd`` is the kernel's hardware RNG device. May wait for it."""
    try:
        # Other devices than this one are not behind the kernel's hw_random framework.
        return rng_current() if fd_is_hwrng(fd) else None
    except OSError:
        return None


def rng_current() -> str | None:
    """The name of the driver's device behind /dev/hwrng now; None if there is none. It can change.

    drivers/char/hw_random/core.c takes rng_mutex for the answer, so a device that hangs can hold it back.
    """
    try:
        name = RNG_CURRENT.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return None if name in ("", "none") else name


def is_virtual(name: str | None) -> bool:
    """Whether a name from `rng_current` is a device that this machine's own host emulates."""
    return name is not None and name.startswith(VIRTUAL_PREFIXES)
