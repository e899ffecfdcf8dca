# SPDX-License-Identifier: Apache-2.0
"""`netrng-hostd status`: asks, and shows the answer once, as JSON, or again and again."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from netrng_guest.stdio import complain, tell
from netrng_hostd.config import SYSTEM_CONTROL, ConfigError, default_control
from netrng_hostd.operate.control import NoDaemon, ask
from netrng_hostd.operate.domain_table import WIDE
from netrng_hostd.operate.render import render
from netrng_hostd.operate.source_table import sources_part
from netrng_hostd.operate.status import DaemonStatus, from_json

EXIT_NO_DAEMON = 3
INTERVAL_S = 1.0
LINES_AROUND = 13  # of a screen, besides the sources and the table of domains


def show(control: str, *, as_json: bool = False, watch: bool = False, console: Console | None = None) -> int:
    """Shows the status of the daemon at ``control``; exit code 0, or 3 when none answers."""
    console = console or _console()
    control = _place(control)
    try:
        answer = ask(control)
        status = from_json(answer)
        if as_json:
            tell(json.dumps(json.loads(answer), indent=2))
        elif watch:
            _watch(control, console, status)
        else:
            console.print(render(status, console.width))
    except (NoDaemon, ValueError) as error:
        text = str(error) if isinstance(error, NoDaemon) else f"no daemon answers: {control}: {error}"
        complain("netrng-hostd", text)
        return EXIT_NO_DAEMON
    return 0


class _Console(Console):
    def on_broken_pipe(self) -> None:  # rich's own would end the process with 1
        raise BrokenPipeError


def _console() -> Console:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows "?" for a bar
    return _Console(highlight=False, markup=False, emoji=False)


def _place(control: str) -> str:
    """A user without a daemon of their own means the system's."""
    try:
        own = os.geteuid() != 0 and control == default_control()
    except ConfigError:
        return control
    return SYSTEM_CONTROL if own and not Path(control).exists() and Path(SYSTEM_CONTROL).exists() else control


def _watch(control: str, console: Console, status: DaemonStatus) -> None:
    """Until Ctrl-C or SIGTERM, which both leave the last picture and a cursor that can be seen."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if console.is_terminal:
            with Live(_picture(status, console), console=console, auto_refresh=False) as live:
                for picture in _pictures(control, console, status):
                    live.update(picture, refresh=True)
        else:
            for picture in _pictures(control, console, status):
                console.print(picture)
                console.file.flush()
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def _pictures(control: str, console: Console, status: DaemonStatus) -> Iterator[RenderableType]:
    """One each second, of the last status when the daemon is silent; without end."""
    trouble = ""
    while True:
        yield _picture(status, console, trouble)
        time.sleep(INTERVAL_S)
        try:
            status, trouble = from_json(ask(control)), ""
        except (NoDaemon, ValueError) as error:
            trouble = str(error)


def _picture(status: DaemonStatus, console: Console, trouble: str = "") -> RenderableType:
    used = len(status.sources) + len(sources_part(status)) + len(status.uris)
    room = max(1, console.height - LINES_AROUND - used)
    picture = render(status, console.width, room if console.width >= WIDE else max(1, room // 3))
    return Group(picture, Text(f"\n{trouble}; asking again", "bold red")) if trouble else picture
