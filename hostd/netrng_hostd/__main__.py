# SPDX-License-Identifier: Apache-2.0
"""`python -m netrng_hostd` is `netrng-hostd`."""

import sys

from netrng_hostd.main import main

if __name__ == "__main__":
    sys.exit(main())
