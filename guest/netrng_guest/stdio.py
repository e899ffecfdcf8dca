# SPDX-License-Identifier: Apache-2.0
"""Standard files that are closed, gone or full must not cost a traceback, nor a byte its secrecy."""

import os
import sys
from typing import TextIO


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


def tell(text: str) -> None:
    """Prints ``text`` at once.  Raises OSError, but not for a reader that has gone: then the work goes on."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        drop(sys.stdout)


def flush_output() -> None:
    """Now, where what goes wrong can still be said.  Raises as ``tell``."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop(sys.stdout)


def complain(command: str, text: str) -> None:
    """Prints one line on standard error, if that can be written to."""
    try:
        sys.stderr.write("{}: {}\n".format(command, text))
        sys.stderr.flush()
    except OSError:
        drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """What it still holds goes nowhere: the interpreter's own flush is quiet, and changes no exit code."""
    try:
        number = stream.fileno()
    except OSError:  # not a file's
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
