# SPDX-License-Identifier: Apache-2.0
"""Broken sources, and two that only look whole. Each is a generator of pieces of noise, without end.

`random` decides what a fault's kind leaves open (which value, which bit, where it begins), and stands for the
noise that is still there. The same `Random` gives the same bytes. A piece is at most PIECE bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import count
from random import Random

PIECE = 1024  # bytes
BIAS_BITS = 16  # binary digits of a bias: it is exact to 2^-16

Fault = Callable[[Random], Iterator[bytes]]


def biased_bytes(random: Random, share: float, size: int) -> bytes:
    """Bytes whose bits are ones in this share, each bit by itself: Horner's scheme over its digits."""
    digits = round(share * 2**BIAS_BITS)
    if digits == 1 << BIAS_BITS:
        return b"\xff" * size
    ones = 0
    for place in range(BIAS_BITS):
        noise = random.getrandbits(8 * size)
        ones = ones | noise if digits >> place & 1 else ones & noise
    return ones.to_bytes(size, "big")


def good(random: Random) -> Iterator[bytes]:
    """Nothing is wrong with it that a test could see: the Mersenne Twister."""
    while True:
        yield random.randbytes(PIECE)


def hashed_counter(random: Random) -> Iterator[bytes]:
    """A device whose noise has died behind its own conditioner: SHA-256 of a counter."""
    numbers = count(random.getrandbits(32))
    while True:
        yield b"".join(hashlib.sha256(next(numbers).to_bytes(8, "big")).digest() for _ in range(PIECE // 32))


def stuck(random: Random) -> Iterator[bytes]:
    value = random.randbytes(1)
    while True:
        yield value * PIECE


def period_two(random: Random) -> Iterator[bytes]:
    values = bytes(random.sample(range(256), 2))
    while True:
        yield values * (PIECE // 2)


def counter(random: Random) -> Iterator[bytes]:
    begin = random.randrange(256)
    piece = bytes((begin + i) % 256 for i in range(PIECE))
    while True:
        yield piece


def bit_stuck(random: Random) -> Iterator[bytes]:
    mask, value = 1 << random.randrange(8), random.randrange(2)
    table = bytes(byte | mask if value else byte & ~mask for byte in range(256))
    while True:
        yield random.randbytes(PIECE).translate(table)


def repeating(size: int) -> Fault:
    def fault(random: Random) -> Iterator[bytes]:
        block = random.randbytes(size) * -(-PIECE // size)
        while True:
            yield from (block[i : i + PIECE] for i in range(0, len(block), PIECE))

    return fault


def only(values: bytes) -> Fault:
    """Noise of these values alone, all equally likely."""

    def fault(random: Random) -> Iterator[bytes]:
        whole = 256 // len(values) * len(values)
        table = bytes(values[byte % len(values)] for byte in range(256))
        beyond = bytes(range(whole, 256))
        while True:
            yield random.randbytes(PIECE).translate(table, delete=beyond)

    return fault


def biased(share: float) -> Fault:
    def fault(random: Random) -> Iterator[bytes]:
        while True:
            yield biased_bytes(random, share, PIECE)

    return fault


def degrading(size: int) -> Fault:
    """The share of ones grows from a half to 1 over `size` bytes, in steps of 64 bytes, and stays there."""

    def fault(random: Random) -> Iterator[bytes]:
        for begin in count(0, PIECE):
            shares = (min(1.0, 0.5 + 0.5 * position / size) for position in range(begin, begin + PIECE, 64))
            yield b"".join(biased_bytes(random, share, 64) for share in shares)

    return fault


HEX_DIGITS = b"0123456789abcdef"
BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

FAULTS: dict[str, Fault] = {
    "stuck at a value": stuck,
    "period 2: two values in turn": period_two,
    "a counter, 00 to ff": counter,
    "a block of 16 bytes for ever": repeating(16),
    "a block of 256 bytes for ever": repeating(256),
    "a block of 512 bytes for ever": repeating(512),
    "a block of 4,096 bytes for ever": repeating(4096),
    "one bit stuck, the other seven good": bit_stuck,
    "bits that are 1 in 90 %": biased(0.9),
    "bits that are 1 in 70 %": biased(0.7),
    "bits that are 1 in 60 %": biased(0.6),
    "bits that are 1 in 55 %": biased(0.55),
    "the upper four bits always 0": only(bytes(range(16))),
    "ASCII hex digits": only(HEX_DIGITS),
    "Base64 text": only(BASE64),
    "values 0 to 249 only": only(bytes(range(250))),
    "ones from 50 to 100 % within 64 KiB": degrading(1 << 16),
    "ones from 50 to 100 % within 1 MiB": degrading(1 << 20),
    "SHA-256 of a counter": hashed_counter,
    "nothing wrong (the control)": good,
}
