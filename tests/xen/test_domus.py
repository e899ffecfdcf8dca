# SPDX-License-Identifier: Apache-2.0
"""The main job under a real Xen, and what happens to it: the tests share their domUs, in this order."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import libvirt
import pytest
from tests.streams import assert_disjoint
from tests.vm.diary import BLOCK_CREDITS, WINDOW
from tests.vm.rig import wait_for_credits
from tests.xen.domus import FLOOD, FLOOD_S, FLOODED, GO, STALE, STOP, TAKEN
from tests.xen.story import LIMIT, PATIENCE_S, SOURCE, Story

from netrng_guest.demand import BLOCK_SIZE
from netrng_guest.wire import SEED_SIZE
from netrng_hostd.config import load
from netrng_hostd.main import main
from netrng_hostd.operate.check.domains import check_domains
from netrng_hostd.operate.check.finding import show


def test_libvirts_domains_are_found_and_served(story: Story) -> None:
    """Whichever of its consoles a channel is: that is what the agent asks xenstore."""
    for domu, device in ((story.first, "/dev/hvc1"), (story.second, "/dev/hvc2")):
        domain = story.wait_until_open(domu)
        assert f"opened {device}" in domu.check("cat /run/main.out")
        assert (domain["kind"], domain["uri"], domain["uuid"]) == ("xen", "xen:///system", domu.uuid)
        assert domain["channel"] == f"/var/lib/libvirt/libxl/channel/target/{domu.name}-org.netrng.0"
    names = [domain["name"] for domain in story.hostd.status()["domains"]]
    assert sorted(names) == ["first", "second"], "nor Domain-0, nor what xl made"


def test_check_lists_what_xl_made_with_the_lines_to_paste(
    story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are pasted, and reloaded."""
    config_now = load(str(story.hostd.config))
    for finding in check_domains(config_now, libvirt_s=PATIENCE_S, xenstore_s=PATIENCE_S):
        show(finding)
    printed = capsys.readouterr().out
    assert "WRONG" not in printed
    lines = printed.split("third (Xen domain ")[1].splitlines()[1:4]
    config = story.hostd.config.read_text()
    story.hostd.config.write_text(config + "\n".join(line.strip() for line in lines) + "\n")
    story.hostd.reload()
    domain = story.wait(story.third, "its channel", lambda one: one["state"] == "waiting")
    assert domain["kind"] == "static"
    story.third.check(f"touch {GO}")


def test_a_killed_libvirtd_is_not_noticed_by_domains(story: Story) -> None:
    before = story.hostd.domain("first")
    story.dom0.kill_libvirtd()
    story.until(lambda: story.hostd.status()["uris"][0]["state"] == "down", "that libvirt is down")
    story.wait_for_bytes(story.first, 1_000)
    story.dom0.start_libvirtd()
    story.until(lambda: story.hostd.status()["uris"][0]["state"] == "connected", "libvirt again")
    after = story.hostd.domain("first")
    assert abs(after["since"] - before["since"]) < 0.1, "the same session"


def test_a_cooked_terminal_and_a_stale_megabyte_are_survived(story: Story) -> None:
    story.wait_until_open(story.third)
    assert "protocol violation" not in story.hostd.log, "neither junk nor an echo is a frame"
    assert "sends more than it may" not in story.hostd.log, "what was parked is no flood"
    story.wait(story.third, "bytes", lambda one: one["bytes_acked"] > 64)


def test_quotas_hold_on_a_slow_source(story: Story) -> None:
    """All three ask for more than they get: the limit is a bound, the weights' 3 to 1 holds in about."""
    story.before = story.hostd.status()
    passed = story.wait_for_bytes(story.first, 3_000)
    status = story.hostd.status()
    story.assert_limited(passed)
    assert passed.sent["first"] > 2 * passed.sent["third"] > 0
    assert status["ledger_ok"]
    story.in_peace = min(passed.rate(story.first), 0.9 * (SOURCE - LIMIT))


def test_a_flood_does_not_slow_the_others(story: Story) -> None:
    """For seconds in a row; it goes on while the next tests run.

    An emulated computer's two processors have their part in it, and so has what else its host does: there
    are minutes for it.
    """
    assert story.in_peace, "what the test before this one measured"
    story.third.check("pkill python3; true")
    story.flood = story.third.spawn(f"exec python3 -I -S {FLOOD} 2>/dev/console")
    flooded = "third: the guest sends more than it may"
    story.until(lambda: flooded in story.hostd.log, flooded)
    end = time.monotonic() + 2 * PATIENCE_S
    in_peace, beside = (story.in_peace, float(LIMIT)), [(0.0, 0.0)]
    while beside[-1][0] < 0.8 * in_peace[0] or beside[-1][1] < 0.6 * in_peace[1]:
        passed = story.wait_for_bytes(story.first, 5_000)
        beside.append((passed.rate(story.first), passed.rate(story.second)))
        assert time.monotonic() < end, f"bytes per second: {in_peace} in peace, {beside[1:]} beside it"
    assert story.flood.poll(0.1) is None
    story.assert_limited(story.passed_since(story.before))
    print(json.dumps({"bytes per second": {"in peace": in_peace, "beside a flood": beside[1:]}}))


