# SPDX-License-Identifier: Apache-2.0
"""From what discovery says to channels, with protocol ends in the place of VMs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.edge.qemu import Qemu
from tests.edge.rig import Guest, until
from tests.edge.supplied import SOURCE, delivered, make_supply

from netrng_hostd.channels.budget import INBOUND_DEPTH, PARKED
from netrng_hostd.channels.channel import Channel
from netrng_hostd.config import AdmissionConfig, ChannelConfig, ServeConfig
from netrng_hostd.core.quota import Quota, QuotaRule
from netrng_hostd.core.scheduler import Scheduler
from netrng_hostd.dispatch import Dispatcher
from netrng_hostd.hypervisor.domain_xml import LiveChannel, LiveDomain, QuotaElement
from netrng_hostd.roster import NOT_YET, Candidate, Roster, static_uuid

UUID = "8b1fdb5e-0000-4000-8000-000000000001"
URI = "test:///one"


PATHLESS = LiveDomain("vm", UUID, URI, 1, LiveChannel("virtio", None, "bind", None))


def domain(
    path: Path | None, name: str = "vm", uuid: str = UUID, uri: str = URI, mode: str = "bind"
) -> LiveDomain:
    channel = None if path is None else LiveChannel("virtio", str(path), mode, None)
    return LiveDomain(name, uuid, uri, 1, channel)


@contextlib.asynccontextmanager
async def rosters(
    max_domains: int = 16,
    *rules: QuotaRule,
    trust_metadata: bool = True,
    policy: str = "best-effort",
    capacity: int | None = 1_000_000,
) -> AsyncIterator[tuple[Roster, Dispatcher]]:
    dispatcher = Dispatcher(make_supply(), Scheduler(512))
    admission = AdmissionConfig(policy=policy, max_domains=max_domains)
    roster = Roster(dispatcher, rules, admission, trust_metadata)
    roster.promises.learn(capacity)
    try:
        yield roster, dispatcher
    finally:
        await roster.close()
        dispatcher.stop()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    made = Guest(tmp_path / "vm.sock")
    yield made
    made.close()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario(), debug=True)


def test_a_domain_comes_is_served_and_goes(tmp_path: Path, guest: Guest) -> None:
    async def scenario() -> None:
        async with rosters() as (roster, dispatcher):
            roster.appeared(domain(tmp_path / "vm.sock"), None)
            (entry,) = roster.entries
            await until(lambda: entry.channel.state == "open")
            roster.vanished(domain(tmp_path / "vm.sock"))
            assert not roster.entries
            await until(lambda: guest.conn is None)
            dispatcher.check()

    run(scenario)


def test_a_channel_that_is_attached_detached_or_moved_is_followed(tmp_path: Path, guest: Guest) -> None:
    async def scenario() -> None:
        async with rosters() as (roster, _):
            bare, there = domain(None), domain(tmp_path / "vm.sock")
            roster.appeared(bare, None)
            assert list(roster.without_channel.values()) == ["vm"]
            assert not roster.entries
            roster.changed(bare, there, None)
            assert not roster.without_channel
            await until(lambda: roster.entries[0].channel.state == "open")
            first = roster.entries[0].channel
            roster.changed(there, there, None)  # nothing that matters to the channel
            assert roster.entries[0].channel is first
            elsewhere = domain(tmp_path / "elsewhere.sock")
            roster.changed(there, elsewhere, None)
            assert roster.entries[0].candidate.path == str(tmp_path / "elsewhere.sock")
            roster.changed(elsewhere, bare, None)
            assert not roster.entries

    run(scenario)


def test_only_where_bytes_may_lie_from_before_is_more_read_at_first(tmp_path: Path) -> None:
    """On Xen, and at a [[channel]], which may be Xen's; not on a virtio-serial port."""

    async def scenario() -> None:
        async with rosters() as (roster, _):
            for kind in ("virtio", "xen"):
                channel = LiveChannel(kind, str(tmp_path / kind), "bind", None)
                roster.appeared(LiveDomain(kind, f"uuid-{kind}", URI, 1, channel), None)
            roster.add_static(ChannelConfig("static", str(tmp_path / "static")))
            allowed = {
                entry.candidate.kind: entry.channel._budget._level
                for entry in roster.entries
                if isinstance(entry.channel, Channel)
            }
            deep = INBOUND_DEPTH + PARKED
            assert allowed == {"virtio": INBOUND_DEPTH, "xen": deep, "static": deep}

    run(scenario)


