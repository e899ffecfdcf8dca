# SPDX-License-Identifier: Apache-2.0
"""``python3 -m netrng_guest`` and the single-file archive start here."""

import sys

from .main import main

sys.exit(main())
