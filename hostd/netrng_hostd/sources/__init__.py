# SPDX-License-Identifier: Apache-2.0
"""Where random bytes come from.  One small file per kind; this is the explicit list of kinds."""

from __future__ import annotations

from typing import Protocol

from netrng_hostd.config import SourceConfig
from netrng_hostd.sources.device import DeviceSource
from netrng_hostd.sources.egd import EgdSource
from netrng_hostd.sources.failure import SourceFailure
from netrng_hostd.sources.fifo import FifoSource
from netrng_hostd.sources.prng import PrngSource


class Source(Protocol):
    """Something that bytes are read from, in the reader's thread."""

    def open(self) -> None:
        """Opens it.  Raises SourceFailure."""

    def read_into(self, view: memoryview) -> int:
        """Fills at most len(view) bytes, says how many; 0 means: nothing yet, call again.

        Raises SourceFailure.
        """

    def kernel_name(self) -> str | None:
        """What the kernel has behind the open source now (identity.rng_current); None if it is not hw_random.

        It may wait for a device that hangs.
        """

    def close(self) -> None:
        """Closes it; harmless when it is not open."""


def make_source(config: SourceConfig) -> Source:
    """The source for a configuration's ``kind`` (config/sources.py refuses all but these)."""
    if config.kind == "fifo":
        return FifoSource(config.path)
    if config.kind == "egd":
        return EgdSource(config.path, config.address)
    if config.kind == "prng":
        return PrngSource(config.path)
    return DeviceSource(config.path, config.rng_current)


__all__ = ["Source", "SourceFailure", "make_source"]