def test_one_uuid_on_two_connections_has_one_bucket(tmp_path: Path, guest: Guest) -> None:
    """As during a migration between two hypervisors that one daemon watches."""

    async def scenario() -> None:
        async with rosters() as (roster, dispatcher):
            here, there = domain(tmp_path / "vm.sock"), domain(tmp_path / "other.sock", uri="test:///two")
            roster.appeared(here, None)
            roster.appeared(there, None)
            assert len(roster.entries) == 2
            await until(lambda: any(entry.channel.state == "open" for entry in roster.entries))
            assert list(dispatcher._channels) == [UUID]
            roster.vanished(here)
            other = Guest(tmp_path / "other.sock")
            try:
                await until(lambda: roster.entries[0].channel.state == "open")
            finally:
                other.close()

    run(scenario)


def test_clones_on_two_connections_share_what_is_their_uuids(tmp_path: Path) -> None:
    async def scenario() -> None:
        clones = [Guest(tmp_path / name) for name in ("one.sock", "two.sock")]
        try:
            async with rosters() as (roster, dispatcher):
                roster.appeared(domain(tmp_path / "one.sock", uri="test:///one"), None)
                roster.appeared(domain(tmp_path / "two.sock", uri="test:///two"), None)
                await until(lambda: all(any(entry.channel.wanted) for entry in roster.entries))
                dispatcher.supply.deliver(SOURCE, delivered(bytes(range(256)) * 16))
                await until(lambda: sum(len(clone.taken) for clone in clones) >= 3072)
                assert dispatcher.seeds == {UUID: 2}
                assert all(len(clone.taken) >= 1024 for clone in clones)
                dispatcher.check()
        finally:
            for clone in clones:
                clone.close()

    run(scenario)


def test_more_domains_than_admitted_are_refused_once_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with rosters(1) as (roster, _):
            roster.appeared(domain(tmp_path / "a", "a"), None)
            for _ in range(3):
                roster.appeared(domain(tmp_path / "b", "b", uuid=UUID[:-1] + "2"), None)
            assert [entry.candidate.name for entry in roster.entries] == ["a"]
            roster.vanished(domain(tmp_path / "a", "a"))
            await until(lambda: [entry.candidate.name for entry in roster.entries] == ["b"])  # there is room

    run(scenario)
    assert sum("max_domains" in record.message for record in caplog.records) == 1


