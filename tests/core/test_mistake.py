# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from netrng_hostd.core.mistake import where_raised


def test_an_error_is_told_by_type_and_place_and_not_by_its_text() -> None:
    def fail() -> None:
        raise RuntimeError("secret bytes")

    try:
        fail()
    except RuntimeError as error:
        told = where_raised(error)
    assert told.startswith("internal error: RuntimeError at ")
    assert "test_mistake.py:" in told
    assert "secret" not in told
    assert "\n" not in told


def test_an_error_that_was_never_raised_has_no_place() -> None:
    assert where_raised(ValueError("x")) == "internal error: ValueError; please report it"
    assert where_raised(None) == "internal error: NoneType; please report it"
