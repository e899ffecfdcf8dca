# SPDX-License-Identifier: Apache-2.0
"""The watcher against libvirt's own test driver: real library, real events, no VM."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import pytest
from tests.edge.lab import (
    QUICK,
    UUID_A,
    UUID_B,
    Recorder,
    channel_xml,
    domain_xml,
    fake_hypervisor,
    running,
    until,
)

from netrng_hostd.discovery.inbox import Debounce, Inbox
from netrng_hostd.discovery.watcher import Timing
from netrng_hostd.hypervisor import (
    DeniedError,
    HypervisorError,
    LiveChannel,
    QuotaElement,
    UnreachableError,
    UnsupportedError,
)
from netrng_hostd.hypervisor.connection import _RENEWS, Connection, drives_xen
from netrng_hostd.promises import SETTLE_S

URI = "test:///default"


pytestmark = pytest.mark.usefixtures("libvirt_events")


def test_domains_that_run_already_and_that_start_later_appear() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(URI)
        with fake_hypervisor() as libvirtd:
            libvirtd.createXML(domain_xml("a", UUID_A, channel_xml("/run/a.sock")), 0)
            async with running(watcher):
                await until(lambda: recorder.calls == [("appeared", "a")])
                libvirtd.createXML(domain_xml("b", UUID_B), 0)
                await until(lambda: recorder.calls == [("appeared", "a"), ("appeared", "b")])
                assert recorder.state_names == ["connecting", "connected"]
                a, b = watcher.domains[UUID_A], watcher.domains[UUID_B]
                assert a.channel == LiveChannel("virtio", "/run/a.sock", "bind", None)
                assert (a.uri, a.uuid, a.quota) == (URI, UUID_A, None)
                assert b.channel is None
                assert a.id != b.id

    asyncio.run(scenario(), debug=True)


def test_a_node_file_with_channels_is_read(tmp_path: Path) -> None:
    node = tmp_path / "node.xml"
    node.write_text(f"<node>{domain_xml('a', UUID_A, channel_xml('/run/a.sock'))}</node>")

    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(f"test://{node}")
        async with running(watcher):
            await until(lambda: recorder.calls == [("appeared", "a")])
            assert watcher.domains[UUID_A].channel == LiveChannel("virtio", "/run/a.sock", "bind", None)

    asyncio.run(scenario(), debug=True)


def test_a_domain_that_stops_vanishes_and_a_new_start_is_a_new_domain() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(URI)
        with fake_hypervisor() as libvirtd:
            domain = libvirtd.defineXML(domain_xml("a", UUID_A, channel_xml("/run/1.sock")))
            domain.create()
            async with running(watcher):
                await until(lambda: UUID_A in watcher.domains)
                first = watcher.domains[UUID_A].id
                domain.destroy()
                await until(lambda: recorder.calls[-1] == ("vanished", "a"))
                libvirtd.defineXML(domain_xml("a", UUID_A, channel_xml("/run/2.sock")))
                domain.create()
                await until(lambda: recorder.calls[-1] == ("appeared", "a") and len(recorder.calls) == 3)
                again = watcher.domains[UUID_A]
                assert again.id != first
                assert again.channel is not None
                assert again.channel.path == "/run/2.sock"
            domain.destroy()
            domain.undefine()

    asyncio.run(scenario(), debug=True)


def test_a_restart_within_one_debounce_is_vanished_then_appeared_and_never_renewed() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(URI, timing=QUICK._replace(debounce_s=0.3))
        with fake_hypervisor() as libvirtd:
            domain = libvirtd.createXML(domain_xml("a", UUID_A), 0)
            async with running(watcher):
                await until(lambda: UUID_A in watcher.domains)
                domain.destroy()
                libvirtd.createXML(domain_xml("a", UUID_A), 0)
                await until(lambda: len(recorder.calls) == 3)
                assert recorder.calls == [("appeared", "a"), ("vanished", "a"), ("appeared", "a")]

    asyncio.run(scenario(), debug=True)


@pytest.mark.parametrize("late", [1, 2], ids=["the old end comes late", "the new start comes late"])
def test_a_reboot_of_xen_is_a_new_domain_whatever_comes_first(
    late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id changes in the listing at once; its STARTED comes before the STOPPED of the old id, or after."""
    listing = [1]
    connections: list[Connection] = []
    looked = 0

    def active(connection: Connection) -> list[tuple[str, int]]:
        nonlocal looked
        looked += 1
        connections[:] = [connection]
        return [(UUID_A, number) for number in listing]

    def live_xml(_: Connection, __: str) -> str:
        text = domain_xml("pv", UUID_A, channel_xml("/run/pv.sock").replace("virtio", "xen"))
        return text.replace("<domain type='test'>", f"<domain type='xen' id='{listing[0]}'>")

    monkeypatch.setattr(Connection, "active", active)
    monkeypatch.setattr(Connection, "live_xml", live_xml)

    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(URI)
        async with running(watcher):
            await until(lambda: recorder.calls == [("appeared", "pv")])
            listing[0] = 2
            connections[0]._on_event(UUID_A, 3 - late, False, False)
            await until(lambda: len(recorder.calls) == 3)
            assert watcher.domains[UUID_A].id == 2
            for number in (late, 2):  # at the second listing, all that the first had to tell is told
                before = looked
                connections[0]._on_event(UUID_A, number, False, False)
                await until(lambda before=before: looked > before)  # type: ignore[misc]
            assert UUID_A in watcher.domains
            assert recorder.calls == [("appeared", "pv"), ("vanished", "pv"), ("appeared", "pv")]

    asyncio.run(scenario(), debug=True)


