# SPDX-License-Identifier: Apache-2.0
"""All health tests over many whole windows at once: did every one of them pass?

The screen never passes what a test of `health` would fail; it may refuse what they pass (a bit window with
few ones is refused although its first bit may be a zero). Whoever is refused asks them.

It is quick because it counts once: the byte counts of all windows are one bincount of window number × 256 +
byte, and the adaptive proportion test on bytes reads its counts from them. Ones are counted by a translation
of each byte, and added up 16 words of 8 bytes at a time, which no byte of the sum overflows: 16 × 8 = 128.

What holds noise or counts of it is overwritten before `passes` returns.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from netrng_hostd.core.blocktest import VALUES, Cutoffs
from netrng_hostd.core.cutoffs import BIT_WINDOW, BYTE_WINDOW

if TYPE_CHECKING:
    import numpy.typing as npt

_WORDS = BIT_WINDOW // 64
_ONES = bytes(bin(value).count("1") for value in range(256))
_EIGHT = np.ones(8, np.float32)
_INDEX = np.dtype(np.intp)
_LOWEST_BYTE = 0 if sys.byteorder == "little" else _INDEX.itemsize - 1
_NOT_NOISE = np.array(-VALUES)  # all bits but the lowest byte's


class Screen:
    """The tests with these cutoffs (`rct`: at most 512), over up to `max_windows` windows of 512 bytes."""

    def __init__(self, rct: int, apt_bytes: int, apt_bits: int, block: Cutoffs, max_windows: int) -> None:
        self._apt_bytes, self._apt_bits, self._block = apt_bytes, apt_bits, block
        self._run_pattern = b"\1" * (rct - 1)
        self._equal = bytearray(max_windows * BYTE_WINDOW)  # 1 where a noise byte equals the one before it
        self._equal_array = np.frombuffer(self._equal, np.bool_)
        # Window number × 256 stands in it once and for all; the noise goes into each number's lowest byte.
        self._index = np.repeat(np.arange(max_windows, dtype=np.intp) * VALUES, BYTE_WINDOW)
        self._lowest = self._index.view(np.uint8)[_LOWEST_BYTE :: _INDEX.itemsize]

    def passes(self, noise: memoryview, before: int, run: int) -> int:
        """The length of the run that the noise ends with (RCT's B); 0 if a test may have failed.

        `noise`: whole windows, at least one; `before`: the noise byte before them; `run`: how many equal
        ones ended with it, at least 1 and less than the cutoff.
        """
        values = np.frombuffer(noise, np.uint8)
        if self._counts_pass(values) and self._bits_pass(noise):
            return self._last_run(values, before, run)
        return 0

    def _last_run(self, values: npt.NDArray[np.uint8], before: int, run: int) -> int:
        """4.4.1, as `passes`."""
        size = values.size
        equal = self._equal_array[:size]
        equal[0] = values[0] == before
        np.equal(values[1:], values[:-1], equal[1:])
        failed = self._equal.startswith(self._run_pattern[run - 1 :]) or (
            self._equal.find(self._run_pattern, 0, size) >= 0
        )
        last_run = 0 if failed else size - self._equal.rfind(0, 0, size)
        equal.fill(False)
        return last_run

    def _counts_pass(self, values: npt.NDArray[np.uint8]) -> bool:
        """4.4.2 on bytes, and the block test."""
        size = values.size
        windows = size // BYTE_WINDOW
        index = self._index[:size]
        self._lowest[:size] = values
        counts = np.bincount(index, None, windows * VALUES)
        of_first = int(counts[index[::BYTE_WINDOW]].max())
        np.bitwise_and(index, _NOT_NOISE, index)
        table = counts.reshape(windows, VALUES)
        sums = np.einsum("ij,ij->i", table, table)
        counts.fill(0)
        low, high = self._block
        return of_first < self._apt_bytes and int(sums.min()) > low and int(sums.max()) < high

    def _bits_pass(self, noise: memoryview) -> bool:
        """4.4.2 on bits, for either first bit."""
        copy = bytearray(noise)
        ones = copy.translate(_ONES)
        words = np.frombuffer(ones, np.uint64).reshape(-1, _WORDS)
        bytes_of_sums = np.add.reduce(words, 1).view(np.uint8).reshape(-1, 8)
        counts = bytes_of_sums.astype(np.float32) @ _EIGHT
        copy[:] = ones[:] = bytes(len(copy))
        return int(counts.max()) < self._apt_bits and int(counts.min()) > BIT_WINDOW - self._apt_bits
