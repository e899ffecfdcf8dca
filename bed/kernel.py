# SPDX-License-Identifier: Apache-2.0
"""Unpacks a distribution's kernel image: emulated, a guest would need two seconds of its five for that.

The format: Documentation/arch/x86/boot.rst in the kernel's tree.
"""

from __future__ import annotations

import lzma
import re
import struct
import subprocess
import zlib

# XEN_ELFNOTE_PHYS32_ENTRY, by which QEMU starts an unpacked kernel (PVH): name and entry sizes, type 18, name
_PVH = re.compile(rb"\x04\0\0\0[\x04\x08]\0\0\0\x12\0\0\0Xen\0")


def unpacked(bzimage: bytes) -> bytes:
    """The ELF kernel inside `bzimage` if QEMU can start it as such, else `bzimage` itself."""
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    # The last four bytes are the unpacked size.
    payload = bzimage[start : start + length - 4]
    try:
        if payload.startswith(b"\xfd7zXZ\0"):
            kernel = lzma.decompress(payload)
        elif payload.startswith(b"\x1f\x8b"):
            kernel = zlib.decompress(payload, wbits=31)
        elif payload.startswith(b"\x28\xb5\x2f\xfd"):
            kernel = subprocess.run(
                ["zstd", "-dcq"], input=payload, stdout=subprocess.PIPE, check=True
            ).stdout
        else:
            return bzimage
    except (lzma.LZMAError, zlib.error, OSError, subprocess.CalledProcessError):
        return bzimage
    return kernel if kernel.startswith(b"\x7fELF") and _PVH.search(kernel) else bzimage