def test_a_resumed_domain_is_renewed_once_and_stays() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(URI)
        with fake_hypervisor() as libvirtd:
            domain = libvirtd.createXML(domain_xml("a", UUID_A), 0)
            async with running(watcher):
                await until(lambda: UUID_A in watcher.domains)
                domain.suspend()
                domain.resume()
                await until(lambda: ("renewed", "a") in recorder.calls)
                libvirtd.createXML(domain_xml("b", UUID_B), 0)
                await until(lambda: UUID_B in watcher.domains)
                assert recorder.calls == [("appeared", "a"), ("renewed", "a"), ("appeared", "b")]

    asyncio.run(scenario(), debug=True)


def test_a_reverted_snapshot_is_renewed_or_a_new_domain() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(URI)
        with fake_hypervisor() as libvirtd:
            domain = libvirtd.createXML(domain_xml("a", UUID_A), 0)
            snapshot = domain.snapshotCreateXML("<domainsnapshot/>", 0)
            async with running(watcher):
                await until(lambda: UUID_A in watcher.domains)
                first = watcher.domains[UUID_A].id
                domain.revertToSnapshot(snapshot, 0)
                now = libvirtd.lookupByName("a").ID()
                await until(lambda: len(recorder.calls) > 1 and UUID_A in watcher.domains)
                await until(lambda: watcher.domains[UUID_A].id == now)
                seen = recorder.calls[1:]
                if now != first:
                    assert seen[:2] == [("vanished", "a"), ("appeared", "a")]
                    del seen[:2]  # its start may be told after it was listed, and renews it then
                assert set(seen) <= {("renewed", "a")}
                assert len(seen) <= 2
                assert seen or now != first
            domain.destroy()

    asyncio.run(scenario(), debug=True)