def test_why_a_domain_cannot_be_connected(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rosters() as (roster, _):
            roster.appeared(domain(tmp_path / "x", mode="connect"), None)
            (entry,) = roster.entries
            await until(lambda: entry.channel.state == "unreachable")
            assert "mode='bind'" in entry.channel.detail
            roster.changed(domain(tmp_path / "x", mode="connect"), PATHLESS, None)
            (entry,) = roster.entries
            await until(lambda: entry.channel.state == "unreachable")
            assert "libvirt shows no socket" in entry.channel.detail

    run(scenario)


@pytest.mark.parametrize("kind", ["virtio", "xen"])
def test_who_says_connect_is_not_connected_to_whoever_listens(
    tmp_path: Path, guest: Guest, kind: str
) -> None:
    path = str(tmp_path / "vm.sock")

    async def scenario() -> None:
        async with rosters() as (roster, _):
            said = LiveDomain("vm", UUID, URI, 1, LiveChannel(kind, path, "connect", None))
            roster.appeared(said, None)
            await until(lambda: roster.entries[0].channel.state == "unreachable")
            assert "of vm has <source mode='connect'>; netrng needs" in roster.entries[0].channel.detail
            roster.changed(said, LiveDomain("vm", UUID, URI, 1, LiveChannel(kind, path, "bind", None)), None)
            await until(lambda: roster.entries[0].channel.state == "open")

    run(scenario)


def test_a_stream_is_opened_where_the_configuration_says_so(tmp_path: Path, guest: Guest) -> None:
    async def scenario() -> None:
        opened: list[str] = []

        async def open_stream(wanted: LiveDomain) -> socket.socket:
            opened.append(wanted.uuid)
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(tmp_path / "vm.sock"))
            return sock

        async with rosters() as (roster, _):
            roster.appeared(PATHLESS, open_stream)
            await until(lambda: roster.entries[0].channel.state == "open")
            assert opened == [UUID]

    run(scenario)


def test_static_sockets_and_new_rules(tmp_path: Path, guest: Guest) -> None:
    async def scenario() -> None:
        async with rosters() as (roster, _):
            roster.add_static(ChannelConfig("vm", str(tmp_path / "vm.sock")))
            (entry,) = roster.entries
            found = entry.candidate
            assert (found.kind, found.uuid, found.uri) == ("static", static_uuid("vm"), "")
            assert quota_of(roster).weight == 100
            await until(lambda: entry.channel.state == "open")
            roster.use([QuotaRule("all", ("*",), weight=7)], AdmissionConfig())
            assert quota_of(roster).weight == 7
            assert entry.channel.state == "open"
            roster.remove_static("vm")
            assert not roster.entries

    run(scenario)


def with_quota(domain: LiveDomain, **attributes: str) -> LiveDomain:
    return dataclasses.replace(domain, quota=QuotaElement(tuple(attributes.items())))


def quota_of(roster: Roster) -> Quota:
    """That of the first domain that is served."""
    return roster.holding(roster.entries[0].candidate).quota


def in_force(dispatcher: Dispatcher, uuid: str = UUID) -> Quota:
    return dispatcher.scheduler._domains[uuid].quota


def test_metadata_counts_and_its_change_drops_no_session(tmp_path: Path, guest: Guest) -> None:
    rule = QuotaRule("all", ("*",), weight=7, burst=1000, max_weight=500)

    async def scenario() -> None:
        async with rosters(16, rule) as (roster, dispatcher):
            plain = domain(tmp_path / "vm.sock")
            before = with_quota(plain, reservation="100")
            roster.appeared(before, None)
            (entry,) = roster.entries
            assert quota_of(roster) == Quota("metadata", 100, 7, None, 1000)
            await until(lambda: in_force(dispatcher) == quota_of(roster))
            await until(lambda: any(entry.channel.wanted))
            dispatcher.supply.deliver(SOURCE, delivered(bytes(range(256)) * 16))
            await until(lambda: len(guest.taken) >= 512)
            after = with_quota(plain, reservation="200", weight="900")
            roster.changed(before, after, None)
            assert quota_of(roster) == Quota("metadata", 200, 500, None, 1000)
            assert in_force(dispatcher) == Quota("metadata", 100, 500, None, 1000)
            await until(lambda: in_force(dispatcher) == quota_of(roster))
            roster.use([QuotaRule("others", ("*",), max_weight=300)], AdmissionConfig())
            assert quota_of(roster) == in_force(dispatcher) == Quota("metadata", 200, 300, None, 4096)
            roster.changed(after, plain, None)
            assert quota_of(roster) == in_force(dispatcher) == Quota("others")
            assert roster.entries == [entry]
            await until(lambda: len(guest.taken) >= 4096 - 512)
            assert entry.channel.state == "open"
            assert len(guest.sessions) == guest.connections == 1
            assert dispatcher.ledger.domain(UUID).lost == 0
            dispatcher.check()

    run(scenario)


