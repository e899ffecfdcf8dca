# SPDX-License-Identifier: Apache-2.0
"""A pause that can be cut short."""

from __future__ import annotations

import asyncio


async def pause(seconds: float, wake: asyncio.Event) -> None:
    """Until ``wake`` is set from now on, or so many seconds are over."""
    # Not asyncio.wait_for(): up to Python 3.11 it loses a cancellation that comes with the event.
    wake.clear()
    timer = asyncio.get_running_loop().call_later(seconds, wake.set)
    try:
        await wake.wait()
    finally:
        timer.cancel()
