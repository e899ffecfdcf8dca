# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests of the edges."""

from __future__ import annotations

import pytest

from netrng_guest import variants


@pytest.fixture(autouse=True)
def time_for_rngd_to_say_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine stood still for three seconds, none would be known, and none asked for a while."""
    monkeypatch.setattr(variants, "HELP_S", 60)
    monkeypatch.setattr(variants, "LIST_S", 60)
