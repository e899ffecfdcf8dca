# SPDX-License-Identifier: Apache-2.0
"""Real VMs for the tests beside this file: each lasts as long as its test, their libvirtd as the session."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from bed.libvirtd import PrivateLibvirtd
from bed.packages import Artefacts, prepare
from bed.rundir import RunDirectory
from bed.vm import VM

_HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vm: boots real VMs (set by the folder)")
    # libvirt prints every error on stderr unless told otherwise; we raise them.
    libvirt.registerErrorHandler(lambda *_: None, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker("vm")


@pytest.fixture(scope="session")
def bed() -> Artefacts:
    """The kernel and the image that guests boot."""
    return prepare()


@pytest.fixture(scope="session")
def run_directory() -> Iterator[RunDirectory]:
    """The folder of this session, gone at its end."""
    with RunDirectory() as run:
        yield run


@pytest.fixture(scope="session")
def libvirtd(run_directory: RunDirectory) -> Iterator[PrivateLibvirtd]:
    """A private libvirtd for all tests; one that kills it must start it again."""
    with PrivateLibvirtd(run_directory, "a") as host:
        yield host


@pytest.fixture(scope="session")
def other_libvirtd(run_directory: RunDirectory) -> Iterator[PrivateLibvirtd]:
    """A second one, to which VMs can be migrated."""
    with PrivateLibvirtd(run_directory, "b") as host:
        yield host


@pytest.fixture
def boot_vm(bed: Artefacts, libvirtd: PrivateLibvirtd) -> Iterator[Callable[..., VM]]:
    """`boot_vm(name, wait=True, **options of VM)`: a booted guest, destroyed when the test ends."""
    with contextlib.ExitStack() as guests:

        def boot(name: str, *, wait: bool = True, host: PrivateLibvirtd = libvirtd, **options: Any) -> VM:
            guest = VM(host, bed, name, **options)
            guests.callback(guest.close)
            return guest.start(wait=wait)

        yield boot
