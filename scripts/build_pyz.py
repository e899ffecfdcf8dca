#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds netrng-guest.pyz: the agent in one file that any Python from 3.6 on runs.

    scripts/build_pyz.py dist/netrng-guest.pyz

The same sources give the same bytes, on any machine and at any time: fixed order, dates and permissions, and
no compression, whose output differs between versions of zlib.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "guest" / "netrng_guest"
# Linux hands over one argument only.  -I: nothing of the environment or the current folder; -S: no packages.
SHEBANG = b"#!/usr/bin/python3 -IS\n"
MAIN = "import sys\n\nfrom netrng_guest.main import main\n\nsys.exit(main())\n"
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first date that a zip file can hold
UNIX = 3
REGULAR_0644 = 0o100644 << 16


def build(package: Path = PACKAGE) -> bytes:
    """The archive's bytes."""
    files = {"__main__.py": MAIN.encode()}
    for path in package.rglob("*.py"):
        files[f"netrng_guest/{path.relative_to(package).as_posix()}"] = path.read_bytes()
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, LONG_AGO)
            info.create_system = UNIX
            info.external_attr = REGULAR_0644
            archive.writestr(info, files[name])
    return SHEBANG + target.getvalue()


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: scripts/build_pyz.py FILE", file=sys.stderr)
        return 2
    target = Path(arguments[0])
    data = build()
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(target.name + ".new")
    new.write_bytes(data)
    new.chmod(0o755)
    new.replace(target)
    print(f"{target}: {len(data)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
