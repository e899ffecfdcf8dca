# SPDX-License-Identifier: Apache-2.0
"""Trouble with a source, as a state that a person can see."""

from __future__ import annotations

import errno

_STATE_OF_ERRNO = {
    errno.ENOENT: "absent",
    errno.ENODEV: "absent",
    errno.ENXIO: "absent",
    errno.ENOTDIR: "absent",
    errno.ECONNREFUSED: "absent",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
}


class SourceFailure(Exception):
    """A source cannot be read now.  ``state`` is one of the source states of docs/operating.md.

    ``soon``: looking again costs nothing, so it is looked again every half second.
    """

    def __init__(self, state: str, detail: str, soon: bool = False) -> None:
        super().__init__(detail)
        self.state = state
        self.detail = detail
        self.soon = soon

    @classmethod
    def of(cls, error: OSError, doing: str, path: str) -> SourceFailure:
        """Translates an OSError from opening or reading ``path``."""
        state = _STATE_OF_ERRNO.get(error.errno or 0, "error")
        return cls(state, f"cannot {doing} {path}: {error.strerror or error}")
