# SPDX-License-Identifier: Apache-2.0
"""Tests that run in a dom0: bed/xen boots one for them (`make test-xen`)."""

from __future__ import annotations

from pathlib import Path

import libvirt
import pytest
from tests.xen.story import Story

RESULTS = Path("/run/results")  # bed/xen brings out the logs that are there
_STORY = pytest.StashKey[Story]()
collect_ignore_glob = [] if RESULTS.is_dir() else ["*"]  # elsewhere there are no domUs: `make test-xen`


def pytest_configure(config: pytest.Config) -> None:
    # libvirt prints every error on stderr unless told otherwise; we raise them.
    libvirt.registerErrorHandler(lambda *_: None, None)
    if collect_ignore_glob:
        return
    # Already here: it takes the daemon as long to start as it takes pytest to find the tests.
    story = Story(RESULTS)
    config.add_cleanup(story.__exit__)
    config.stash[_STORY] = story.__enter__()


@pytest.fixture(scope="session")
def story(request: pytest.FixtureRequest) -> Story:
    """A daemon and three domUs, for all tests: each boot of one takes an emulated computer half a minute."""
    made = request.config.stash[_STORY]
    made.wait_until_ready()
    return made
