# SPDX-License-Identifier: Apache-2.0
"""Is it fair?  What the quotas promise, measured, a line for each."""
