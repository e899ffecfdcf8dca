# SPDX-License-Identifier: Apache-2.0
"""What a pattern matches, what its sockets are called, and who has a socket that several want."""

from __future__ import annotations

import fnmatch
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netrng_hostd.config import ChannelConfig
from netrng_hostd.config.sections import SUN_PATH_MAX
from netrng_hostd.core.spelling import printable
from netrng_hostd.discovery.globs import (
    MAX_NOTICES,
    Found,
    Notice,
    Scan,
    assign,
    carried,
    component,
    difference,
    matched,
    oddness,
)

PVE = ChannelConfig("pve", "/run/qemu-server/*.netrng")


def found(path: str, stem: str, real: str = "") -> Found:
    return Found(path, stem, real or path)


def stem_of(pattern: str, name: str) -> list[str] | None:
    expression = component(pattern)
    assert expression is not None
    return matched(expression, name)


# One component


@pytest.mark.parametrize(
    ("pattern", "name", "stem"),
    [
        ("*.netrng", "101.netrng", ["101"]),
        ("*", "web", ["web"]),
        ("vm-*", "vm-", [""]),
        ("vm-??.s", "vm-10.s", ["10"]),
        ("vm-??.s", "vm-1.s", None),
        ("?*-*.s", "a-b-c.s", ["a", "b-c"]),
        ("*?.s", "a.s", ["a"]),
        ("*??.s", "a.s", None),
        ("a*b?c*d", "aXXbYcZd", ["XX", "Y", "Z"]),
        ("*.netrng", "101.netrng.bak", None),
        ("*.netrng", "101xnetrng", None),
        ("*", ".hidden", None),
        ("?hidden", ".hidden", None),
        (".*", ".hidden", ["hidden"]),
        ("*.s", ".s", None),
        ("x*", "x.y", [".y"]),
        ("*.s", "line\nbreak.s", ["line\nbreak"]),
        ("*[0-9].s", "1.s", None),
        ("*[0-9].s", "vm[0-9].s", ["vm"]),
    ],
)
def test_what_a_component_matches(pattern: str, name: str, stem: list[str] | None) -> None:
    assert stem_of(pattern, name) == stem


def test_a_component_without_wildcards_is_a_name() -> None:
    assert component("qemu[1]") is None


@given(st.text("ab*?", min_size=1, max_size=8), st.text("ab", max_size=8))
def test_a_component_matches_as_in_a_shell(pattern: str, name: str) -> None:
    expression = component(pattern)
    if expression is None:
        assert not set("*?") & set(pattern)
        return
    stem = matched(expression, name)
    assert (stem is not None) == fnmatch.fnmatchcase(name, pattern)
    if stem is not None:  # the name is the pattern with the stem in the place of the wildcards
        pieces = iter(stem)
        assert re.sub(r"[*?]+", lambda _: next(pieces), pattern) == name


def test_no_name_takes_long_to_match() -> None:
    expression = component("a*" * 40 + "b")
    assert expression is not None
    began = time.thread_time()
    assert matched(expression, "a" * 255) is None
    assert time.thread_time() - began < 1, "it was matched in exponential time"


# Names


def test_a_socket_is_named_after_what_the_wildcards_matched() -> None:
    scan = Scan((found("/run/qemu-server/101.netrng", "101"),))
    wanted, notices = assign([PVE], {PVE: scan}, {})
    assert wanted == {"pve-101": ChannelConfig("pve-101", "/run/qemu-server/101.netrng", "agent")}
    assert notices == []


def test_a_sockets_kind_is_its_patterns() -> None:
    egd = ChannelConfig("rng", "/run/*.egd", "egd")
    wanted, _ = assign([egd], {egd: Scan((found("/run/a.egd", "a"),))}, {})
    assert wanted["rng-a"].kind == "egd"


def test_without_a_stem_the_name_is_the_patterns() -> None:
    wanted, _ = assign([PVE], {PVE: Scan((found("/run/x", ""),))}, {})
    assert set(wanted) == {"pve"}


def test_a_channel_without_wildcards_is_there_without_a_look() -> None:
    one = ChannelConfig("one", "/run/one")
    assert assign([PVE, one], {}, {}) == ({"one": one}, [])


def test_a_socket_that_two_patterns_match_is_the_first_ones() -> None:
    other = ChannelConfig("other", "/run/qemu-server/1*.netrng")
    both = {
        PVE: Scan((found("/run/qemu-server/101.netrng", "101"),)),
        other: Scan((found("/run/qemu-server/101.netrng", "01"),)),
    }
    for configs in ([PVE, other], [other, PVE]):
        wanted, (notice,) = assign(configs, both, {})
        first, second = configs
        (name,) = wanted
        assert name.startswith(first.name)
        assert notice == Notice(
            True, f"{second.name}: /run/qemu-server/101.netrng is served as {name} already"
        )


@pytest.mark.parametrize("real", ["", "/var/run/qemu-server/101.netrng"])
def test_a_socket_with_a_channel_of_its_own_is_no_patterns(real: str) -> None:
    path = "/run/qemu-server/101.netrng"
    one = ChannelConfig("one", real or path)
    wanted, (notice,) = assign([PVE, one], {PVE: Scan((found(path, "101", real),))}, {})
    assert wanted == {"one": one}
    assert notice.text == f"pve: {path} is served as one already"