def test_malformed_metadata_is_said_once_a_change_and_the_files_quota_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with rosters(16, QuotaRule("all", ("*",), weight=7)) as (roster, dispatcher):
            typo = with_quota(domain(tmp_path / "vm.sock"), wieght="3")
            roster.appeared(typo, None)
            (entry,) = roster.entries
            assert quota_of(roster) == in_force(dispatcher) == Quota("all", 0, 7)
            assert entry.candidate.metadata.detail == (
                "quota in its metadata ignored: unknown attribute 'wieght'; "
                "allowed: reservation, weight, limit, burst; the file's is used"
            )
            roster.changed(typo, typo, None)
            roster.use([QuotaRule("all", ("*",), weight=8)], AdmissionConfig())
            assert [record.getMessage() for record in caplog.records] == [
                f"vm: {entry.candidate.metadata.detail}"
            ]
            again = with_quota(typo, weight="0")
            roster.changed(typo, again, None)
            assert "weight '0'" in entry.candidate.metadata.detail
            roster.changed(again, with_quota(typo, weight="9"), None)
            assert quota_of(roster) == Quota("metadata", 0, 9)
            assert entry.candidate.metadata.detail == ""
            assert len(caplog.records) == 2

    with caplog.at_level(logging.WARNING, "netrng.roster"):
        run(scenario)


def test_metadata_that_is_not_trusted_is_not_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with rosters(trust_metadata=False) as (roster, _):
            before, after = (with_quota(domain(tmp_path / "x"), weight=weight) for weight in ("9", "none"))
            roster.appeared(before, None)
            roster.changed(before, after, None)
            (entry,) = roster.entries
            assert (quota_of(roster), entry.candidate.metadata.detail) == (Quota(), "")

    with caplog.at_level(logging.WARNING, "netrng.roster"):
        run(scenario)
    assert not any(record.name.startswith("netrng") for record in caplog.records)