def test_a_pause_costs_a_session_and_nothing_else(story: Story) -> None:
    """Not the other domain's, either."""
    other = story.hostd.domain("second")
    story.first.domain.suspend()
    assert story.first.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    story.wait_for_bytes(story.second, 300)
    paused = story.hostd.domain("first")
    assert paused["state"] == "open", "silence alone ends no session"
    assert paused["in_flight"] <= WINDOW
    story.first.domain.resume()
    story.wait_until_open(story.first, paused["since"] + 0.1)
    story.wait_for_bytes(story.first, 500)
    assert abs(story.hostd.domain("second")["since"] - other["since"]) < 0.1


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            "detach",
            "second: gone after the next full power-off or guest reboot (Xen cannot hot-plug channels)",
        ),
        ("attach", "second: channel added to the definition"),
    ],
)
def test_attach_holds_from_the_next_power_off(
    command: str, told: str, story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    """Xen cannot plug channels: neither changes the domain that runs."""
    before = story.hostd.domain("second")
    assert main([command, "--connect", "xen:///system", "second"]) == 0
    assert told in capsys.readouterr().out
    after = story.hostd.domain("second")
    assert after["state"] == "open"
    assert abs(after["since"] - before["since"]) < 0.1, "the same session"


def test_a_killed_daemon_is_followed_by_new_sessions(story: Story) -> None:
    """The agents notice it by the new daemon's word alone: their terminals tell them nothing."""
    for domu in (story.first, story.second):
        story.wait_for_bytes(domu, 200)
    story.hostd.kill()
    killed = time.time()
    story.hostd.start(ready=False)
    story.wait_until_ready(2)
    for domu in (story.first, story.second):
        story.wait_until_open(domu, killed)
        story.wait_for_bytes(domu, 500)
    story.third.check(f"touch {STOP}")  # the flood ends when its minute is over: domUs shall start without it


def test_kernels_are_credited_by_rngd(story: Story) -> None:
    both = (story.first, story.second)
    for domu in both:
        story.wait(domu, "a block for rngd", lambda one: one["bytes_acked"] >= SEED_SIZE + BLOCK_SIZE)
    with ThreadPoolExecutor(len(both)) as pool:
        assert all(pool.map(lambda domu: wait_for_credits(domu, BLOCK_CREDITS, 120), both))


def test_a_power_off_and_a_reboot_are_followed_by_new_domains(story: Story) -> None:
    """Of a reboot Xen tells the new domain's start before the old one's end.

    It is a start from the definition, as `attach` says.
    """
    story.keep()
    ended = time.time()
    title, live, defined = "rebooted", libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
    story.first.domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, title, None, None, defined)
    assert title not in story.first.domain.XMLDesc()
    old = story.first.domain.ID()
    story.first.domain.reboot()
    # One after the other: when both ended at one time the first was, once, not started again.
    story.until(lambda: story.first.domain.ID() not in (old, -1), "the new domain")
    assert story.first.domain.metadata(libvirt.VIR_DOMAIN_METADATA_TITLE, None, live) == title
    story.second.domain.destroy()
    story.until(lambda: not story.hostd.domain("second")["state"], "its end")
    story.second.domain.create()
    for domu in (story.first, story.second):
        story.wait_until_open(domu, ended)
        story.wait_for_bytes(domu, 500)


def test_the_flood_lasted_a_minute(story: Story) -> None:
    assert story.flood is not None
    assert story.flood.result(240).rc == 0
    seconds, n_bytes = story.third.check(f"cat {FLOODED}").split()
    assert float(seconds) >= FLOOD_S
    assert int(n_bytes) > STALE, "more than hostd lets through at once"
    print(json.dumps({"flood": {"seconds": float(seconds), "bytes": int(n_bytes)}}))


def test_quotas_in_metadata_are_seen_on_xen_too(story: Story) -> None:
    assert main(["quota", "--connect", "xen:///system", "second", "--weight", "77"]) == 0
    story.wait(story.second, "its new weight", lambda one: one["weight"] == 77)


def test_no_byte_came_in_two_places(story: Story) -> None:
    """In no two sessions of any domUs, over all that was killed, paused, rebooted and destroyed in between.

    What was on its way when a domU was destroyed has come nowhere.
    """
    story.keep()
    diaries = {name: [boot[name] for boot in story.diaries] for name in ("first", "second")}
    sessions = [one for boots in diaries.values() for boot in boots for one in boot.sessions]
    for one in sessions:
        one.assert_seeded()
    n_sessions = {name: [len(boot.sessions) for boot in boots] for name, boots in diaries.items()}
    assert n_sessions["first"][0] >= 3, "a pause and a killed daemon"
    assert n_sessions["second"][0] >= 2, "a killed daemon"
    pieces = [bytes(one.data) for one in sessions] + [story.third.fetch(TAKEN)]
    looked_up = assert_disjoint(story.data, pieces)
    assert looked_up > 0.97 * sum(map(len, pieces))
    status = story.hostd.status()
    assert status["ledger_ok"]
    figures = {
        name: {
            "bytes": sum(len(one.data) for boot in boots for one in boot.sessions),
            "sessions": sum(len(boot.sessions) for boot in boots),
            "RNDADDENTROPY of rngd": sum(len(boot.credits) for boot in boots),
        }
        for name, boots in diaries.items()
    }
    print(json.dumps({**figures, "third": len(pieces[-1])}))
    assert story.hostd.stop() == 0
    assert "Traceback" not in story.hostd.log
