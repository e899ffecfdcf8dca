# SPDX-License-Identifier: Apache-2.0
"""Standard files that are closed, gone or full must not cost a traceback, nor a byte its secrecy."""

import os
import sys


def fill_closed() -> bool:
    """Opens /dev/null in the place of each standard file that is closed; whether standard output was.

    Else the first file opened later takes its number, and gets what is meant for the person who started us.
    """
    output_closed = sys.stdout is None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
    return output_closed


def drop_output() -> None:
    """Whoever reads it has gone, or there is no room for it: the interpreter's own flush must be quiet."""
    try:
        stdout = sys.stdout.fileno()
    except OSError:  # not a file's
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stdout)
    os.close(nowhere)