def test_metadata_that_changes_is_a_change_of_the_domain() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(URI)
        with fake_hypervisor() as libvirtd:
            domain = libvirtd.createXML(domain_xml("a", UUID_A), 0)
            async with running(watcher):
                await until(lambda: UUID_A in watcher.domains)
                old = watcher.domains[UUID_A]
                quota = "<quota weight='300' reservation='1KiB/s'/>"
                domain.setMetadata(2, quota, "netrng", "urn:netrng:1", 1)
                await until(lambda: recorder.calls[-1] == ("changed", "a"))
                assert recorder.old == old
                assert watcher.domains[UUID_A].quota == QuotaElement(
                    (("reservation", "1KiB/s"), ("weight", "300"))
                )

    asyncio.run(scenario(), debug=True)


def test_the_periodic_listing_finds_what_no_event_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netrng_hostd.hypervisor.connection._EVENTS", ())

    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(URI, timing=QUICK._replace(relist_s=0.05))
        with fake_hypervisor() as libvirtd:
            async with running(watcher):
                await until(lambda: watcher.state.state == "connected")
                domain = libvirtd.createXML(domain_xml("a", UUID_A), 0)
                await until(lambda: recorder.calls == [("appeared", "a")])
                domain.setMetadata(2, "<quota weight='7'/>", "netrng", "urn:netrng:1", 1)
                await until(lambda: recorder.calls[-1] == ("changed", "a"))
                domain.destroy()
                await until(lambda: recorder.calls[-1] == ("vanished", "a"))

    asyncio.run(scenario(), debug=True)


def test_only_new_and_touched_domains_have_their_xml_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read = counted_readings(monkeypatch)

    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(URI)
        with fake_hypervisor() as libvirtd:
            libvirtd.createXML(domain_xml("a", UUID_A), 0)
            async with running(watcher):
                await until(lambda: UUID_A in watcher.domains)
                libvirtd.createXML(domain_xml("b", UUID_B), 0)
                await until(lambda: UUID_B in watcher.domains)
                assert read[0] == UUID_A
                assert set(read[1:]) == {UUID_B}  # again where one of its events came late
                assert len(read) <= 3

    asyncio.run(scenario(), debug=True)


def test_a_domain_that_ends_while_it_is_read_was_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    live_xml = Connection.live_xml

    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(URI)
        with fake_hypervisor() as libvirtd:
            domain = libvirtd.createXML(domain_xml("a", UUID_A), 0)

            def ends_first(self: Connection, uuid: str) -> str:
                if uuid == UUID_A:
                    domain.destroy()
                return live_xml(self, uuid)

            monkeypatch.setattr(Connection, "live_xml", ends_first)
            async with running(watcher):
                await until(lambda: watcher.state.state == "connected")
                libvirtd.createXML(domain_xml("b", UUID_B), 0)
                await until(lambda: UUID_B in watcher.domains)
                assert recorder.calls == [("appeared", "b")]
                assert recorder.state_names == ["connecting", "connected"]

    asyncio.run(scenario(), debug=True)


@pytest.mark.parametrize("trouble", ["broken", "denied", "unformattable"])
def test_a_domain_whose_xml_cannot_be_read_is_left_out_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    live_xml = Connection.live_xml

    def broken(self: Connection, uuid: str) -> str:
        if uuid != UUID_A:
            return live_xml(self, uuid)
        if trouble == "denied":
            raise DeniedError(f"{URI}: cannot read the domain's XML: access denied")
        if trouble == "unformattable":
            raise HypervisorError(f"{URI}: cannot read the domain's XML: internal error")
        return "<domain id='1'>"

    monkeypatch.setattr(Connection, "live_xml", broken)
    listings = 0
    active = Connection.active

    def counted(self: Connection) -> list[tuple[str, int]]:
        nonlocal listings
        listings += 1
        return active(self)

    monkeypatch.setattr(Connection, "active", counted)

    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(URI, timing=QUICK._replace(relist_s=0.02))
        with fake_hypervisor() as libvirtd:
            libvirtd.createXML(domain_xml("a", UUID_A), 0)
            libvirtd.createXML(domain_xml("b", UUID_B), 0)
            async with running(watcher):
                await until(lambda: listings > 3)
                assert recorder.calls == [("appeared", "b")]
                assert recorder.state_names == ["connecting", "connected"]

    asyncio.run(scenario(), debug=True)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("netrng")]
    assert len(told) == 1
    assert UUID_A in told[0]
    assert told[0].count(URI) == 1


