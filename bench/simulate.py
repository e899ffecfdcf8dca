# SPDX-License-Identifier: Apache-2.0
"""python -m bench.simulate: every simulated scenario, a line for each promise; exit 1 if one is SHORT."""

from __future__ import annotations

import sys

from bench.line import report
from bench.scenarios import all_lines

if __name__ == "__main__":
    sys.exit(report(all_lines()))
