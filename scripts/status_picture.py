#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws docs/status.svg, the README's picture, from docs/status.json, a daemon's own answer.

    scripts/status_picture.py                      draws the picture anew, after a change of `status`
    scripts/status_picture.py --record F WORDS…    first asks the daemon that runs with configuration F, and
                                                   stores its answer with WORDS on how it came about

The answer is stored as it came, with one key more, "recorded": those words.  What is in docs/ was taken from
the daemon of a `make demo`, whose configuration lies in /tmp/netrng-bed-…/hostd.toml while it runs.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from rich.console import Console

from netrng_hostd.config import load
from netrng_hostd.operate.control import ask
from netrng_hostd.operate.render import render
from netrng_hostd.operate.status import from_json

DOCS = Path(__file__).resolve().parent.parent / "docs"
RECORD = DOCS / "status.json"
PICTURE = DOCS / "status.svg"
WIDTH = 100  # columns
TITLE = "netrng-hostd status --watch"

# rich's own frame, less the fonts that it would fetch from another site: any monospaced one will do.
FRAME = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: "Fira Code", "DejaVu Sans Mono", Menlo, Consolas, monospace; \
font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def draw(recorded: str) -> str:
    """The picture of a recorded status, as SVG; the same for the same record and the same rich."""
    console = Console(
        file=io.StringIO(), record=True, width=WIDTH, force_terminal=True, color_system="truecolor",
        highlight=False, markup=False, emoji=False,
    )  # fmt: skip
    console.print(render(from_json(recorded), WIDTH))
    picture = console.export_svg(title=TITLE, code_format=FRAME, unique_id="status")
    return "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"


def record(config: str, words: str) -> str:
    """The answer of the daemon that runs with this configuration, with the words, as JSON.

    Raises ConfigError, NoDaemon.
    """
    answer = json.loads(ask(load(config).control))
    return json.dumps({"recorded": words, **answer}, indent=2) + "\n"


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--record"] and len(arguments) > 2:
        RECORD.write_text(record(arguments[1], " ".join(arguments[2:])), encoding="ascii")
    elif arguments:
        print("usage: scripts/status_picture.py [--record CONFIG WORDS…]", file=sys.stderr)
        return 2
    PICTURE.write_text(draw(RECORD.read_text(encoding="ascii")), encoding="utf-8")
    print(f"{PICTURE}: {PICTURE.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
