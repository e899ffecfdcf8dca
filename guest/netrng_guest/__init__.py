# SPDX-License-Identifier: Apache-2.0
"""The agent in a VM: asks the host for random bytes, seeds the kernel, feeds rngd.  Standard library only."""

__version__ = "0.1.0"
