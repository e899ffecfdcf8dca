# SPDX-License-Identifier: Apache-2.0
"""The configuration: what is accepted, and one line for each mistake."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from netrng_hostd import config
from netrng_hostd.config import ChannelConfig, Config, ConfigError, SourceConfig, load
from netrng_hostd.config.file import KEYS
from netrng_hostd.config.sections import MAX_PATTERNS
from netrng_hostd.core.quota import DEFAULT_QUOTA, UNSET, resolve

CONF = Path(__file__).parents[2] / "conf" / "hostd.toml"


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("hostd.toml")


def refused(file: Path, text: str) -> str:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(str(file))
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("hostd.toml: ")
    return line.removeprefix("hostd.toml: ")


# What is accepted


def test_no_file_is_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netrng_hostd.config.file.DEFAULT_FILE", "/nonexistent/hostd.toml")
    loaded = load()
    assert loaded == Config(control="/run/netrng/hostd.sock")
    assert loaded.sources == (SourceConfig("hwrng", "device", "/dev/hwrng", min_entropy=8.0),)
    assert (loaded.reservoir.size, loaded.reservoir.seed_reserve) == (65536, 16384)


def test_an_empty_file_is_the_defaults(file: Path) -> None:
    file.write_text("")
    assert load(str(file)) == Config(control="/run/netrng/hostd.sock", file="hostd.toml")


def test_the_shipped_file_is_the_defaults() -> None:
    shipped = load(str(CONF))
    (rule,) = shipped.quotas
    assert resolve(shipped.quotas, "any", "0" * 32) == replace(DEFAULT_QUOTA, name="default")
    assert rule.limit is None
    assert shipped == Config(control="/run/netrng/hostd.sock", file=str(CONF), quotas=shipped.quotas)


def test_the_shipped_file_shows_every_key() -> None:
    text = CONF.read_text(encoding="utf-8")
    tables = {
        "": {"sample_size", "control"},
        "reservoir": {"size", "seed_reserve"},
        "libvirt": {"uris", "transport", "trust_metadata"},
        "source": {
            "name", "kind", "path", "address", "min_entropy", "rng_current", "credit", "stall_timeout",
            "origin",
        },
        "sources": {"policy", "min_sources"},
        "quota": {
            "name", "match", "reservation", "weight", "limit", "burst",
            "max_reservation", "max_weight", "max_limit", "max_burst",
        },
        "admission": {"headroom", "policy", "max_domains"},
        "channel": {"name", "path", "kind"},
        "serve": {"name", "path"},
    }
    shown: dict[str, set[str]] = {}
    table = ""
    for line in text.splitlines():
        if header := re.match(r"(?:#  +)?\[+(\w+)\]+$", line):
            table = header[1]
        elif key := re.match(r"(?:#  +)?(\w+) = ", line):
            shown.setdefault(table, set()).add(key[1])
    assert shown == tables
    assert set(tables) - {""} | tables[""] == set(KEYS)


def test_a_full_file(file: Path) -> None:
    file.write_text(
        """
        sample_size = 65536
        control = "/run/x/y.sock"
        [reservoir]
        size = 1048576
        seed_reserve = "1KiB"
        [libvirt]
        uris = ["qemu+tls://host/system", "xen:///system"]
        transport = "stream"
        trust_metadata = false
        [[source]]
        name = "trial"
        kind = "prng"
        min_entropy = 1
        [sources]
        policy = "failover"
        [[quota]]
        name = "databases"
        match = ["db-*", "uuid:8b1f*"]
        reservation = "1KiB/s"
        limit = 4096
        [[quota]]
        name = "default"
        match = ["*"]
        weight = 7
        max_reservation = 0
        max_weight = 300
        max_limit = "1MiB/s"
        max_burst = "none"
        [admission]
        headroom = 0
        policy = "refuse"
        max_domains = 1
        [[channel]]
        name = "vm-101"
        path = "/run/qemu/101.netrng"
        """
    )
    loaded = load(str(file))
    assert loaded.sample_size == 65536
    assert loaded.control == "/run/x/y.sock"
    assert (loaded.reservoir.size, loaded.reservoir.seed_reserve) == (1 << 20, 1024)
    assert loaded.libvirt.uris == ("qemu+tls://host/system", "xen:///system")
    assert (loaded.libvirt.transport, loaded.libvirt.trust_metadata) == ("stream", False)
    assert loaded.sources == (SourceConfig("trial", "prng", "/dev/urandom", min_entropy=1.0),)
    databases, default = loaded.quotas
    assert (databases.reservation, databases.limit, databases.weight) == (1024, 4096, None)
    assert default.limit is UNSET
    assert databases.max_reservation is databases.max_weight is UNSET
    assert databases.max_limit is databases.max_burst is UNSET
    assert (default.max_reservation, default.max_weight, default.max_limit, default.max_burst) == (
        0, 300, 1 << 20, None,
    )  # fmt: skip
    assert (loaded.admission.headroom, loaded.admission.policy, loaded.admission.max_domains) == (
        0,
        "refuse",
        1,
    )
    assert loaded.channels == (ChannelConfig("vm-101", "/run/qemu/101.netrng"),)


def test_a_small_reservoir_keeps_a_quarter_for_seeds(file: Path) -> None:
    file.write_text('[reservoir]\nsize = "8KiB"')
    assert load(str(file)).reservoir.seed_reserve == 2048


@pytest.mark.parametrize(
    ("sample_size", "general"),
    # 1,024 bytes come at once when a source starts, and beside 31 that are too few for a sample
    [(32, 1056), (512, 1056), (1056, 1056), (1057, 1057), (8192, 8192)],
)
def test_the_general_part_holds_what_a_source_releases_at_once_and_a_sample(
    file: Path, sample_size: int, general: int
) -> None:
    def text(general: int) -> str:
        return f"sample_size = {sample_size}\n[reservoir]\nsize = 16384\nseed_reserve = {16384 - general}"

    file.write_text(text(general))
    assert load(str(file)).reservoir.seed_reserve == 16384 - general
    assert f", allowed: at least seed_reserve ({16384 - general + 1}B) plus " in refused(
        file, text(general - 1)
    )


def test_local_hosts_may_be_named(file: Path) -> None:
    uri = "qemu+unix:///session?socket=/tmp/x/libvirt-sock"
    file.write_text(f'[libvirt]\nuris = ["qemu+ssh://localhost/system", "{uri}"]')
    assert load(str(file)).libvirt.uris[1] == uri


# Where the control socket is


def test_control_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000/")
    assert config.default_control() == "/run/user/1000/netrng/hostd.sock"


def test_control_without_a_place(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    file.write_text("")
    with pytest.raises(ConfigError, match=r"^control: not root and XDG_RUNTIME_DIR is not set"):
        load(str(file))
    file.write_text('control = "/tmp/c.sock"')
    assert load(str(file)).control == "/tmp/c.sock"


def test_who_has_no_place_for_a_daemon_asks_the_systems(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netrng_hostd.config.file.DEFAULT_FILE", "/nonexistent/hostd.toml")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert config.control_of() == "/run/netrng/hostd.sock"
    file.write_text("sample_size = 64")
    assert config.control_of(str(file)) == "/run/netrng/hostd.sock"
    file.write_text('control = "/tmp/c.sock"')
    assert config.control_of(str(file)) == "/tmp/c.sock"
    file.write_text("sample_size = 1")
    with pytest.raises(ConfigError, match="sample_size"):
        config.control_of(str(file))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert config.control_of() == f"{tmp_path}/netrng/hostd.sock"


# Mistakes


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[libvirt]\ntransport = "tcp"', 'libvirt.transport: found "tcp", allowed: "socket" or "stream"'),
        (
            "[libvirt]\ntransprot = 1",
            'libvirt.transprot: unknown key, did you mean "transport"?; allowed: uris, ',
        ),
        ("sample_sise = 1", 'sample_sise: unknown key, did you mean "sample_size"?'),
        ("zzz = 1", "zzz: unknown key; allowed: sample_size, control, reservoir"),
        ('"a\\nb" = 1', r"a\nb: unknown key"),
        ("sample_size = 31", "sample_size: found 31, allowed: a whole number from 32 to 65536"),
        ("sample_size = 65537", "sample_size: found 65537"),
        ("sample_size = true", "sample_size: found true"),
        ("sample_size = 512.0", "sample_size: found 512.0"),
        ('sample_size = "512"', 'sample_size: found "512"'),
        ("sample_size = 2024-01-01", 'sample_size: found "2024-01-01"'),
        (
            'control = "hostd.sock"',
            'control: found "hostd.sock", allowed: an absolute path of at most 107 bytes',
        ),
        (f'control = "/{"x" * 107}"', 'control: found "/xxx'),
        ('control = "/a\\u0000b"', "control: found"),
        ("control = 3", "control: found 3"),
        ("[reservoir]\nsize = 4095", "reservoir.size: found 4095B, allowed: 4KiB to 64MiB"),
        ('[reservoir]\nsize = "65MiB"', "reservoir.size: found 65MiB"),
        ('[reservoir]\nsize = "4 pints"', "reservoir.size: found size '4 pints'; allowed: bytes as"),
        ("[reservoir]\nsize = -1", "reservoir.size: found size -1; allowed: bytes as"),
        ("reservoir = 3", "reservoir: found 3, allowed: a table, [reservoir]"),
        (
            "[reservoir]\nseed_reserve = 65536",
            "reservoir.size: found 64KiB, allowed: at least seed_reserve (64KiB) plus",
        ),
        ("[libvirt]\nuris = [3]", "libvirt.uris: found [3], allowed: an array of libvirt URIs"),
        ('[libvirt]\nuris = "qemu:///system"', 'libvirt.uris: found "qemu:///system", allowed: an array'),
        ('[libvirt]\nuris = ["a:///", "a:///"]', 'libvirt.uris: found "a:///" twice'),
        ('[libvirt]\nuris = ["system"]', 'libvirt.uris[0]: found "system", allowed: a libvirt URI'),
        ('[libvirt]\nuris = ["qemu://[/system"]', 'libvirt.uris[0]: found "qemu://[/system"'),
        (
            '[libvirt]\nuris = ["qemu:///system", "qemu+tls://far/system"]',
            'libvirt.uris[1]: found "qemu+tls://far/system", allowed: a URI of this host, or transport',
        ),
        ("[libvirt]\ntrust_metadata = 1", "libvirt.trust_metadata: found 1, allowed: true or false"),
        ("[source]\nname = 'x'", "source: found a table, allowed: tables, each under its own [[source]]"),
        ("source = []", "source: found none, allowed: 1 to 16 [[source]]"),
        (
            "".join(f"[[source]]\nname = 's{n}'\npath = '/dev/s{n}'\n" for n in range(17)),
            "source: found 17, allowed: 1 to 16 [[source]]",
        ),
        ('[[source]]\nkind = "fifo"', "source[0].path: not found, but needed; allowed: an absolute path"),
        ('[[source]]\nkind = "egd"', "source[0].path: not found, but needed; allowed: an absolute path"),
        (
            '[[source]]\nkind = "egd"\npath = "/run/egd"\naddress = "localhost:708"',
            "source[0].address: found beside path, allowed: one of the two",
        ),
        (
            '[[source]]\nkind = "fifo"\npath = "/run/fifo"\naddress = "localhost:708"',
            'source[0].address: found with kind "fifo", allowed: with kind "egd" alone',
        ),
        *(
            (
                f'[[source]]\nkind = "egd"\naddress = "{address}"',
                f'source[0].address: found "{address}", allowed: a port of this host like "localhost:7777"',
            )
            for address in ("10.0.0.1:708", "egd.example:708", "127.0.0.1", "localhost:0", "[::1]:65536")
        ),
        (
            '[[source]]\nkind = "fifo"\npath = "/run/fifo"\nrng_current = "tpm-rng-0"',
            'source[0].rng_current: found with kind "fifo", allowed: with kind "device" alone',
        ),
        (
            '[[source]]\nrng_current = "a b"',
            'source[0].rng_current: found "a b", allowed: a name as in /sys/class',
        ),
        (
            '[[source]]\nkind = "fifo"\npath = "/run/fifo"\norigin = "the attic"',
            'source[0].origin: found with kind "fifo", allowed: with kind "egd" alone',
        ),
        (
            '[[source]]\nkind = "egd"\npath = "/run/egd"\norigin = "a\\u001bb"',
            'source[0].origin: found "a',
        ),
        ('[[serve]]\nname = "a"', "serve[0].path: not found, but needed; allowed: an absolute path"),
        ('[[serve]]\nname = "a b"\npath = "/run/a"', 'serve[0].name: found "a b", allowed: a name of'),
        (
            '[[serve]]\nname = "a"\npath = "/run/a"\n[[serve]]\nname = "a"\npath = "/run/b"',
            'serve[1].name: found "a", allowed: a name that no other serve has',
        ),
        (
            '[[serve]]\nname = "a"\npath = "/run/a"\n[[serve]]\nname = "b"\npath = "/run/a"',
            'serve[1].path: found "/run/a", allowed: a path that no other serve has',
        ),
        ('[[serve]]\nname = "a"\npath = "/run/*.egd"', 'serve[0].path: found "/run/*.egd", allowed: the'),
        ('[[serve]]\nname = "a"\npath = "/run/"', 'serve[0].path: found "/run/", allowed: the path of one'),
        (
            '[[serve]]\nname = "a"\npath = "/run/a"\n[[serve]]\nname = "b"\npath = "/run//a"',
            'serve[1].path: found "/run//a", allowed: a path that no other serve has',
        ),
        (
            '[[channel]]\nname = "vm"\npath = "/run/x/../a"\n[[serve]]\nname = "a"\npath = "/run/a"',
            'serve[0].path: found "/run/a", which is that of channel vm; allowed: another',
        ),
        (
            'control = "/run/a"\n[[serve]]\nname = "a"\npath = "/run/a"',
            'serve[0].path: found "/run/a", which is that of control; allowed: another',
        ),
        (
            '[[source]]\nkind = "egd"\npath = "/run/a"\n[[serve]]\nname = "a"\npath = "/run/a"',
            'serve[0].path: found "/run/a", which is that of source hwrng; allowed: another',
        ),
        (
            '[[channel]]\nname = "vm"\npath = "/run/a"\n[[serve]]\nname = "a"\npath = "/run/a"',
            'serve[0].path: found "/run/a", which is that of channel vm; allowed: another',
        ),
        (
            '[[channel]]\nname = "vm"\npath = "/run/a"\nkind = "ssh"',
            'channel[0].kind: found "ssh", allowed: "agent" or "egd"',
        ),
        ("[[source]]\nstall_timeout = 0.4", "source[0].stall_timeout: found 0.4, allowed: a number from 0.5"),
        ("[[source]]\ncredit = 0", "source[0].credit: found 0, allowed: true or false"),
        (
            "[[source]]\ncredit = false",
            'sources.policy: found "failover", and source hwrng with credit = false; allowed:',
        ),
        ('[[source]]\nkind = "usb"', 'source[0].kind: found "usb", allowed: "device" or "fifo"'),
        ('[[source]]\nkind = ["prng"]', 'source[0].kind: found ["prng"], allowed: "device" or "fifo"'),
        ("[[source]]\nkind = [{}]", "source[0].kind: found an array of tables"),
        ('[[source]]\nname = "a b"', 'source[0].name: found "a b", allowed: a name of letters'),
        ('[[source]]\npath = "hwrng"', 'source[0].path: found "hwrng", allowed: an absolute path'),
        (
            "[[source]]\nmin_entropy = 8.1",
            "source[0].min_entropy: found 8.1, allowed: a number from 0.5",
        ),
        ("[[source]]\nmin_entropy = nan", "source[0].min_entropy: found NaN"),
        ("[[source]]\nmin_entropy = true", "source[0].min_entropy: found true"),
        ("[[source]]\n[[source]]", 'source[1].name: found "hwrng", allowed: a name that no'),
        (
            "[[source]]\n[[source]]\nname = 'b'",
            'source[1].path: found "/dev/hwrng", allowed: one that no other source reads',
        ),
        (
            '[sources]\nmin_sources = 1',
            'sources.min_sources: found with policy "failover", allowed: with "xor" alone',
        ),
        (
            '[sources]\npolicy = "xor"',
            "sources.min_sources: found 2 (its default), allowed: at most as many as there are sources with "
            "credit, 1",
        ),
        (
            '[sources]\npolicy = "xor"\nmin_sources = 3',
            "sources.min_sources: found 3, allowed: at most as many as there are sources with credit, 1",
        ),
        (
            "[[source]]\n[[source]]\nname = 'b'\npath = '/dev/b'\n"
            "[reservoir]\nsize = '4KiB'\nseed_reserve = '2KiB'",
            "reservoir.size: found 4KiB, allowed: at least seed_reserve (2KiB) plus each source's start-up",
        ),
        ('[sources]\npolicy = "best"', 'sources.policy: found "best", allowed: "failover"'),
        ("[[quota]]\nmatch = ['*']", "quota[0].name: not found, but needed; allowed: a name"),
        ("[[quota]]\nname = 'a'", "quota[0].match: found [], allowed: an array of patterns"),
        ("[[quota]]\nnmae = 'a'\nmatch = ['*']", 'quota[0].nmae: unknown key, did you mean "name"?'),
        ("[[quota]]\nname = 'a'\nmatch = ['']", 'quota[0].match: found [""], allowed: an array of patterns'),
        (
            "[[quota]]\nname = 'a'\nmatch = ['*']\nreservation = 'fast'",
            "quota[0].reservation: found rate 'fast'; allowed: bytes per second as 100",
        ),
        (
            "[[quota]]\nname = 'a'\nmatch = ['*']\nweight = 0",
            "quota[0].weight: found weight 0; allowed",
        ),
        ("[[quota]]\nname = 'a'\nmatch = ['*']\nlimit = 0", "quota[0].limit: found limit 0; allowed:"),
        ("[[quota]]\nname = 'a'\nmatch = ['*']\nburst = 1.5", "quota[0].burst: found size 1.5; allowed:"),
        ("[[quota]]\nname = 'a'\nmatch = ['*']\nburst = 63", "quota 'a': burst is 63B; allowed: 64B to 1GiB"),
        (
            "[[quota]]\nname = 'a'\nmatch = ['*']\nmax_weight = 0",
            "quota[0].max_weight: found weight 0; allowed: a whole number from 1 to 10000, or \"none\"",
        ),
        (
            "[[quota]]\nname = 'a'\nmatch = ['*']\nmax_limit = 'off'",
            "quota[0].max_limit: found rate 'off'; allowed:",
        ),
        ("[[quota]]\nname = 'a'\nmatch = ['*']\nmax_burst = 63", "quota 'a': max_burst is 63B; allowed: 64B"),
        (
            "[[quota]]\nname = 'a'\nmatch = ['*']\nreservation = 2\nlimit = 1",
            "quota 'a': reservation 2B/s exceeds limit 1B/s; allowed: a reservation up to the limit",
        ),
        (
            "[[quota]]\nname = 'a'\nmatch = ['x']\nreservation = 2\n"
            "[[quota]]\nname = 'b'\nmatch = ['*']\nlimit = 1",
            "quota 'a': reservation 2B/s exceeds the limit 1B/s inherited from 'b'",
        ),
        (
            "[[quota]]\nname = 'a'\nmatch = ['x']\n[[quota]]\nname = 'a'\nmatch = ['y']",
            'quota[1].name: found "a", allowed: a name that no other quota has',
        ),
        *(
            (
                f"[[quota]]\nname = '{name}'\nmatch = ['*']",
                f'quota[0].name: found "{name}", allowed: a name other than "metadata" and "built-in", which',
            )
            for name in ("metadata", "built-in")
        ),
        ("[admission]\nheadroom = 0.91", "admission.headroom: found 0.91, allowed: a number from 0 to 0.9"),
        (
            '[admission]\npolicy = "maybe"',
            'admission.policy: found "maybe", allowed: "best-effort" or',
        ),
        (
            "[admission]\nmax_domains = 0",
            "admission.max_domains: found 0, allowed: a whole number from",
        ),
        ("[admission]\nmax_domains = true", "admission.max_domains: found true"),
        ("[admission]\nheadroom = false", "admission.headroom: found false"),
        ("[[channel]]\nname = 'a'", "channel[0].path: not found, but needed; allowed: an absolute path"),
        ("[[channel]]\nname = 'a'\npath = 'x'", 'channel[0].path: found "x", allowed: an absolute path'),
        ("[[channel]]\npath = '/x'", "channel[0].name: not found, but needed"),
        (
            "[[channel]]\nname='a'\npath='/x'\n[[channel]]\nname='a'\npath='/y'",
            'channel[1].name: found "a", allowed: a name that no other channel has',
        ),
        (
            "[[channel]]\nname='a'\npath='/x'\n[[channel]]\nname='b'\npath='/x'",
            'channel[1].path: found "/x", allowed: a path that no other channel has',
        ),
        (
            "[[channel]]\nname='a'\npath='/x/*'\nkind='device'",
            'channel[0].kind: found "device", allowed: "agent" or "egd"',
        ),
        (
            "[[channel]]\nname='a*'\npath='/x/*'",
            'channel[0].name: found "a*", allowed: a name of letters',
        ),
        (
            "[[channel]]\nname='a'\npath='*.netrng'",
            'channel[0].path: found "*.netrng", allowed: an absolute path',
        ),
        (
            "".join(f"[[channel]]\nname='a{n}'\npath='/{n}/*'\n" for n in range(MAX_PATTERNS + 1)),
            f'channel[{MAX_PATTERNS}].path: found "/{MAX_PATTERNS}/*", allowed: at most {MAX_PATTERNS} paths',
        ),
        ("a = 1\nb = ", "line 2, at the end: not TOML: "),
        ("a = 1\na = 2\n", "line 2, column 6: not TOML: "),
    ],
)
def test_mistakes(file: Path, text: str, error: str) -> None:
    assert refused(file, text).startswith(error)


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "0x8000000000000000", "-0x8000000000000001"])
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("sample_size = {}", "sample_size"),
        ("control = {}", "control"),
        ("[reservoir]\nsize = {}", "reservoir.size"),
        ("[libvirt]\nuris = [{}]", "libvirt.uris[0]"),
        ("[[source]]\nmin_entropy = {}", "source[0].min_entropy"),
        ("[[quota]]\nname = 'a'\nmatch = ['*']\nweight = {}", "quota[0].weight"),
    ],
)
def test_a_number_that_is_larger_than_tomls(file: Path, text: str, place: str, number: str) -> None:
    if number.startswith("-"):
        number = str(int(number, 0))  # TOML has no negative hexadecimal numbers
    told = refused(file, text.format(number))
    assert told == f"{place}: found a larger number, allowed: whole numbers of 64 bits, as TOML has them"


def test_a_number_of_thousands_of_digits(file: Path) -> None:
    told = refused(file, "sample_size = " + "1" * 5000)
    assert told.endswith("allowed: whole numbers of 64 bits, as TOML has them")
    assert len(told) < 150


def test_a_long_wrong_value_is_cut(file: Path) -> None:
    line = refused(file, f'[libvirt]\ntransport = "{"x" * 5000}"')
    assert "x…, allowed" in line
    assert len(line) < 200


def test_not_utf8(file: Path) -> None:
    file.write_bytes(b"# fine\nname = '\xff'")
    with pytest.raises(ConfigError, match=r"^hostd.toml: line 2: not UTF-8"):
        load(str(file))


def test_deep_nesting_is_one_line(file: Path) -> None:
    refused(file, "a = " + "[" * 100_000)


# The file itself


def test_a_named_file_must_exist(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"^hostd.toml: not found; allowed: a file that exists"):
        load(str(file))


def test_a_directory(file: Path) -> None:
    file.mkdir()
    with pytest.raises(ConfigError, match=r"^hostd.toml: cannot be read: Is a directory$"):
        load(str(file))


def test_permission_denied(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(_self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(ConfigError, match=r"^hostd.toml: permission denied; run as root"):
        load(str(file))


@pytest.mark.parametrize("pattern", ["uuid:", "uuid:zzz", "uuid: 8b1f", "uuid:web-1"])
def test_a_uuid_that_can_be_none(tmp_path: Path, pattern: str) -> None:
    path = tmp_path / "hostd.toml"
    path.write_text(f'[[quota]]\nname = "q"\nmatch = ["*", "{pattern}"]\n')
    with pytest.raises(ConfigError, match="match: found"):
        load(str(path))


def test_several_sources(tmp_path: Path) -> None:
    file = tmp_path / "hostd.toml"
    file.write_text(
        """
        [[source]]
        name = "tpm"
        rng_current = "tpm-rng-0"
        stall_timeout = 10
        [[source]]
        name = "noise"
        kind = "fifo"
        path = "/run/noise"
        min_entropy = 2.5
        [[source]]
        name = "far"
        kind = "egd"
        address = "[::1]:7777"
        [[source]]
        name = "near"
        kind = "egd"
        path = "/run/egd"
        credit = false
        [sources]
        policy = "xor"
        min_sources = 3
        """
    )
    config = load(str(file))
    assert config.sources == (
        SourceConfig("tpm", "device", "/dev/hwrng", rng_current="tpm-rng-0", stall_timeout=10.0),
        SourceConfig("noise", "fifo", "/run/noise", min_entropy=2.5),
        SourceConfig("far", "egd", "", "[::1]:7777"),
        SourceConfig("near", "egd", "/run/egd", credit=False),
    )
    places = [source.place for source in config.sources]
    assert places == ["/dev/hwrng", "/run/noise", "[::1]:7777", "/run/egd"]
    assert (config.policy, config.min_sources) == ("xor", 3)


def test_wildcards_are_a_channels_alone(file: Path) -> None:
    file.write_text(
        """
        control = "/run/*/hostd.sock"
        [[channel]]
        name = "pve"
        path = "/run/qemu-server/*.netrng"
        kind = "egd"
        [[channel]]
        name = "q"
        path = "/run/vm-?"
        [[channel]]
        name = "plain"
        path = "/run/vm-[1]"
        """
    )
    loaded = load(str(file))
    assert loaded.control == "/run/*/hostd.sock", "a star is a character like another there"
    assert loaded.channels[0] == ChannelConfig("pve", "/run/qemu-server/*.netrng", "egd")
    assert [channel.is_pattern for channel in loaded.channels] == [True, True, False]