def test_a_connection_that_breaks_while_a_domain_is_read_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Connection, uuid: str) -> str:
        raise UnreachableError(f"{URI}: cannot read the domain's XML: broken pipe")

    monkeypatch.setattr(Connection, "live_xml", broken)

    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(URI)
        with fake_hypervisor() as libvirtd:
            libvirtd.createXML(domain_xml("a", UUID_A), 0)
            async with running(watcher):
                await until(lambda: watcher.state.state == "down")
                assert "broken pipe" in watcher.state.detail

    asyncio.run(scenario(), debug=True)


def test_all_that_goes_on_from_an_earlier_state_is_renewed_and_a_boot_is_not() -> None:
    started, resumed = libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_RESUMED
    assert (started, libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED) not in _RENEWS
    assert {
        (started, libvirt.VIR_DOMAIN_EVENT_STARTED_RESTORED),
        (started, libvirt.VIR_DOMAIN_EVENT_STARTED_FROM_SNAPSHOT),
        (started, libvirt.VIR_DOMAIN_EVENT_STARTED_MIGRATED),
        (resumed, libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED),
        (resumed, libvirt.VIR_DOMAIN_EVENT_RESUMED_FROM_SNAPSHOT),
        (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_FROM_SNAPSHOT),
    } <= _RENEWS


def test_cancelling_leaves_no_thread_but_libvirts_and_no_connection(request: pytest.FixtureRequest) -> None:
    before = set(threading.enumerate())
    gc.disable()  # not thanks to a collection that happens to run
    request.addfinalizer(gc.enable)

    async def scenario() -> None:
        recorder = Recorder()
        with fake_hypervisor() as libvirtd:
            libvirtd.createXML(domain_xml("a", UUID_A), 0)
            watcher = recorder.watcher(URI)
            async with running(watcher):
                await until(lambda: recorder.calls == [("appeared", "a")])
            assert set(threading.enumerate()) == before
            assert recorder.calls == [("appeared", "a")], "stopping to watch is no end of the domain"
        # The test driver's state lives as long as any connection to it: a new one has its own domain only.
        fresh = libvirt.open("test:///default")
        assert [domain.name() for domain in fresh.listAllDomains()] == ["test"], "a connection is still open"
        fresh.close()

    asyncio.run(scenario(), debug=True)


@pytest.mark.parametrize("turns", range(6))
def test_a_cancellation_that_comes_together_with_an_event_counts(turns: int) -> None:
    async def scenario() -> None:
        inbox = Inbox(asyncio.get_running_loop(), lambda _uuid, _number: None)
        waiting = asyncio.create_task(inbox.wait(3600))
        await asyncio.sleep(0)
        inbox.event(UUID_A, 1, False)
        for _ in range(turns):
            await asyncio.sleep(0)
        if waiting.cancel():
            with pytest.raises(asyncio.CancelledError):
                await waiting
        else:
            assert await waiting

    asyncio.run(scenario(), debug=True)


def test_what_was_taken_wakes_nobody() -> None:
    async def scenario() -> None:
        inbox = Inbox(asyncio.get_running_loop(), lambda _uuid, _number: None)
        inbox.event(UUID_A, 1, False)
        assert await inbox.wait(3600)
        inbox.event(UUID_B, 2, False)  # while its reader waits for more
        await turns_of_the_loop()
        assert inbox.take() == {UUID_A, UUID_B}
        waiting = asyncio.create_task(inbox.wait(3600))
        await turns_of_the_loop()
        assert not waiting.done()
        inbox.event(UUID_A, 1, False)
        assert await waiting
        assert inbox.take() == {UUID_A}

    asyncio.run(scenario(), debug=True)


