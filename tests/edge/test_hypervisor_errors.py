# SPDX-License-Identifier: Apache-2.0
"""libvirt's errors, produced by libvirt itself, become one line of the right kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import libvirt
import pytest

from netrng_hostd.hypervisor import (
    DeniedError,
    HypervisorError,
    NoDomainError,
    UnreachableError,
    UnsupportedError,
)
from netrng_hostd.hypervisor.errors import one_line, translated

pytestmark = pytest.mark.usefixtures("libvirt_events")


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda c: c.lookupByName("nobody"), NoDomainError),
        (lambda c: c.lookupByName("test").suspend(), DeniedError),
        (lambda c: c.setKeepAlive(5, 3), UnsupportedError),
        (lambda c: c.listAllDomains(1 << 30), HypervisorError),
        (lambda c: libvirt.open("qemu+unix:///session?socket=/no/such/socket"), UnreachableError),
    ],
)
def test_each_kind(call: Callable[[Any], object], kind: type[HypervisorError]) -> None:
    connection = libvirt.openReadOnly("test:///default")
    try:
        with pytest.raises(HypervisorError) as caught, translated("test:///default", "do something"):
            call(connection)
    finally:
        connection.close()
    assert type(caught.value) is kind
    assert str(caught.value).startswith("test:///default: cannot do something: ")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, libvirt.libvirtError)


def test_a_text_of_several_lines_and_any_length_becomes_one_line() -> None:
    assert one_line("a\nb\x1b[31m\t c") == "a b [31m c"
    assert len(one_line("x" * 10_000)) == 500