def test_two_names_of_one_socket_are_one_channel() -> None:
    link, path = found("/run/a.netrng", "a", "/run/b.netrng"), found("/run/b.netrng", "b")
    wanted, notices = assign([PVE], {PVE: Scan((link, path))}, {})
    assert [config.path for config in wanted.values()] == ["/run/a.netrng"]
    assert [notice.text for notice in notices] == ["pve: /run/b.netrng is served as pve-a already"]
    served = {"pve-b": ChannelConfig("pve-b", "/run/b.netrng")}
    assert assign([PVE], {PVE: Scan((link, path))}, served)[0] == served, "who is served stays so"


def test_two_sockets_of_one_name() -> None:
    config = ChannelConfig("vm", "/run/*/*.s")
    pair = (found("/run/a-b/c.s", "a-b-c"), found("/run/a/b-c.s", "a-b-c"))
    wanted, (notice,) = assign([config], {config: Scan(pair)}, {})
    assert wanted == {"vm-a-b-c": ChannelConfig("vm-a-b-c", "/run/a-b/c.s")}
    assert notice == Notice(
        True,
        "vm-a-b-c: is the channel of /run/a-b/c.s, and /run/a/b-c.s would get the same name: "
        "not served; give one of the [[channel]] another name",
    )
    served = {"vm-a-b-c": ChannelConfig("vm-a-b-c", "/run/a/b-c.s")}
    assert assign([config], {config: Scan(pair)}, served)[0] == served, "whose name it is keeps it"


def test_a_name_stays_with_its_socket_when_an_earlier_pattern_would_give_it_to_another() -> None:
    first, second = ChannelConfig("a", "/run/a/*.s"), ChannelConfig("a-b", "/run/b/*.s")
    scans = {first: Scan((found("/run/a/b-c.s", "b-c"),)), second: Scan((found("/run/b/c.s", "c"),))}
    served = {"a-b-c": ChannelConfig("a-b-c", "/run/b/c.s")}
    assert assign([first, second], scans, served)[0] == served
    assert assign([first, second], scans, {})[0] == {"a-b-c": ChannelConfig("a-b-c", "/run/a/b-c.s")}


def test_a_configured_name_is_no_other_sockets() -> None:
    one = ChannelConfig("pve-101", "/elsewhere")
    scan = Scan((found("/run/qemu-server/101.netrng", "101"),))
    wanted, (notice,) = assign([PVE, one], {PVE: scan}, {})
    assert wanted == {"pve-101": one}
    assert notice.text.startswith("pve-101: is the channel of /elsewhere, and /run/qemu-server/101.netrng ")


def test_odd_names_are_skipped_and_shown_harmlessly() -> None:
    odd = ["/run/\x1b[2J", "/run/\udcff", "/run/\u202e", f"/{'x' * SUN_PATH_MAX}"]
    wanted, notices = assign([PVE], {PVE: Scan(tuple(found(path, "x") for path in odd))}, {})
    assert wanted == {}
    assert [notice.wrong for notice in notices] == [True] * len(odd)
    assert all(notice.text.isprintable() for notice in notices)
    assert r"pve: /run/\x1b[2J is not served: its name has characters that cannot be printed" in {
        notice.text for notice in notices
    }
    assert oddness(f"/{'x' * (SUN_PATH_MAX - 1)}") == oddness("/run/ü 1") == ""
    assert printable("/run/\udcff") == r"/run/\udcff"


def test_however_much_is_odd_little_is_said() -> None:
    odd = Scan(tuple(found(f"/run/{number}\n", "x") for number in range(100)))
    _, notices = assign([PVE], {PVE: odd}, {})
    assert len(notices) == MAX_NOTICES + 1
    assert notices[-1].text == f"pve: and more like these: {100 - MAX_NOTICES}"


def test_what_was_in_the_way_is_said() -> None:
    scan = Scan((), (("/run/qemu\x07", "permission denied"),), "/run/nowhere", more=True)
    assert assign([PVE], {PVE: scan}, {}) == (
        {},
        [
            Notice(False, "pve: no folder /run/nowhere; looking on"),
            Notice(True, r"pve: /run/qemu\x07: permission denied"),
            Notice(
                True,
                "pve: more than 4096 sockets match /run/qemu-server/*.netrng; the others are left out",
            ),
        ],
    )


# What changes


def test_the_difference() -> None:
    kept, old, new = (ChannelConfig(name, f"/{name}") for name in ("kept", "old", "new"))
    before, moved = ChannelConfig("moved", "/a"), ChannelConfig("moved", "/b")
    assert difference(
        {"kept": kept, "old": old, "moved": before}, {"kept": kept, "new": new, "moved": moved}
    ) == ([old, before], [new, moved])


def test_what_cannot_be_read_is_still_there() -> None:
    before = Scan((found("/run/a/1", "a-1"), found("/run/ab/1", "ab-1"), found("/run/b/1", "b-1")))
    after = Scan((found("/run/b/2", "b-2"),), (("/run/a", "input/output error"),))
    assert [one.path for one in carried(before, after).found] == ["/run/a/1", "/run/b/2"]
    half = Scan((found("/run/a/1", "a-1"),), (("/run/a", "input/output error"),))
    assert carried(before, half) == half, "each once"
    everything = Scan((), (("/", "input/output error"),))
    assert carried(before, everything).found == before.found
    assert carried(before, Scan()) == Scan()
