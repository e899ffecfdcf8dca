# SPDX-License-Identifier: Apache-2.0
"""The command netrng-guest."""

import argparse
import os
import signal
import socket
import sys
import time
from typing import Dict, List, Optional

from . import __version__
from .agent import Agent
from .check import check
from .config import DEFAULT_PATH, RATE_FORMAT, SINK_FORMAT, ConfigError, Settings, load
from .generation import open_uevents
from .kernel import KernelPool
from .log import Log
from .loop import Loop
from .pipesink import PipeSink, StdoutClosed, StdoutSink
from .port import Port
from .rngd import RngdSink
from .sink import KernelSink, Sink
from .stdio import Parser, complain, drop, fill_closed, flush_output

EXAMPLE = """\
examples:
  netrng-guest                          seed the kernel, then feed rngd 100 bytes per second
  netrng-guest run --sink kernel --rate 1KiB/s
  netrng-guest --sink stdout | head -c 1000 > some.bytes
  netrng-guest check                    what is missing in this VM, and how to mend it
"""
NAME = "netrng-guest"
FLAGS = ("sink", "channel", "rate", "window")


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs the command; returns its exit code.  Never raises but SystemExit of argparse (0 or 2)."""
    output_closed = fill_closed()
    try:
        try:
            return _obey(
                _parser().parse_args(sys.argv[1:] if arguments is None else arguments), output_closed
            )
        finally:
            flush_output()
    except ConfigError as error:
        complain(NAME, str(error))
        return 2
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        drop(sys.stdout)
        return 0
    except OSError as error:
        drop(sys.stdout)
        complain(NAME, "{}".format(error.strerror or type(error).__name__))
        return 1
    except Exception as error:  # a mistake of ours: its place helps, its text may hold bytes
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = "{}:{}".format(place.tb_frame.f_code.co_filename, place.tb_lineno) if place else "?"
        complain(NAME, "internal error: {} at {}".format(type(error).__name__, where))
        return 1


def _obey(asked: argparse.Namespace, output_closed: bool) -> int:
    flags: Dict[str, str] = {name: getattr(asked, name) for name in FLAGS if getattr(asked, name) is not None}
    settings = load(asked.config, flags)
    if asked.command == "check":
        return check(settings)
    if settings.sink == "stdout" and output_closed:
        raise ConfigError(
            "sink: stdout, but standard output is closed; allowed: a file, a pipe or a terminal"
        )
    return run(settings)


def run(settings: Settings) -> int:
    """The agent, until SIGTERM or SIGINT; returns 0."""
    log = Log()
    loop = Loop()
    loop.catch(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    uevents = open_uevents()
    pool = KernelPool()
    sink = _make_sink(settings, loop, pool, log)
    agent = Agent(settings, loop, Port(settings.channel), sink, pool, log, uevents)
    try:
        log.line("{} starts, sink {}".format(__version__, settings.sink), _now_ns())
        _notify(b"READY=1")
        while not loop.signals & {signal.SIGTERM, signal.SIGINT}:
            now_ns = _now_ns()
            due_ns = agent.step(now_ns)
            loop.wait(None if due_ns is None else due_ns - now_ns)
    except StdoutClosed:
        pass
    finally:
        _notify(b"STOPPING=1")
        agent.stop(_now_ns())
        if uevents is not None:
            loop.unwatch(uevents.fileno())
            uevents.close()
        loop.close()
    return 0


def _make_sink(settings: Settings, loop: Loop, pool: KernelPool, log: Log) -> Sink:
    if settings.sink == "kernel":
        return KernelSink(pool, settings.rate)
    if settings.sink == "stdout":
        return StdoutSink(loop)
    if settings.sink == "rngd":
        return RngdSink(loop, lambda text: log.line(text, _now_ns()))
    return PipeSink(loop, settings.sink.split(":", 1)[1])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=NAME,
        description="Asks the host for random bytes, seeds this VM's kernel with them and feeds rngd.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", choices=("run", "check"), default="run", help="default: run")
    parser.add_argument("--sink", metavar="SINK", help=SINK_FORMAT + "; rngd is the default")
    parser.add_argument("--channel", metavar="PATH", help="the port; default: the one named org.netrng.0")
    parser.add_argument("--rate", metavar="R", help=RATE_FORMAT + "; 100 is the default for rngd and kernel")
    parser.add_argument("--window", metavar="N", help="bytes asked for and not yet taken, 64 to 65536")
    parser.add_argument("--config", metavar="FILE", help="default: {}".format(DEFAULT_PATH))
    parser.add_argument("--version", action="version", version="netrng-guest " + __version__)
    return parser


def _now_ns() -> int:
    return int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e9)  # monotonic_ns is Python 3.7's


def _notify(text: bytes) -> None:
    """Tells systemd, if it asked to be told: sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
            link.sendto(text, path.replace("@", "\0", 1) if path.startswith("@") else path)
    except OSError:
        pass
