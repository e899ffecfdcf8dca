# SPDX-License-Identifier: Apache-2.0
"""Tests that run in a dom0: bed/xen boots one for them (`make test-xen`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from tests.xen.story import Story

RESULTS = Path("/run/results")  # bed/xen brings out the logs that are there


def pytest_configure(config: pytest.Config) -> None:
    # libvirt prints every error on stderr unless told otherwise; we raise them.
    libvirt.registerErrorHandler(lambda *_: None, None)


@pytest.fixture(scope="session")
def story() -> Iterator[Story]:
    """A daemon and three domUs, for all tests: each boot of one takes an emulated computer half a minute."""
    with Story(RESULTS) as made:
        yield made
