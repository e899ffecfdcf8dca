# SPDX-License-Identifier: Apache-2.0
"""The daemon on a hypervisor: one hardware random number generator, shared out fairly to every VM on it."""

from netrng_guest import __version__

__all__ = ["__version__"]
