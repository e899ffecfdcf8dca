# SPDX-License-Identifier: Apache-2.0
"""Feeding the rngd of Debian's packages, downloaded once, alone and by the whole agent."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from tests.edge.guest_lab import needs_root, needs_strace
from tests.edge.test_guest_main import served
from tests.edge.test_guest_rngd import Feeder

from netrng_guest import variants


def fetched(package: str) -> Path:
    """The rngd of a Debian package, downloaded and unpacked, never installed: it would start a service."""
    cache = Path(__file__).parents[2] / ".cache" / "bed" / "debs"
    binary = cache / package / "usr" / "sbin" / "rngd"
    if not binary.exists():
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            pytest.skip("no apt-get to fetch rngd with")
        from bed.packages import _unpacked, locked

        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache.parent / "lock"):  # another test may be fetching it
            _unpacked(cache, package)
    return binary


REAL = [("rng-tools5", 39), ("rng-tools-debian", 40)]


@pytest.mark.parametrize(("package", "credits_per_block"), REAL)
def test_the_real_ones_are_told_apart(package: str, credits_per_block: int) -> None:
    variant = variants.identify(str(fetched(package)), variants.HELP_S)
    assert variant is not None
    assert variant.kind == package
    assert variant.version[0] == {"rng-tools5": "5", "rng-tools-debian": "2"}[package]


@needs_root
@needs_strace
@pytest.mark.parametrize(("package", "credits_per_block"), REAL)
def test_each_block_is_credited_at_once(tmp_path: Path, package: str, credits_per_block: int) -> None:
    binary = fetched(package)
    wrapper, trace = tmp_path / "rngd", tmp_path / "trace"
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in *--*) exec {binary} "$@";; esac\n'
        f'exec strace -D -f -e trace=ioctl -o {trace} {binary} "$@"\n'
    )
    wrapper.chmod(0o755)
    feeder = Feeder(None, "", wrapper)

    def credited() -> int:
        return trace.read_text().count("ioctl(4, RNDADDENTROPY") if trace.exists() else 0

    try:
        for n in range(1, 4):
            feeder.feed(f"block {n}")
            feeder.until(lambda n=n: credited() >= n * credits_per_block, f"credit for block {n}")  # type: ignore[misc]
            assert credited() == n * credits_per_block, "the block before waits for bytes of the next"
        assert feeder.sink.state == "ok"
    finally:
        feeder.close()


def test_a_real_one_without_permission(tmp_path: Path) -> None:
    # Of root the right to credit is taken, in whatever it executes.
    drop = "setpriv --bounding-set=-sys_admin " if os.geteuid() == 0 else ""
    powerless = tmp_path / "rngd"
    powerless.write_text(f'#!/bin/sh\nexec {drop}{fetched("rng-tools5")} "$@"\n')
    powerless.chmod(0o755)
    feeder = Feeder(None, "", powerless)
    try:
        feeder.feed("a block")
        feeder.until_state("no-permission")
    finally:
        feeder.close()


@needs_root
@needs_strace
@pytest.mark.parametrize(("package", "credits_per_block"), REAL)
def test_a_real_rngd_credits_block_after_block(tmp_path: Path, package: str, credits_per_block: int) -> None:
    binary, trace = fetched(package), tmp_path / "trace"
    strace = shutil.which("strace") or ""
    before = (strace, "-f", "-o", str(trace), "-e", "trace=ioctl")
    with served(tmp_path, "--rate", "2500", before=before, path=str(binary.parent)) as (process, host):

        def credited() -> int:
            lines = trace.read_text().splitlines() if trace.exists() else []
            return sum("ioctl(4, RNDADDENTROPY, {entropy_count=512" in line for line in lines)

        host.until(lambda: credited() >= 3 * credits_per_block, "three blocks credited")
        host.until(lambda: host.status.get("sink_state") == "ok", "ok")
        host.until(lambda: host.session.acked >= 64 + 8 + 3 * 2500, "three blocks acknowledged")
        told = [int(line.split()[0]) for line in trace.read_text().splitlines()]
        agent, pids = told[0], set(told)  # the agent's is not the least where numbers have begun anew
        os.kill(agent, signal.SIGTERM)
        host.until(lambda: process.poll() is not None, "the end")
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
