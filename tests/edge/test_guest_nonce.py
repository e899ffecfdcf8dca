# SPDX-License-Identifier: Apache-2.0
"""Names for sessions, also where the kernel is not seeded yet."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from netrng_guest import nonce

GUEST = Path(__file__).parents[2] / "guest"


def test_eight_bytes_that_differ() -> None:
    found = {nonce.new_nonce() for _ in range(1000)}
    assert len(found) == 1000
    assert {len(name) for name in found} == {8}


@pytest.mark.parametrize("error", [BlockingIOError(), OSError(38, "no such call"), AttributeError()])
def test_without_a_seeded_kernel(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def unseeded(size: int, flags: int = 0) -> bytes:
        assert flags == os.GRND_NONBLOCK, "this would wait for the seed that it is to fetch"
        raise error

    monkeypatch.setattr(os, "getrandom", unseeded)
    monkeypatch.setattr(os, "urandom", lambda size: pytest.fail("os.urandom waits for a seeded kernel"))
    found = {nonce.new_nonce() for _ in range(1000)}
    assert len(found) == 1000
    assert {len(name) for name in found} == {8}


def test_where_fips_mode_forbids_other_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise ValueError("disabled for FIPS")

    for name in ("blake2b", "blake2s", "md5"):
        monkeypatch.setattr(hashlib, name, forbidden)
    assert len(nonce._nonce_of_this_moment()) == 8


def test_two_boots_differ_though_their_clocks_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(time, "time", lambda: 1.0)
    monkeypatch.setattr(time, "monotonic", lambda: 2.0)
    found = set()
    for boot in ("a", "b"):
        monkeypatch.setattr(nonce, "_count", 0)
        (tmp_path / "boot_id").write_text(boot)
        monkeypatch.setattr(nonce, "BOOT_ID", str(tmp_path / "boot_id"))
        found.add(nonce._nonce_of_this_moment())
    monkeypatch.setattr(nonce, "_count", 0)
    monkeypatch.setattr(nonce, "BOOT_ID", str(tmp_path / "absent"))
    found.add(nonce._nonce_of_this_moment())
    assert len(found) == 3


def test_no_module_that_waits_for_random_bytes_is_loaded() -> None:
    text = (
        "import sys, netrng_guest.main;"
        "print([name for name in ('random', 'secrets', 'uuid', 'tempfile') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", text], cwd=GUEST, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