def test_of_two_entries_of_a_uuid_the_newest_ones_metadata_decides(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rosters() as (roster, dispatcher):

            def weights() -> set[int]:
                return {quota_of(roster).weight, in_force(dispatcher).weight}

            here = with_quota(domain(tmp_path / "here"), weight="2")
            there = with_quota(domain(tmp_path / "there", uri="test:///two"), weight="3")
            roster.appeared(here, None)
            assert weights() == {2}
            roster.appeared(there, None)
            assert weights() == {3}
            changed = with_quota(here, weight="4")
            roster.changed(here, changed, None)
            assert weights() == {3}
            roster.use([], AdmissionConfig())
            assert weights() == {3}
            roster.vanished(there)  # the migration failed
            assert weights() == {4}
            roster.appeared(there, None)
            roster.vanished(changed)
            assert weights() == {3}

    run(scenario)


def test_a_domain_that_is_admitted_later_has_its_metadata_still(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rosters(1) as (roster, _):
            first, later = domain(tmp_path / "a", "a"), domain(tmp_path / "b", "b", uuid=UUID[:-1] + "2")
            roster.appeared(first, None)
            typo = with_quota(later, wieght="9")
            roster.appeared(typo, None)
            roster.changed(typo, with_quota(later, weight="9"), None)
            await settled(roster)  # no decision is due but for the room that there is now
            roster.vanished(first)
            await until(lambda: roster.entries)
            assert quota_of(roster).weight == 9

    run(scenario)


OTHER = UUID[:-1] + "2"
RESERVED = QuotaRule("reserved", ("*",), reservation=6_000)


def states(roster: Roster) -> dict[str, tuple[str, int]]:
    """Of all that are known, served or not: the verdict, and the reservation in force."""
    known = [entry.candidate for entry in roster.entries]
    known += [refusal.candidate for refusal in roster.refusals]
    held = {candidate.name: roster.holding(candidate) for candidate in known}
    return {name: (each.verdict.state, each.in_force.reservation) for name, each in held.items()}


async def settled(roster: Roster) -> None:
    """Until no decision is due."""
    await until(lambda: roster.promises._due is None)


def test_a_reservation_that_does_not_fit_is_refused_said_once_and_promised_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with rosters(16, RESERVED, capacity=10_000) as (roster, dispatcher):
            first, second = domain(tmp_path / "a", "a"), domain(tmp_path / "b", "b", uuid=OTHER)
            roster.appeared(second, None)
            roster.appeared(first, None)
            await until(lambda: states(roster) == {"a": ("promised", 6_000), "b": ("refused", 0)})
            assert (in_force(dispatcher).reservation, in_force(dispatcher, OTHER).reservation) == (6_000, 0)
            assert len(roster.entries) == 2
            roster.promises.learn(9_900)
            roster.use([dataclasses.replace(RESERVED, weight=7)], AdmissionConfig())
            await settled(roster)
            assert in_force(dispatcher, OTHER) == Quota("reserved", 0, 7)
            roster.vanished(first)
            await until(lambda: in_force(dispatcher, OTHER).reservation == 6_000)

    with caplog.at_level(logging.INFO, "netrng.admission"):
        run(scenario)
    assert [record.getMessage() for record in caplog.records if record.name == "netrng.admission"] == [
        "b: its reservation of 6kB/s is refused: of 9kB/s, 6kB/s are promised already",
        "b: its reservation of 6kB/s is promised now",
    ]


def test_policy_refuse_serves_nobody_whose_reservation_does_not_fit(
    tmp_path: Path, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with rosters(16, RESERVED, policy="refuse", capacity=None) as (roster, dispatcher):
            first, second = domain(tmp_path / "a", "a"), domain(tmp_path / "vm.sock", "b", uuid=OTHER)
            roster.appeared(second, None)
            roster.appeared(first, None)
            assert not roster.entries
            assert [refusal.why for refusal in roster.refusals] == [NOT_YET, NOT_YET]
            roster.promises.learn(10_000)
            await until(lambda: states(roster) == {"a": ("promised", 6_000), "b": ("refused", 0)})
            assert [entry.candidate.name for entry in roster.entries] == ["a"]
            roster.promises.learn(20_000)
            await until(lambda: len(roster.entries) == 2 and roster.entries[1].channel.state == "open")
            assert in_force(dispatcher, OTHER).reservation == 6_000
            roster.changed(second, with_quota(second, reservation="30kB/s"), None)
            await until(lambda: states(roster)["b"] == ("refused", 6_000))  # it keeps what it had
            assert len(roster.entries) == 2
            assert guest.connections == 1

    run(scenario)
    lines = [record.getMessage() for record in caplog.records if record.name == "netrng.roster"]
    why = 'its reservation does not fit the source, and admission.policy is "refuse"'
    assert lines == [f"b: not served: {why}"]


def test_reservations_shrink_in_proportion_when_the_source_gives_less(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        rule = QuotaRule("r", ("*",), reservation=4_000)
        async with rosters(16, rule, capacity=10_000) as (roster, dispatcher):
            roster.appeared(domain(tmp_path / "a", "a"), None)
            roster.appeared(domain(tmp_path / "b", "b", uuid=OTHER), None)
            await until(lambda: in_force(dispatcher, OTHER).reservation == 4_000)
            roster.promises.learn(4_000)
            await until(lambda: states(roster) == {"a": ("shrunk", 1_800), "b": ("shrunk", 1_800)})
            assert in_force(dispatcher).reservation == in_force(dispatcher, OTHER).reservation == 1_800
            roster.promises.learn(3_900)
            await until(lambda: in_force(dispatcher).reservation == 1_755)
            roster.promises.learn(10_000)
            await until(lambda: states(roster) == {"a": ("promised", 4_000), "b": ("promised", 4_000)})

    with caplog.at_level(logging.INFO, "netrng.admission"):
        run(scenario)
    assert [record.getMessage() for record in caplog.records if record.name == "netrng.admission"] == [
        "the source gives 4kB/s, less than the 8kB/s that are promised: every reservation holds to 45 %",
        "the source gives 10kB/s: every reservation holds again",
    ]


def test_a_withdrawn_reservation_is_promised_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rosters(16, RESERVED) as (roster, _):
            before = domain(tmp_path / "a", "a")
            roster.appeared(before, None)
            await until(lambda: states(roster) == {"a": ("promised", 6_000)})
            roster.changed(before, with_quota(before, reservation="0"), None)
            await settled(roster)
            assert states(roster) == {"a": ("none", 0)}

    run(scenario)


def test_who_is_kept_out_by_max_domains_is_promised_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rosters(1, RESERVED, capacity=10_000) as (roster, _):
            first = domain(tmp_path / "z", "z")
            roster.appeared(first, None)
            roster.appeared(domain(tmp_path / "a", "a", uuid=OTHER), None)
            await until(lambda: states(roster) == {"z": ("promised", 6_000), "a": ("pending", 0)})
            roster.changed(first, with_quota(first, reservation="9kB/s"), None)
            await until(lambda: states(roster) == {"z": ("promised", 9_000), "a": ("pending", 0)})
            roster.vanished(first)
            await until(lambda: states(roster) == {"a": ("promised", 6_000)})

    run(scenario)


def test_a_channel_that_moves_keeps_its_promise_and_is_served_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with rosters(16, RESERVED, policy="refuse", capacity=10_000) as (roster, dispatcher):
            before = domain(tmp_path / "a", "a")
            roster.appeared(before, None)
            refused = domain(tmp_path / "b", "b", uuid=OTHER)
            roster.appeared(refused, None)
            await until(lambda: states(roster) == {"a": ("promised", 6_000), "b": ("refused", 0)})
            after = domain(tmp_path / "elsewhere", "a")
            roster.changed(before, after, None)
            assert roster.entries[0].candidate.path == str(tmp_path / "elsewhere")
            assert in_force(dispatcher).reservation == 6_000
            roster.changed(refused, domain(tmp_path / "there", "b", uuid=OTHER), None)
            await settled(roster)
            assert states(roster) == {"a": ("promised", 6_000), "b": ("refused", 0)}

    run(scenario)
    assert sum("b: " in record.getMessage() for record in caplog.records) == 2, "refused, and not served"


def test_many_that_are_refused_leave_at_little_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    why_not = Roster._why_not

    def counted(roster: Roster, candidate: Candidate) -> str:
        nonlocal looks
        looks += 1
        return why_not(roster, candidate)

    monkeypatch.setattr(Roster, "_why_not", counted)

    async def scenario() -> None:
        async with rosters(1) as (roster, _):
            many = [domain(tmp_path / "x", f"vm{n}", uuid=f"{UUID[:-4]}{n:04}") for n in range(300)]
            for each in many:
                roster.appeared(each, None)
            for each in many:
                roster.vanished(each)
            await settled(roster)
            assert looks < 3 * len(many)

    run(scenario)


def test_a_raised_max_domains_serves_those_that_waited(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rosters(1) as (roster, _):
            roster.appeared(domain(tmp_path / "a", "a"), None)
            roster.appeared(domain(tmp_path / "b", "b", uuid=OTHER), None)
            assert [refusal.candidate.name for refusal in roster.refusals] == ["b"]
            roster.use([], AdmissionConfig(max_domains=2))
            await until(lambda: len(roster.entries) == 2)
            assert not roster.refusals
            roster.use([], AdmissionConfig(max_domains=1))
            await settled(roster)
            roster.changed(domain(tmp_path / "a", "a"), domain(tmp_path / "elsewhere", "a"), None)
            assert len(roster.entries) == 2, "who is served stays so, also where its channel moves"

    run(scenario)


def test_who_is_served_keeps_its_promise_where_its_channel_moves_beyond_max_domains(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rosters(2, RESERVED, capacity=20_000) as (roster, _):
            before = domain(tmp_path / "a", "a")
            roster.appeared(before, None)
            roster.appeared(domain(tmp_path / "b", "b", uuid=OTHER), None)
            both = {"a": ("promised", 6_000), "b": ("promised", 6_000)}
            await until(lambda: states(roster) == both)
            roster.use([RESERVED], AdmissionConfig(max_domains=1))
            roster.changed(before, domain(tmp_path / "elsewhere", "a"), None)
            await settled(roster)
            assert states(roster) == both

    run(scenario)


def test_an_internal_error_is_one_line_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with rosters() as (roster, _):

            async def broken(wanted: LiveDomain) -> socket.socket:
                raise RuntimeError("secret bytes")

            roster.appeared(PATHLESS, broken)
            await until(lambda: any("internal error" in r.message for r in caplog.records))

    with caplog.at_level(logging.INFO):
        run(scenario)
    assert "secret" not in caplog.text


# Without an agent


RNG = "rng.sock"


def with_rng(domain: LiveDomain, path: Path) -> LiveDomain:
    return dataclasses.replace(domain, rng=LiveChannel("virtio-rng", str(path), "bind", None))


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Qemu]:
    made = Qemu(tmp_path / RNG)
    yield made
    made.close()


def kinds(roster: Roster) -> list[str]:
    return [entry.candidate.kind for entry in roster.entries]


def test_an_agent_and_a_virtio_rng_of_one_domain_share_its_bucket(
    tmp_path: Path, guest: Guest, qemu: Qemu
) -> None:
    async def scenario() -> None:
        async with rosters(1, QuotaRule("tight", ("*",), limit=1000, burst=2000)) as (roster, dispatcher):
            roster.appeared(with_rng(domain(tmp_path / "vm.sock"), tmp_path / RNG), None)
            assert kinds(roster) == ["virtio", "virtio-rng"]
            assert not roster.without_channel
            await until(lambda: all(any(entry.channel.wanted) for entry in roster.entries))
            qemu.ask(b"\x02\xff" * 100)
            began_ns = time.monotonic_ns()
            dispatcher.supply.deliver(SOURCE, delivered(bytes(range(256)) * 100))
            await until(lambda: len(qemu.taken) > 500 and len(guest.taken) > 500)
            elapsed_s = (time.monotonic_ns() - began_ns) / 1e9
            agent, rng = (dispatcher.ledger.domain(name) for name in (UUID, f"{UUID} by EGD"))
            assert agent.sent + rng.sent <= 2000 + 1000 * elapsed_s + 512
            assert (rng.acked, rng.lost, rng.in_flight) == (0, 0, 0)
            assert rng.sent == rng.unconfirmed >= len(qemu.taken)
            assert agent.unconfirmed == 0
            assert dispatcher.seeds == {UUID: 1}, "EGD has none"
            dispatcher.check()

    run(scenario)


def test_the_agents_seed_is_not_spent_by_the_virtio_rng_that_was_there_first(
    tmp_path: Path, qemu: Qemu
) -> None:
    async def scenario() -> None:
        async with rosters() as (roster, dispatcher):
            bare = with_rng(domain(None), tmp_path / RNG)
            roster.appeared(bare, None)
            dispatcher.supply.deliver(SOURCE, delivered(bytes(range(256)) * 8))
            await until(lambda: len(qemu.taken) == 64)
            qemu.ask(b"\x02\xff" * 1000)  # more than there is: all of the rest
            await until(lambda: dispatcher.available() == 0)
            agent = Guest(tmp_path / "vm.sock")
            try:
                roster.changed(bare, with_rng(domain(tmp_path / "vm.sock"), tmp_path / RNG), None)
                await until(lambda: len(agent.taken) >= 64)  # from the seed reserve
                assert dispatcher.seeds == {UUID: 1}
            finally:
                agent.close()

    run(scenario)


def test_a_virtio_rng_comes_and_goes_and_the_agent_stays(tmp_path: Path, guest: Guest, qemu: Qemu) -> None:
    async def scenario() -> None:
        async with rosters() as (roster, dispatcher):
            plain = domain(tmp_path / "vm.sock")
            both = with_rng(plain, tmp_path / RNG)
            roster.appeared(plain, None)
            (agent,) = roster.entries
            roster.changed(plain, both, None)
            assert kinds(roster) == ["virtio", "virtio-rng"]
            await until(lambda: [entry.channel.state for entry in roster.entries] == ["open"] * 2)
            elsewhere = with_rng(plain, tmp_path / "elsewhere")
            roster.changed(both, elsewhere, None)
            assert [entry.candidate.path for entry in roster.entries] == [
                str(tmp_path / "vm.sock"), str(tmp_path / "elsewhere"),
            ]  # fmt: skip
            quota = with_quota(elsewhere, weight="9")
            roster.changed(elsewhere, quota, None)
            assert quota_of(roster).weight == in_force(dispatcher).weight == 9
            roster.renewed(quota)
            roster.changed(quota, with_quota(plain, weight="9"), None)
            assert roster.entries == [agent]
            assert quota_of(roster).weight == 9
            roster.changed(plain, with_rng(domain(None), tmp_path / RNG), None)
            assert kinds(roster) == ["virtio-rng"]
            roster.vanished(both)
            assert not roster.entries

    run(scenario)


def test_no_stream_leads_to_a_virtio_rng(tmp_path: Path) -> None:
    async def open_stream(_: LiveDomain) -> socket.socket:
        raise AssertionError("no stream leads to a virtio-rng")

    async def scenario() -> None:
        async with rosters() as (roster, _):
            roster.appeared(with_rng(domain(None), tmp_path / RNG), open_stream)
            assert not roster.entries
            assert list(roster.without_channel.values()) == ["vm"]

    run(scenario)


def test_a_domains_second_channel_takes_no_others_place(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rosters(1) as (roster, _):
            roster.appeared(with_rng(domain(tmp_path / "a", "a"), tmp_path / RNG), None)
            assert kinds(roster) == ["virtio", "virtio-rng"]
            roster.appeared(domain(tmp_path / "b", "b", uuid=UUID[:-1] + "2"), None)
            assert [refusal.candidate.name for refusal in roster.refusals] == ["b"]
            roster.changed(
                with_rng(domain(tmp_path / "a", "a"), tmp_path / RNG), domain(tmp_path / "a", "a"), None
            )
            assert [refusal.candidate.name for refusal in roster.refusals] == ["b"]
            roster.vanished(domain(tmp_path / "a", "a"))
            await until(lambda: [entry.candidate.name for entry in roster.entries] == ["b"])

    run(scenario)


def test_a_serve_has_its_own_quota_and_a_domain_of_that_name_has_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with rosters(16, QuotaRule("rack", ("serve:rack",), weight=7)) as (roster, _):
            roster.add_serve(ServeConfig("rack", str(tmp_path / "rack.egd")))
            roster.appeared(domain(tmp_path / "vm.sock", "serve:rack"), None)
            served, named_so = roster.entries
            assert (served.candidate.name, served.candidate.kind) == ("serve:rack", "serve")
            assert roster.holding(served.candidate).quota.weight == 7
            assert roster.holding(named_so.candidate).quota.name == "built-in"
            await until(lambda: served.channel.state == "listening")
            roster.remove_serve("rack")
            assert roster.entries == [named_so]
            await until(lambda: not (tmp_path / "rack.egd").exists())

    run(scenario)
