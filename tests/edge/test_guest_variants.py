# SPDX-License-Identifier: Apache-2.0
"""Telling one rngd from another, and the arguments that leave it one source: us."""

from __future__ import annotations

from pathlib import Path

import pytest

from netrng_guest import variants
from netrng_guest.variants import Judge

PATIENCE_S = 60
COMMON = ["-f", "-r", "/proc/self/fd/0", "-o", "/dev/urandom"]
HELP = {
    "rng-tools5": "-d, --no-drng=1|0  Do not use drng\n-n, --no-tpm=1|0\n",
    "rng-tools-debian": "-t, --feed-interval=n\n-T, --rng-timeout=n\n",
    "r6": "-x, --exclude=n\n-n, --include=n\n-l, --list\n",
    "r6 without a list": "-x, --exclude=n\n",
    "none": "usage: something else\n",
}
LIST = """\
Entropy sources that are available but disabled
4: NIST Network Entropy Beacon (nist)
8: Qrypt quantum entropy beacon (qrypt)
Available and enabled entropy sources:
0: Hardware RNG Device (hwrng)
2: Intel RDRAND Instruction RNG (rdrand)
5: JITTER Entropy generator (jitter)
9: Named pipe entropy input (namedpipe)
"""


def fake(folder: Path, help_text: str, version: str, listing: str = LIST, wait: str = "") -> str:
    path = folder / "rngd"
    path.write_text(
        "#!/bin/sh\n"
        f"case \"$1\" in --help) cat <<'E'\n{help_text}E\n;; --version) echo 'rngd {version}' >&2; exit 1;;\n"
        f"-l) {wait}\ncat <<'E'\n{listing}E\nexit 1;; esac\n"
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "version", "extra", "start_bytes"),
    [("rng-tools5", "5", ["-d", "1", "-n", "1"], 8), ("rng-tools-debian", "2.2", ["-T", "0"], 8)],
)
def test_by_its_own_help(tmp_path: Path, kind: str, version: str, extra: list[str], start_bytes: int) -> None:
    path = fake(tmp_path, HELP[kind], version)
    expected = variants.Variant(kind, version, [path, *COMMON, *extra], start_bytes)
    assert variants.identify(path, PATIENCE_S) == expected


def test_upstream_excludes_all_that_it_lists_but_hwrng(tmp_path: Path) -> None:
    path = fake(tmp_path, HELP["r6"], "6.17")
    found = variants.identify(path, PATIENCE_S)
    excluded = [word for name in ("jitter", "namedpipe", "nist", "qrypt", "rdrand") for word in ("-x", name)]
    assert found == variants.Variant("rng-tools6", "6.17", [path, *COMMON, *excluded], 24)


@pytest.mark.parametrize("trouble", ["no list", "empty", "slow"])
def test_upstream_without_a_usable_list(
    tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "LIST_S", 0.2)
    help_text = HELP["r6 without a list" if trouble == "no list" else "r6"]
    listing = "" if trouble == "empty" else LIST
    path = fake(tmp_path, help_text, "6.17", listing, "exec sleep 5" if trouble == "slow" else "")
    found = variants.identify(path, PATIENCE_S)
    assert found is not None
    assert found.argv == [path, *COMMON, "-x", "namedpipe", "-x", "rdrand"]


def test_something_else_of_that_name(tmp_path: Path) -> None:
    assert variants.identify(fake(tmp_path, HELP["none"], "1"), PATIENCE_S) is None
    assert variants.identify(str(tmp_path / "absent"), PATIENCE_S) is None
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    assert variants.identify(str(tmp_path / "text"), PATIENCE_S) is None


def test_one_that_takes_too_long_to_tell_is_none_that_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "rngd"
    path.write_text("#!/bin/sh\nexec sleep 300\n")
    path.chmod(0o755)
    with pytest.raises(variants.Slow, match="rngd has not told within 1 s what it is"):
        variants.identify(str(path), 1)


def test_one_that_does_not_tell_its_version_is_known_all_the_same(tmp_path: Path) -> None:
    path = fake(tmp_path, HELP["rng-tools5"], "5")
    text = Path(path).read_text().replace("--version) ", "--version) exec sleep 300; ")
    Path(path).write_text(text)
    # The help comes from a shell of its own, so a second is little for a machine that stands still.
    for seconds in (1, 4, 16, 64):
        try:
            found = variants.identify(path, seconds)
            break
        except variants.Slow:
            continue
    assert found is not None
    assert (found.kind, found.version) == ("rng-tools5", "?")


def test_looked_for_in_path_and_where_daemons_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "FOLDERS", (str(tmp_path / "sbin"),))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert variants.find_rngd() is None
    for name in ("sbin", "bin"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rngd").write_text("")
        assert variants.find_rngd() == (None if name == "sbin" else str(tmp_path / "sbin" / "rngd"))
        (tmp_path / name / "rngd").chmod(0o755)
        assert variants.find_rngd() == str(tmp_path / name / "rngd")


# --- what they say, word for word as they said it

BAD = "block failed FIPS test: 0x1f"


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("too many FIPS failures, disabling entropy source", "complaining"),
        ("Too many bad blocks, entropy source malfunction assumed", "complaining"),
        ("Too Slow: Disabling Hardware RNG Device", "complaining"),
        ("RNDADDENTROPY failed: Operation not permitted", "no-permission"),
    ],
)
def test_lines_that_condemn(line: str, state: str) -> None:
    judge = Judge()
    assert judge.heard(line) == (state, line)
    assert judge.verdict == (state, line)
    assert not judge.took_block()
    assert judge.heard(BAD) == (state, line), "a later line covers the reason up"
    assert judge.last_line == BAD


@pytest.mark.parametrize(
    "line",
    [
        "rngd 2.2 starting up...",
        "entropy feed to the kernel ready",
        "Disabling 7: PKCS11 Entropy generator (pkcs11)",
        "unable to adjust write_wakeup_threshold: Permission denied",
        "Exiting...",
    ],
)
def test_lines_that_mean_nothing(line: str) -> None:
    judge = Judge()
    assert judge.heard(line) is None
    judge.gave_block()
    assert judge.took_block()
    assert judge.last_line == line


@pytest.mark.parametrize("before", [True, False])
def test_a_rejection_counts_whether_it_comes_before_or_after_the_look_at_the_pipe(before: bool) -> None:
    judge = Judge()
    for n in range(3):
        judge.gave_block()
        if before:
            judge.heard(BAD)
        judge.took_block()
        if not before:
            judge.heard(BAD)
        assert (judge.verdict is not None) == (n == 2)


def test_two_good_blocks_make_up_for_a_bad_one() -> None:
    judge = Judge()
    for good in (False, True, False, True, True, False, True, False):
        judge.gave_block()
        judge.took_block()
        if not good:
            judge.heard(BAD)
    assert judge.verdict is None
    judge.gave_block()
    judge.took_block()
    assert judge.heard(BAD) == ("complaining", BAD)
    assert judge.verdict is not None
