# SPDX-License-Identifier: Apache-2.0
"""Standard files that are closed, gone or full must not cost a traceback, nor a byte its secrecy."""

import argparse
import os
import sys
from typing import NoReturn, TextIO, Type


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
            setattr(sys, name, os.fdopen(number, "w", errors="backslashreplace", closefd=False))
    return output_closed


def tell(text: str) -> None:
    """Prints ``text`` at once, with escapes for what the locale cannot show.

    Raises OSError, but not for a reader that has gone: then the work goes on.
    """
    encoding = sys.stdout.encoding or "ascii"
    _put(sys.stdout, text.encode(encoding, "backslashreplace").decode(encoding) + "\n", BrokenPipeError)


def flush_output() -> None:
    """Now, where what goes wrong can still be said; at the interpreter's end it would be exit code 120.

    Raises as ``tell``.
    """
    _put(sys.stderr, "", OSError)  # it may hold a log that nobody took
    _put(sys.stdout, "", BrokenPipeError)


def complain(command: str, text: str) -> None:
    """Prints one line on standard error, if that can be written to."""
    _put(sys.stderr, "{}: {}\n".format(command, text), OSError)


class Parser(argparse.ArgumentParser):
    """Misuse is exit code 2, although nobody reads what is wrong: else that raises, or costs the code."""

    def error(self, message: str) -> NoReturn:
        _put(sys.stderr, "{}{}: error: {}\n".format(self.format_usage(), self.prog, message), OSError)
        sys.exit(2)


def _put(stream: TextIO, text: str, borne: Type[OSError]) -> None:
    """Writes ``text`` and what ``stream`` still holds; an error of the kind ``borne`` drops both."""
    try:
        if text:  # of an unbuffered stream, a write of nothing is still one, and a full disk refuses it
            stream.write(text)
        stream.flush()
    except borne:
        drop(stream)


def drop(stream: TextIO) -> None:
    """What it still holds goes nowhere: the interpreter's own flush is quiet, and changes no exit code."""
    try:
        number = stream.fileno()
    except OSError:  # not a file's
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
