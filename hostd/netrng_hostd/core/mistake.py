# SPDX-License-Identifier: Apache-2.0
"""How a mistake of ours is told: by its type and place.  Its text may show what it was handling."""

from __future__ import annotations


def where_raised(error: BaseException | None) -> str:
    """One line for an exception that nobody expected; None where even that is not known."""
    place = error.__traceback__ if error is not None else None
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    at = f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else ""
    return f"internal error: {type(error).__name__}{at}; please report it"
