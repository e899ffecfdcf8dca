# SPDX-License-Identifier: Apache-2.0
"""Health tests: which noise bytes of a source may be given out, and when the source has failed.

NIST SP 800-90B (January 2018), sections 4.3 and 4.4. These are the tests:

- the repetition count test (RCT, 4.4.1) over bytes;
- the adaptive proportion test (APT, 4.4.2) over bytes in windows of 512, over bits in windows of 1,024;
- the block test over bytes in the same windows of 512: a two-sided chi-square (`blocktest`). It is beyond
  what the standard asks for, which is RCT and APT.

**Continuous** (4.2, 4.3): a noise byte is held until the whole window of 512 bytes that it lies in has passed
all of them. **Start-up** (4.3): the first 1,024 bytes after a start or an alarm are held together until they
have passed the same tests, and may then be used like any others. **On demand** (4.3): a new HealthTests, or
one after `restart`, begins with the start-up test.

An alarm comes with the noise byte that completes it, everything held is wiped, the rest of that window is
thrown away as it arrives, and the tests begin again at start-up. So a dead source raises at most one alarm
per window, and how the input is chopped changes nothing.

Where whole windows are at hand, `screen` tests many at once, in a tenth of the time; what it does not pass
goes piece by piece through the tests here, which decide. They have no loop per byte either: runs are found in
the XOR of the noise with itself shifted by a byte, as one big integer. That integer, and the population
counts, are temporaries of Python's that nobody can overwrite; the buffers here are overwritten as soon as
they are spent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from netrng_hostd.core.cutoffs import (
    ALPHA_EXPONENT,
    BIT_WINDOW,
    BYTE_WINDOW,
    STARTUP,
    apt_cutoff,
    bits_cutoff,
    rct_cutoff,
)

if TYPE_CHECKING:
    from netrng_hostd.core.blocktest import Cutoffs

RCT = "repetition-count"
APT_BYTES = "adaptive-proportion-bytes"
APT_BITS = "adaptive-proportion-bits"
BLOCK = "chi-square"

_BIT_WINDOW_BYTES = BIT_WINDOW // 8
_MIN_SCREENED = 3 * BYTE_WINDOW  # fewer are tested piece by piece as quickly
_MAX_SCREENED = 64 * BYTE_WINDOW  # more at a time are not quicker
_ONES = bytes(bin(value).count("1") for value in range(256))
_ZERO = b"\0"


def _popcount_by_table(bits: int) -> int:
    return sum(bits.to_bytes(_BIT_WINDOW_BYTES, "big").translate(_ONES))


# int.bit_count came with Python 3.10 and takes half the time; bin(bits).count("1") would take ten times it.
_popcount: Callable[[int], int] = getattr(int, "bit_count", _popcount_by_table)


class Alarm(NamedTuple):
    """A test that failed: its name, its counts in words, and after how many noise bytes in all."""

    test: str
    detail: str
    offset: int = 0


class Verdict(NamedTuple):
    """What one feed led to.

    `released`: vetted bytes, oldest first, the receiver's to spend and wipe. `discarded`: how many bytes an
    alarm destroyed. `alarm`: the first alarm, `alarms`: all of them. Over any number of feeds, bytes fed =
    released + discarded + held.
    """

    released: bytearray
    discarded: int
    alarm: Alarm | None = None
    alarms: tuple[Alarm, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Verdict(released={len(self.released)} bytes, discarded={self.discarded}, alarms={self.alarms})"
        )


class HealthTests:
    """The health tests of one source; see the module for what they promise.

    `min_entropy`: claimed bits per noise byte, wherever in the byte they are. ValueError where it is above 8
    or so low that one of the tests could never fail (below a/128: 0.3125 for a = 40), or where
    `alpha_exponent`, a, is above 40. Computing the cutoffs takes up to a second, once for each claim.
    """

    def __init__(self, min_entropy: float = 8.0, alpha_exponent: int = ALPHA_EXPONENT) -> None:
        # Only here and below, because it imports numpy: commands that test nothing use names of this module,
        # and are to start quickly.
        from netrng_hostd.core.blocktest import block_cutoffs

        least = 8 * alpha_exponent / BIT_WINDOW
        if not least <= min_entropy <= 8.0:
            raise ValueError(f"min_entropy is {min_entropy}, must be {least} to 8.0 bits per byte")
        self._use(
            rct_cutoff(alpha_exponent, min_entropy),
            apt_cutoff(alpha_exponent, min_entropy, BYTE_WINDOW),
            bits_cutoff(alpha_exponent, min_entropy),
            block_cutoffs(alpha_exponent, min_entropy),
        )
        self._buffer = bytearray(STARTUP)
        self._held = 0  # bytes of the buffer in use
        self._base = 0  # where in the buffer the present byte window begins
        self._bits_base = 0  # where in the buffer the present bit window begins
        self._run_value = _ZERO  # RCT's A
        self._run_length = 0  # RCT's B; 0 before the first noise byte
        self._run_before = 0, 0  # A and B where the present window begins; after start-up only
        self._skip = 0  # bytes of a failed window still to be thrown away
        self._starting = True
        self._offset = 0  # noise bytes fed, ever

    def _use(self, rct: int, apt_bytes: int, apt_bits: int, block: Cutoffs) -> None:
        from netrng_hostd.core.blocktest import square_sum
        from netrng_hostd.core.screen import Screen

        self.rct_cutoff, self.apt_byte_cutoff, self.apt_bit_cutoff = rct, apt_bytes, apt_bits
        self.block_cutoffs = block
        self._run_pattern = bytes(rct - 1)
        self._square_sum = square_sum
        self._screen = Screen(rct, apt_bytes, apt_bits, block, _MAX_SCREENED // BYTE_WINDOW)

    @property
    def held(self) -> int:
        """Bytes fed and neither released nor discarded yet: at most 1,023."""
        return self._held

    @property
    def starting(self) -> bool:
        """Whether the start-up test has still to be passed."""
        return self._starting

    def __repr__(self) -> str:
        return f"HealthTests(held={self._held}, starting={self._starting}, fed={self._offset})"

    def feed(self, noise: bytes | bytearray | memoryview) -> Verdict:
        """Tests the next noise bytes, in the order in which the source gave them; the caller wipes them."""
        position, discarded, alarms = 0, 0, list[Alarm]()
        size = len(noise)
        refused = 0  # up to where the screen has left it to the tests
        released = bytearray(self._held + size)
        filled = 0
        with memoryview(noise) as source, memoryview(released) as target, memoryview(self._buffer) as buffer:
            while position < size:
                if self._skip:
                    step = min(self._skip, size - position)
                    self._skip -= step
                    discarded += step
                    self._offset += step
                    position += step
                    continue
                step = min(_MAX_SCREENED, (self._held + size - position) // BYTE_WINDOW * BYTE_WINDOW)
                if step >= _MIN_SCREENED and position >= refused and not self._starting:
                    end = position + step - self._held
                    with target[filled : filled + step] as windows:
                        passed = self._screen_windows(source[position:end], windows)
                    if passed:
                        filled += step
                        position = end
                    else:
                        refused = end
                    continue
                piece = source[position : position + self._base + BYTE_WINDOW - self._held]
                step = len(piece)
                buffer[self._held : self._held + step] = piece
                position += step
                self._offset += step
                alarm = self._test(piece)
                if alarm is not None:
                    alarms.append(alarm)
                    rest = self._base + BYTE_WINDOW - self._held
                    discarded += self.restart()
                    self._skip = rest
                elif self._held - self._base == BYTE_WINDOW:
                    ready = self._pass_window()
                    target[filled : filled + ready] = buffer[:ready]
                    buffer[:ready] = bytes(ready)
                    filled += ready
        del released[filled:]
        return Verdict(released, discarded, alarms[0] if alarms else None, tuple(alarms))

    def restart(self) -> int:
        """Wipes what is held and begins again at start-up; returns how many bytes were discarded.

        For a source that was opened anew: its noise does not follow on from what came before.
        """
        wiped = self._held
        self._buffer[:] = bytes(STARTUP)
        self._held = self._base = self._bits_base = self._run_length = self._skip = 0
        self._run_value = _ZERO
        self._run_before = 0, 0
        self._starting = True
        return wiped

    def _screen_windows(self, noise: memoryview, windows: memoryview) -> bool:
        """Fills `windows` with what is held and the noise that follows; keeps that there if all of it passes.

        What is held has passed the tests as far as they could see, and is seen once more from its beginning.
        """
        held = self._held
        with memoryview(self._buffer) as buffer:
            windows[:held] = buffer[:held]
        windows[held:] = noise
        run = self._screen.passes(windows, *self._run_before)
        if not run:
            windows[:] = bytes(len(windows))
            return False
        self._buffer[:held] = bytes(held)
        self._held = self._bits_base = 0
        self._offset += len(noise)
        self._run_value, self._run_length = bytes(windows[-1:]), run
        self._run_before = windows[-1], run
        return True

    def _pass_window(self) -> int:
        """Moves on to the next byte window; returns how many bytes may be released."""
        if self._starting and self._held < STARTUP:
            self._base = self._held
            return 0
        ready, self._held, self._base, self._bits_base, self._starting = self._held, 0, 0, 0, False
        self._run_before = self._run_value[0], self._run_length
        return ready

    def _test(self, piece: memoryview) -> Alarm | None:
        """Tests the next bytes of a window, already in the buffer; they count as held from here on.

        Of several alarms the earliest counts, so that the answer is the one of a byte-by-byte feed.
        """
        end = self._repetition_count(piece)
        before = self._offset - len(piece) - self._held  # noise bytes before the first in the buffer
        counted = self._held + (end or len(piece))
        self._held += len(piece)
        while counted - self._bits_base >= _BIT_WINDOW_BYTES:
            start, self._bits_base = self._bits_base, self._bits_base + _BIT_WINDOW_BYTES
            # 4.4.2 steps 1 to 3 on bits, most significant first: B counts the values equal to the first, A.
            count = _popcount(int.from_bytes(self._buffer[start : self._bits_base], "big"))
            if self._buffer[start] < 0x80:
                count = BIT_WINDOW - count
            if count >= self.apt_bit_cutoff:  # step 4
                detail = f"one value {count} times in {BIT_WINDOW} bits, alarm from {self.apt_bit_cutoff}"
                return Alarm(APT_BITS, detail, before + self._bits_base)
        if end is not None:
            detail = f"{self.rct_cutoff} equal bytes in a row, alarm from {self.rct_cutoff}"
            return Alarm(RCT, detail, before + counted)
        if counted - self._base == BYTE_WINDOW:
            # 4.4.2 steps 1 to 3 on bytes.
            count = self._buffer.count(self._buffer[self._base], self._base, counted)
            if count >= self.apt_byte_cutoff:  # step 4
                detail = f"one value {count} times in {BYTE_WINDOW} bytes, alarm from {self.apt_byte_cutoff}"
                return Alarm(APT_BYTES, detail, before + counted)
            return self._block_test(before + counted)
        return None

    def _block_test(self, offset: int) -> Alarm | None:
        """The block test over the window that is complete; `offset`: noise bytes up to its end."""
        with memoryview(self._buffer) as buffer:
            total = self._square_sum(buffer[self._base : self._base + BYTE_WINDOW])
        low, high = self.block_cutoffs
        if low < total < high:
            return None
        detail = f"squared counts of the byte values add up to {total}, alarm up to {low} and from {high}"
        return Alarm(BLOCK, detail, offset)

    def _repetition_count(self, piece: memoryview) -> int | None:
        """4.4.1: how many bytes of the piece it took to complete a run of C equal ones; None without one."""
        run = self._run_value * self._run_length + piece
        size = len(run)
        number = int.from_bytes(run, "big")
        # Byte i is zero where noise byte i equals the one before it; byte 0 has none before it.
        changes = (number ^ (number >> 8)).to_bytes(size, "big")
        found = changes.find(self._run_pattern, 1)
        if found >= 0:  # B reached C with the last byte of the pattern
            return found + self.rct_cutoff - 1 - self._run_length
        self._run_value = run[-1:]
        self._run_length = min(size, 1 + size - len(changes.rstrip(_ZERO)))
        return None


__all__ = [
    "ALPHA_EXPONENT",
    "APT_BITS",
    "APT_BYTES",
    "BIT_WINDOW",
    "BLOCK",
    "BYTE_WINDOW",
    "RCT",
    "STARTUP",
    "Alarm",
    "HealthTests",
    "Verdict",
    "apt_cutoff",
    "rct_cutoff",
]
