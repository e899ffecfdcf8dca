# SPDX-License-Identifier: Apache-2.0
"""Quotas of real VMs: shares of a slow source, changed while they run, kept when the VM moves."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import libvirt
import pytest
from bed.libvirtd import PrivateLibvirtd
from bed.vm import VM
from bench.exact import exact_shares
from tests.edge.rig import Hostd, fed_fifo, run_command, wait_for
from tests.streams import stream
from tests.vm.diary import at, hostd_for
from tests.vm.rig import (
    DRAIN,
    SMALL,
    BootVM,
    boot_with_agent,
    hostd_config,
    make_hostd,
    wait_for_acked,
)

from netrng_hostd.core.domain import SEED_REFILL, SEED_SIZE
from netrng_hostd.core.quota import Quota
from netrng_hostd.hypervisor.domain_xml import METADATA_NAMESPACE

SOURCE = 10_000  # bytes per second, at most: a busy machine holds it up
SAMPLE = 128
COUNTED = 25_000  # bytes to all in one interval
# Each may be one sample from its exact share at either end of an interval. A twentieth is for what a busy
# machine does: it holds the source up for a moment, and the reservation's arrears are paid in this interval
# or the next.
ENDS = 2 * SAMPLE
UNEVEN = 0.05


class Interval(NamedTuple):
    """``sent``: bytes to each domain, by name, between two looks at the status; ``seconds`` between them."""

    sent: dict[str, int]
    seconds: Fraction


def count(hostd: Hostd, vm: VM) -> Interval:
    """What each was given in an interval that the machine left in peace, and the second before it as well.

    Shares are of what there is to share: while a busy machine holds the source up, that is not the rate
    that reservations and limits are fractions of. And a daemon that is not let run for a while gives
    afterwards what it owes from then, as bursts allow.
    """

    def look() -> tuple[float, dict[str, int]]:
        status = hostd.status()
        return status["time"], {domain["name"]: domain["bytes_sent"] for domain in status["domains"]}

    looks = [look()]

    def counted() -> Interval | None:
        now, sent = look()
        last, before = looks[-1]
        if now - last < 1:
            return None
        looks.append((now, sent))
        if sum(sent.values()) - sum(before.values()) < (now - last) * SOURCE * 4 / 5:
            del looks[:-1]
        if len(looks) < 3:
            return None
        begun, before = looks[1]
        given = {name: sent[name] - before[name] for name in before}
        return Interval(given, Fraction(now - begun)) if sum(given.values()) >= COUNTED else None

    interval = vm.wait_for(counted, 90, f"{COUNTED} bytes at four fifths of {SOURCE} bytes per second")
    assert interval is not None
    return interval


def assert_shares(hostd: Hostd, vm: VM, quotas: dict[str, Quota]) -> None:
    """From now on everybody gets what is exactly its share."""
    sent, seconds = count(hostd, vm)
    exact = exact_shares(quotas, sum(sent.values()) / seconds)
    due = {name: float(rate * seconds) for name, rate in exact.items()}
    found = {name: (n_bytes, round(due[name])) for name, n_bytes in sent.items()}
    print(json.dumps({"seconds": round(float(seconds), 3), "sent and due": found}))
    for name, n_bytes in sent.items():
        assert abs(n_bytes - due[name]) <= ENDS + UNEVEN * due[name], f"{name} of {found}"


def wait_in_force(hostd: Hostd, quotas: dict[str, Quota], **origins: str) -> None:
    """Until the status shows these quotas, and for those that are named where theirs comes from."""

    def seen() -> bool:
        domains = {domain["name"]: domain for domain in hostd.status()["domains"]}
        shown = {
            name: Quota(
                reservation=one["reservation_effective"], weight=one["weight"],
                limit=one["limit"], burst=one["burst"],
            )
            for name, one in domains.items()
        }  # fmt: skip
        return shown == quotas and all(domains[name]["quota"] == where for name, where in origins.items())

    wait_for(seen, f"{quotas} in force, in {hostd.log_path}", 60)


def sessions(hostd: Hostd) -> dict[str, tuple[object, ...]]:
    """What would tell another session from this one, by name; when it opened comes last."""
    keys = ("state", "seeds", "bytes_lost", "since")
    return {one["name"]: tuple(one[key] for key in keys) for one in hostd.status()["domains"]}


def assert_same_sessions(before: dict[str, tuple[object, ...]], after: dict[str, tuple[object, ...]]) -> None:
    """No session was dropped, no byte lost; when it opened is worked out anew in each answer."""
    assert {name: one[:-1] for name, one in after.items()} == {name: one[:-1] for name, one in before.items()}
    since = {name: one[-1] for name, one in before.items()}
    assert {name: one[-1] for name, one in after.items()} == pytest.approx(since, abs=0.5)


def set_quota(libvirtd: PrivateLibvirtd, name: str, *options: str) -> None:
    done = run_command("quota", name, *options, "--connect", libvirtd.uri)
    assert (done.returncode, done.stderr) == (0, ""), done


def kept_quota(vm: VM) -> str:
    """The quota in the metadata of its persistent definition."""
    element, config = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_CONFIG
    return str(vm.domain.metadata(element, METADATA_NAMESPACE, config))


def rule(name: str, weight: int, *keys: str) -> str:
    return "\n".join([f'[[quota]]\nname = "{name}"\nmatch = ["{name}"]\nweight = {weight}', *keys, ""])


def test_three_vms_get_their_shares_and_a_change_counts_while_they_run(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"

    def config(*rules: str) -> str:
        return f"sample_size = {SAMPLE}\n{hostd_config(libvirtd.uri, fifo, extra=SMALL + ''.join(rules))}"

    light, heavy = rule("light", 100), rule("heavy", 300)
    capped = rule("capped", 300, 'limit = "1.5kB/s"', 'burst = "1KiB"')
    quotas = {
        "light": Quota(weight=100),
        "heavy": Quota(weight=300),
        "capped": Quota(weight=300, limit=1500, burst=1024),
    }
    with fed_fifo(fifo, stream(16_000_000), rate=SOURCE), make_hostd(tmp_path, libvirtd, fifo) as hostd:
        hostd.write(config(light, heavy, capped))
        hostd.start()
        # A window that none of them fills here: each asks all the while, however slow its guest may be.
        asking = f"--window 65536 {DRAIN}"
        guests = {
            name: boot_with_agent(boot_vm, name, trace=False, arguments=asking, wait=False, memory_mib=192)
            for name in quotas
        }
        vm = guests["light"]
        for guest in guests.values():
            wait_for_acked(hostd, guest, 2048, 90)  # then bursts, and what the reservoir held, are spent
        wait_in_force(hostd, quotas, light="light")
        before = sessions(hostd)
        assert_shares(hostd, vm, quotas)

        set_quota(libvirtd, "light", "--reservation", "4kB/s")
        quotas["light"] = Quota(reservation=4000)
        wait_in_force(hostd, quotas, light="metadata")
        wait_for(lambda: hostd.domain("light")["admission"] == "promised", "a promise", 60)
        assert 'reservation="4kB/s"' in kept_quota(vm)
        assert_shares(hostd, vm, quotas)

        hostd.write(config(light, heavy, rule("capped", 300)))
        hostd.send_signal(signal.SIGHUP)
        quotas["capped"] = Quota(weight=300)
        wait_in_force(hostd, quotas, light="metadata", capped="capped")
        assert_shares(hostd, vm, quotas)

        set_quota(libvirtd, "light", "--reset")
        quotas["light"] = Quota()
        wait_in_force(hostd, quotas, light="light")
        with pytest.raises(libvirt.libvirtError, match="metadata"):
            kept_quota(vm)
        # What its reservation put it ahead is two samples and a little more at most: then it waits that long.
        wait_for_acked(hostd, vm, hostd.domain("light")["bytes_acked"] + 4 * SAMPLE)
        assert_shares(hostd, vm, quotas)

        assert_same_sessions(before, sessions(hostd))
        assert hostd.status()["ledger_ok"]
        assert hostd.stop() == 0


LIMIT, BURST = 64, 4096
GRAIN = 32  # bytes in a sample
METADATA = f"<netrng:quota xmlns:netrng='{METADATA_NAMESPACE}' limit='{LIMIT}B/s' burst='4KiB'/>"


def test_a_vm_that_moves_keeps_its_quota_and_its_buckets(
    boot_vm: BootVM, libvirtd: PrivateLibvirtd, other_libvirtd: PrivateLibvirtd, tmp_path: Path
) -> None:
    """Live from one libvirtd to another, and then through a file, when no connection shows it for a while."""
    fifo, image = tmp_path / "fifo", other_libvirtd.folder / "mover.image"
    data = stream(40_000)  # more than is asked for, and no more than the reservoir holds
    quota = Quota(limit=LIMIT, burst=BURST)
    with fed_fifo(fifo, data), hostd_for(tmp_path, [libvirtd, other_libvirtd], fifo) as hostd:
        hostd.config.write_text(f"sample_size = {GRAIN}\n{hostd.config.read_text()}")
        hostd.start()
        # That is all it ever brings: the reservoir shows what was given, in whatever session or account.
        wait_for(lambda: hostd.status()["sources"][0]["bytes_read"] == len(data), "the whole source", 60)
        full = hostd.status()["reservoir"]
        begun = time.monotonic()

        def assert_given() -> None:
            """No more than the limit, the burst and the seed bucket allow since before it was there."""
            left = hostd.status()["reservoir"]
            elapsed = time.monotonic() - begun
            given, seeds = (full[key] - left[key] for key in ("stored", "seed_stored"))
            print(json.dumps({"seconds": round(elapsed, 1), "given": given, "of the seed reserve": seeds}))
            assert BURST < given <= BURST + LIMIT * elapsed + GRAIN
            assert SEED_SIZE <= seeds <= SEED_SIZE + SEED_REFILL * elapsed

        def taken() -> int:
            return int(guest.check("stat -c %s /run/taken"))

        def wait_served(host: PrivateLibvirtd) -> None:
            guest.wait_for(lambda: at(hostd, host.uri).get("state") == "open", 60, "its session there")
            before = taken()
            guest.wait_for(lambda: taken() >= before + 2 * GRAIN, 60, "bytes beyond the seed")

        guest = boot_with_agent(
            boot_vm, "mover", trace=False, memory_mib=192, metadata=METADATA,
            arguments="--sink stdout >/run/taken",
        )  # fmt: skip
        wait_in_force(hostd, {"mover": quota}, mover="metadata")
        wait_for_acked(hostd, guest, BURST + GRAIN)
        assert_given()

        set_quota(libvirtd, "mover", "--weight", "300")
        quota = replace(quota, weight=300)
        guest.migrate(other_libvirtd)
        wait_for(lambda: not at(hostd, libvirtd.uri), "the migrated domain's end where it was", 60)
        wait_served(other_libvirtd)
        wait_in_force(hostd, {"mover": quota}, mover="metadata")
        assert 'weight="300"' in kept_quota(guest)
        assert_given()

        guest.save(image)
        wait_for(lambda: not hostd.status()["domains"], "the saved domain's end", 60)
        guest.restore(image)
        image.unlink()
        wait_served(other_libvirtd)
        wait_in_force(hostd, {"mover": quota}, mover="metadata")
        assert_given()
        assert hostd.status()["ledger_ok"]
        assert hostd.stop() == 0