def test_an_urgent_event_cuts_a_pause_short_and_others_do_not() -> None:
    async def scenario() -> None:
        inbox = Inbox(asyncio.get_running_loop(), lambda _uuid, _number: None)

        async def paused() -> asyncio.Task[None]:
            task = asyncio.create_task(inbox.pause(3600, 0))
            await turns_of_the_loop()
            return task

        pausing = await paused()
        inbox.event(UUID_A, 1, False)
        await turns_of_the_loop()
        assert not pausing.done()
        inbox.event(UUID_B, 2, False, True)
        await pausing
        inbox.event(UUID_A, 1, False, True)  # in the last moments, or in a listing: the next pause is short
        await turns_of_the_loop()
        await (await paused())
        assert inbox.take() == {UUID_A, UUID_B}
        inbox.event(UUID_A, 1, False)
        pausing = await paused()
        assert not pausing.done(), "what was taken hurries nobody"
        pausing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pausing

    asyncio.run(scenario(), debug=True)


def test_a_pause_is_as_long_as_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(delay_s: float) -> None:
        waited.append(delay_s)

    class Clock:
        """In the place of the loop: its timers end at once."""

        def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.Handle:
            waited.append(delay_s)
            return asyncio.get_running_loop().call_soon(callback)

    async def scenario() -> None:
        monkeypatch.setattr("netrng_hostd.discovery.inbox.asyncio.sleep", sleep)
        inbox = Inbox(Clock(), lambda _uuid, _number: None)  # type: ignore[arg-type]
        await inbox.pause(2.0, 0.5)
        assert waited == [1.5, 0.5]
        inbox.take()
        inbox._hurry.set()
        await inbox.pause(2.0, 0.5)
        assert waited[3:] == [0.5], "after an urgent event"
        await inbox.pause(0.25, 0.5)
        assert waited[5:] == [0.25]
        monkeypatch.undo()

    asyncio.run(scenario(), debug=True)


