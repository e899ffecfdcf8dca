# SPDX-License-Identifier: Apache-2.0
"""How many bytes one sample holds: less when the source is slow and many ask, so that all have their turn.

**The wait.** With `n` who ask, a source of `r` bytes per second and samples of `s` bytes, turns come round
every n · s / r seconds, and nobody is more than `s` bytes from its exact share. Small samples are fairer.

**The overhead.** A sample of any size is one frame: 32 bytes go with it, and 48 come back when it is
acknowledged by itself (docs/protocol.md: 24 bytes around every payload; a SAMPLE's offset is 8 bytes, a
GRANT's three are 24). So `s` bytes cost s + 80 on the channel:

    bytes in a sample      32    64   128   256   512  1024  4096
    on the channel, times 3.50  2.25  1.62  1.31  1.16  1.08  1.02

and r / s samples per second are to be picked, framed and written. Large samples are cheaper.

**The rule.** The largest step of which everybody has one within a second: n · s ≤ r. Steps are 32 bytes,
doubled as often as the maximum allows, and the maximum itself. That bounds the wait to a second where 32
bytes do it (n ≤ r / 32: 312 who ask, on 10 kB/s) and is n · 32 / r beyond (3.2 s for 1,000); and it bounds
the cost, for below the maximum there are less than 16/7 · (n + 1) samples per second, whatever the rate.

**Hysteresis.** A step that is too large is left at once. A larger one is taken only if it would do with one
more who asks and a rate an eighth lower: 8 · (n + 1) · s ≤ 7 · r. So a rate that wavers within an eighth,
and at the same time one domain that comes and goes, change the size once at most.
"""

from __future__ import annotations

from .domain import MIN_SAMPLE


def sample_size(rate: int | None, askers: int, current: int, maximum: int) -> int:
    """Bytes for the samples from now on: a step, 32 to `maximum`.

    `rate`: what the source gives, in bytes per second, None while nobody knows; `askers`: how many domains
    ask; `current`: the size until now, 32 or more. ValueError unless maximum ≥ 32.
    """
    if maximum < MIN_SAMPLE:
        raise ValueError(f"maximum {maximum}; allowed: {MIN_SAMPLE} or more")
    if not rate:
        return MIN_SAMPLE
    askers = max(askers, 1)
    size = _step(min(current, rate // askers), maximum)
    return max(size, _step(7 * rate // (8 * (askers + 1)), maximum))


def _step(most: int, maximum: int) -> int:
    """The largest step up to `most`, or the smallest of all."""
    if most >= maximum:
        return maximum
    return max(MIN_SAMPLE, 1 << max(0, most.bit_length() - 1))
