# SPDX-License-Identifier: Apache-2.0
"""Conditioning: noise bytes that carry fewer than 8 bits each become fewer bytes that carry 8.

Blocks of noise are hashed with SHA-256 (FIPS 180-4), without a key: a vetted conditioning component by NIST
SP 800-90B (January 2018), 3.1.5.1.1, with n_out = nw = 256 bits (nw is the narrowest internal width). A block
gives one digest of 32 bytes and is used for nothing else; what does not fill a block yet is held. So there is
never more output than input, nor more than the entropy that was claimed for the input.

How many noise bytes a block needs, for a claim of H bits of min-entropy per byte, 0 < H < 8:

SP 800-90C lets the output of a vetted component count as full entropy where what goes in carries at least
n_out + 64 bits of min-entropy, 320 here: ⌈320 / H⌉ noise bytes. "Full entropy" is at least (1 - ε) · 256
bits in the 256, with ε <= 2^-32 (NIST IR 8427). It cannot be all 256: a hash maps some of its inputs to the
same output, however much goes in.

That this is enough can be seen from SP 800-90B itself. 3.1.5.1.2 bounds the min-entropy of the output by two
things (`output_entropy`), both relative to the ideal 2^-256, in bits that are lost:

- the likeliest input alone: 2^(256 - h_in) / ln 2, with h_in >= 320 at most 1.5 · 2^-64, whatever H is;
- outputs that more inputs than the average fall on: sqrt(2 · 256 · ln 2 · 2^(256 - n_in)) / ln 2, which
  shrinks as the block grows. It is largest where H is just below 8 and a block has the fewest bytes. That is
  41: 40 bytes carry 320 bits at H = 8 only. Then n_in = 328, and 27.2 · 2^-36 = 2^-31.2 bits are lost.

(1 - 2^-32) · 256 bits allow a loss of 2^-24, so the claim holds for every H below 8: with ε <= 2^-39
at worst, near 8, and with ε <= 2^-71 where blocks have 50 noise bytes and more (H <= 6.5).

| H | noise bytes for 32 bytes out | bits in (n_in) | min-entropy in (h_in) | bits lost out of 256 |
|---|---|---|---|---|
| 7.9 | 41 | 328 | 323.9 | 2^-31.2 |
| 7 | 46 | 368 | 322 | 2^-51.2 |
| 6 | 54 | 432 | 324 | 2^-67.5 |
| 4 | 80 | 640 | 320 | 2^-63.5 |
| 1 | 320 | 2,560 | 320 | 2^-63.5 |
| 0.5 | 640 | 5,120 | 320 | 2^-63.5 |

All this rests on the claim H, and on SHA-256 being what SP 800-90B takes it for. The claim is the operator's
(`min_entropy` in the configuration); the health tests only notice when it is grossly wrong.
"""

from __future__ import annotations

import hashlib
import math

OUTPUT = 32  # bytes of one SHA-256 digest
SAFETY_BITS = 64  # min-entropy that goes in beyond what comes out, for full entropy: SP 800-90C


def noise_per_block(min_entropy: float) -> int:
    """How many noise bytes are compressed into OUTPUT bytes: ⌈(256 + 64) / H⌉, exactly.

    `min_entropy`: H, claimed bits per noise byte. ValueError unless it is above 0 and below 8: what carries
    8 bits needs no conditioning, and would only lose by it.
    """
    if not 0 < min_entropy < 8:
        raise ValueError(f"min_entropy is {min_entropy}, must be above 0 and below 8 bits per byte")
    numerator, denominator = min_entropy.as_integer_ratio()
    return -(-(8 * OUTPUT + SAFETY_BITS) * denominator // numerator)


def output_entropy(n_in: int, n_out: int, nw: int, h_in: float) -> float:
    """Output_Entropy(n_in, n_out, nw, h_in) of SP 800-90B 3.1.5.1.2: bits of min-entropy in one output.

    `n_in`: bits of one input; `n_out`: bits of one output; `nw`: the component's narrowest internal width, in
    bits; `h_in`: min-entropy of one input, in bits, above 0 and at most n_in (else ValueError).

    The standard's ψ and ω are as small as 2^-n_in, which no float holds. Both are computed here as multiples
    of 2^-n, less 1: what is left are small numbers, precise to a float's last digits. The result is a float,
    which near 256 is rounded to 2^-45: a smaller loss is not seen in it.
    """
    if not 0 < h_in <= n_in:
        raise ValueError(f"h_in is {h_in}, must be above 0 and at most n_in, which is {n_in}")
    n = min(n_out, nw)  # step 2
    # Step 1: P_high = 2^-h_in, P_low = (1 - P_high) / (2^n_in - 1); this is P_low · 2^n_in - 1.
    low = (2.0**-n_in - 2.0**-h_in) / (1 - 2.0**-n_in)
    psi = low + 2.0 ** (n - h_in)  # step 3
    omega = low + (1 + low) * math.sqrt(2 * n * math.log(2) * 2.0 ** (n - n_in))  # steps 4 and 5
    return n - math.log1p(max(psi, omega)) / math.log(2)  # step 6


class Conditioner:
    """The conditioning component of one source; see the module for what it promises.

    `min_entropy`: claimed bits per noise byte; ValueError unless it is above 0 and below 8. Bytes fed =
    OUTPUT-sized digests given out · noise bytes in a block + held + wiped by `restart`.
    """

    def __init__(self, min_entropy: float) -> None:
        self._block = bytearray(noise_per_block(min_entropy))
        self._held = 0  # bytes of the block in use

    @property
    def ratio(self) -> tuple[int, int]:
        """(bytes out, noise bytes in): a rate of noise, times the first, divided by the second, comes out."""
        return OUTPUT, len(self._block)

    @property
    def held(self) -> int:
        """Noise bytes that wait for their block to fill: fewer than a block."""
        return self._held

    def __repr__(self) -> str:
        return f"Conditioner(ratio={self.ratio}, held={self._held})"

    def feed(self, vetted: bytearray | memoryview) -> bytearray:
        """Takes the next vetted noise bytes, in order; returns the digests of the blocks that they fill.

        The result is the receiver's to spend and wipe; the caller wipes the input. How the input is chopped
        changes nothing.
        """
        position, filled, size = 0, 0, len(vetted)
        block_size = len(self._block)
        conditioned = bytearray((self._held + size) // block_size * OUTPUT)
        with memoryview(vetted) as source, memoryview(self._block) as block:
            while position < size:
                step = min(block_size - self._held, size - position)
                block[self._held : self._held + step] = source[position : position + step]
                position += step
                self._held += step
                if self._held == block_size:
                    conditioned[filled : filled + OUTPUT] = hashlib.sha256(block).digest()
                    filled += OUTPUT
                    self.restart()
        return conditioned

    def restart(self) -> int:
        """Wipes what is held and begins a new block; returns how many noise bytes that were.

        For a source that failed or was opened anew.
        """
        wiped, self._held = self._held, 0
        self._block[:] = bytes(len(self._block))
        return wiped