def test_a_flood_of_other_events_does_not_put_off_a_change_of_metadata(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A guest that opens and closes its port has brought the pause up to an hour."""
    monkeypatch.setattr(Debounce, "pause_s", lambda *_: 3600.0)
    inboxes: list[Inbox] = []
    pause = Inbox.pause

    async def noted(inbox: Inbox, pause_s: float, urgent_s: float) -> None:
        inboxes.append(inbox)
        await pause(inbox, pause_s, urgent_s)

    monkeypatch.setattr(Inbox, "pause", noted)

    async def scenario() -> None:
        recorder = Recorder()
        watcher = recorder.watcher(URI)
        with fake_hypervisor() as libvirtd:
            domain = libvirtd.createXML(domain_xml("a", UUID_A), 0)
            async with running(watcher):
                await until(lambda: UUID_A in watcher.domains)
                libvirtd.createXML(domain_xml("b", UUID_B), 0)
                await until(lambda: inboxes)
                for _ in range(100):
                    inboxes[0].event(UUID_A, domain.ID(), False)
                await turns_of_the_loop()
                assert recorder.calls == [("appeared", "a")]
                domain.setMetadata(2, "<quota weight='7'/>", "netrng", "urn:netrng:1", 1)
                await until(lambda: {("changed", "a"), ("appeared", "b")} <= set(recorder.calls))

    asyncio.run(scenario(), debug=True)


def test_only_a_change_of_our_own_metadata_is_urgent() -> None:
    """Other programs may write theirs, or a title, as often as they like."""
    told: list[bool] = []
    connection = Connection(
        URI,
        read_only=True,
        on_event=lambda _uuid, _number, _renews, urgent: told.append(urgent),
        on_close=lambda _: None,
        later=lambda _: None,
    )
    with fake_hypervisor() as libvirtd:
        domain = libvirtd.createXML(domain_xml("a", UUID_A), 0)
        try:
            connection.open()
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "urn:netrng:1", None, None, 1)
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, "<quota/>", "other", "urn:other:1", 1)
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, "<quota/>", "netrng", "urn:netrng:1", 1)
            asyncio.run(until(lambda: len(told) == 3))
        finally:
            connection.close()
    assert told == [False, False, True]


@pytest.mark.parametrize("uri", [URI, "xen:///system"])
def test_a_driver_without_streams(uri: str) -> None:
    """libvirt's test driver knows none, as Xen's."""
    connection = Connection(
        URI, read_only=False, on_event=lambda *_: None, on_close=lambda _: None, later=lambda _: None
    )
    with fake_hypervisor() as libvirtd:
        libvirtd.createXML(domain_xml("a", UUID_A), 0)
        try:
            connection.open()
            connection.active()
            connection.uri = uri
            with pytest.raises(UnsupportedError) as caught:
                connection.open_channel(UUID_A, "org.netrng.0")
        finally:
            connection.close()
    xen = "Xen's driver has no streams to channels; set transport = \"socket\" in [libvirt]"
    assert (str(caught.value) == f"{uri}: {xen}") == drives_xen(uri)


class Reading:
    """Listings of ``UUIDS``, in the order in which each domain's XML is read; no libvirt is asked."""

    UUIDS = tuple(f"{number:08x}-0000-4000-8000-000000000000" for number in range(4))

    def __init__(self, monkeypatch: pytest.MonkeyPatch, urgent: Callable[[int], str | None]) -> None:
        """While an XML is read for the nth time, from 0 on, the quota of the domain ``urgent(n)`` changes."""
        self.read: list[str] = []
        self.listings = 0

        def active(_: Connection) -> list[tuple[str, int]]:
            self.listings += 1
            return [(uuid, 1) for uuid in self.UUIDS]

        def live_xml(connection: Connection, uuid: str) -> str:
            changed = urgent(len(self.read))
            self.read.append(uuid)
            if changed is not None:
                connection._on_event(changed, 1, False, True)
            return domain_xml(uuid, uuid).replace("<domain ", "<domain id='1' ", 1)

        monkeypatch.setattr(Connection, "active", active)
        monkeypatch.setattr(Connection, "live_xml", live_xml)

    def run_until(self, condition: Callable[[], object]) -> None:
        async def scenario() -> None:
            async with running(Recorder().watcher(URI)):
                await until(condition)

        asyncio.run(scenario(), debug=True)


def test_a_change_of_metadata_is_read_before_the_rest_of_a_long_listing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, third, last = Reading.UUIDS
    reading = Reading(monkeypatch, {0: last, 2: first}.get)
    reading.run_until(lambda: len(reading.read) >= 7)
    assert reading.read[:5] == [first, last, second, first, third]
    assert reading.read[5:7] == [first, last], "as after every event"


def test_changes_of_metadata_without_end_do_not_hold_up_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third, last = Reading.UUIDS
    reading = Reading(monkeypatch, lambda _: first)
    reading.run_until(lambda: reading.listings > 1)
    assert reading.read[:7] == [first, first, second, first, third, first, last]


def test_a_change_of_a_domain_that_was_not_listed_yet_waits_for_the_next_listing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading = Reading(monkeypatch, {0: UUID_A}.get)
    reading.run_until(lambda: reading.listings > 1)
    assert reading.read[:4] == list(reading.UUIDS)


def test_a_change_of_metadata_counts_within_a_fraction_of_a_second() -> None:
    # docs/operating.md says so: what a daemon waits by default, before it reads the domain and before it
    # decides on what is promised. What libvirt's calls take comes on top.
    assert Timing().debounce_s + SETTLE_S <= 0.25


async def turns_of_the_loop() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


class Storm:
    """An event of UUID_A in each debounce, which it notes instead of waiting for it, and in each listing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pauses: list[float] = []
        self.inbox: Inbox | None = None
        make, active = Inbox.__init__, Connection.active

        def made(inbox: Inbox, *arguments: Any) -> None:
            make(inbox, *arguments)
            self.inbox = inbox

        async def noted(_: Inbox, pause_s: float, _urgent_s: float) -> None:
            self.pauses.append(pause_s)
            self.blow()
            await asyncio.sleep(0.001)

        def listed(connection: Connection) -> list[tuple[str, int]]:
            self.blow()
            return active(connection)

        monkeypatch.setattr(Inbox, "__init__", made)
        monkeypatch.setattr(Connection, "active", listed)
        monkeypatch.setattr(Inbox, "pause", noted)

    def blow(self) -> None:
        if self.inbox is not None:
            self.inbox.event(UUID_A, 1, False)

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(20_000):
            if condition():
                return
            await asyncio.sleep(0.001)
        raise AssertionError("never came true")


def counted_readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The UUIDs whose XML is read, in order, from now on."""
    read: list[str] = []
    live_xml = Connection.live_xml

    def counted(self: Connection, uuid: str) -> str:
        read.append(uuid)
        return live_xml(self, uuid)

    monkeypatch.setattr(Connection, "live_xml", counted)
    return read


def test_the_debounce_grows_while_events_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    storm = Storm(monkeypatch)

    async def scenario() -> None:
        # Nothing is waited for; but a standstill of the machine as long as the maximum would be a calm.
        timing = QUICK._replace(debounce_s=10.0, max_debounce_s=200.0)
        watcher = Recorder().watcher(URI, timing=timing)
        with fake_hypervisor() as libvirtd:
            libvirtd.createXML(domain_xml("a", UUID_A), 0)
            async with running(watcher):
                await storm.until(lambda: len(storm.pauses) >= 7)

    asyncio.run(scenario(), debug=True)
    assert storm.pauses[:7] == [10, 20, 40, 80, 160, 200, 200]


def test_events_without_end_do_not_put_off_the_periodic_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    read = counted_readings(monkeypatch)
    storm = Storm(monkeypatch)

    async def scenario() -> None:
        watcher = Recorder().watcher(URI, timing=QUICK._replace(relist_s=0.05))
        with fake_hypervisor() as libvirtd:
            libvirtd.createXML(domain_xml("a", UUID_A), 0)
            libvirtd.createXML(domain_xml("b", UUID_B), 0)
            async with running(watcher):
                await storm.until(lambda: read.count(UUID_B) >= 4 and len(storm.pauses) > 3)

    asyncio.run(scenario(), debug=True)


def test_the_debounce_begins_anew_after_a_calm() -> None:
    debounce = Debounce(0.1, 2.0)
    now_s = 100.0
    assert debounce.pause_s(now_s) == 0.1
    for wanted in (0.2, 0.4, 0.8, 1.6, 2.0, 2.0):
        debounce.listed(now_s)
        now_s += 1.9
        assert debounce.pause_s(now_s) == wanted
    debounce.listed(now_s)
    now_s += 2.0
    assert debounce.pause_s(now_s) == 0.1


def test_the_defaults_are_those_of_the_documentation() -> None:
    timing = Timing()
    assert (timing.relist_s, timing.backoff_s, timing.max_backoff_s) == (30.0, 0.5, 30.0)


def test_the_wait_for_a_reconnection_doubles_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def noted(delay_s: float) -> None:
        slept.append(delay_s)
        await sleep(0)

    async def scenario() -> None:
        timing = QUICK._replace(backoff_s=0.5, max_backoff_s=30.0)
        watcher = Recorder().watcher("test:///no/such/file", timing=timing)
        monkeypatch.setattr("netrng_hostd.discovery.watcher.asyncio.sleep", noted)
        task = asyncio.create_task(watcher.run())
        while len(slept) < 9:
            await sleep(0.001)
        monkeypatch.undo()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario(), debug=True)
    assert slept[:9] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
