# SPDX-License-Identifier: Apache-2.0
"""The gallery's delays, against a reading of the tests byte by byte and bit by bit; and its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from bench import gallery
from bench.faults import FAULTS
from bench.gallery import ALL, BEGIN, END, TESTS, Trial

from netrng_hostd.core.blocktest import block_cutoffs
from netrng_hostd.core.cutoffs import apt_cutoff, rct_cutoff
from netrng_hostd.core.health import APT_BITS, APT_BYTES, BLOCK, RCT

BROKEN = [name for name in FAULTS if name not in ("SHA-256 of a counter", "nothing wrong (the control)")]


def runs(found: bytes) -> Iterator[int]:
    length = 0
    for i, byte in enumerate(found):
        length = length + 1 if i and byte == found[i - 1] else 1
        yield length


def first_window(found: bytes, size: int, failed: Callable[[bytes], bool]) -> int | None:
    ends = range(size, len(found) + 1, size)
    return next((end for end in ends if failed(found[end - size : end])), None)


def too_often(window: bytes) -> bool:
    return window.count(window[0]) >= apt_cutoff(40, 8, 512)


def too_biased(window: bytes) -> bool:
    bits = "".join(f"{byte:08b}" for byte in window)
    return bits.count(bits[0]) >= apt_cutoff(40, 1, 1024)


def too_uneven(window: bytes) -> bool:
    low, high = block_cutoffs(40, 8)
    return not low < sum(count * count for count in Counter(window).values()) < high


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_test_alone_is_that_test(name: str, number: int) -> None:
    """Byte by byte and bit by bit, over what `run` says that it fed."""
    random, bound = Random(f"{name}, {number}"), 4000
    before = random.randbytes(1024 + random.randrange(512))
    found = before + b"".join(islice(FAULTS[name](random), 8))[:bound]
    offsets = {
        RCT: next((i for i, length in enumerate(runs(found), 1) if length >= rct_cutoff(40, 8)), None),
        APT_BYTES: first_window(found, 512, too_often),
        APT_BITS: first_window(found, 128, too_biased),
        BLOCK: first_window(found, 512, too_uneven),
    }
    wanted = {test: None if end is None else end - len(before) for test, end in offsets.items()}
    trial = gallery.run(name, number, bound=bound)
    seen = {test: delay for test, delay in wanted.items() if delay is not None}
    assert trial.delays == {ALL: min(seen.values(), default=None), **wanted}
    if seen:
        assert wanted[trial.raised_by] == trial.delays[ALL]
        alarm = len(before) + min(seen.values())
        assert trial.given_out == max(0, (alarm - 1) // 512 * 512 - len(before))


def test_what_is_not_seen_is_said_so() -> None:
    trial = gallery.run("SHA-256 of a counter", 0, bound=20_000)
    assert trial == Trial(dict.fromkeys((ALL, *TESTS)), "", None)
    assert gallery.row_of_all("x", [trial]) == "| x | > 1 MiB | > 1 MiB | > 1 MiB | all | all | none |"
    assert gallery.row_of_each("x", [trial]) == "| x | not seen | not seen | not seen | not seen |"


def test_quantiles_count_what_was_not_seen_as_longest() -> None:
    sizes = [None, *range(199, 0, -1)]
    assert [gallery.quantile(sizes, percent) for percent in (50, 99, 100)] == [100, 198, None]
    assert gallery.quantile([7], 50) == 7
    trials = [Trial({ALL: d, RCT: d, APT_BYTES: 9, APT_BITS: 9, BLOCK: 9}, RCT, 0) for d in sizes]
    assert gallery.row_of_each("x", trials).split("|")[2] == " 100 / 198 / > 1 MiB (seen in 99.5 %) "


def test_the_tables_go_between_the_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    trial = Trial({ALL: 6, RCT: 6, APT_BYTES: 8, APT_BITS: 9, BLOCK: None}, RCT, 0)
    monkeypatch.setattr(gallery, "measure_all", lambda _trials: {"stuck": [trial]})
    monkeypatch.setattr("sys.argv", ["gallery", str(page)])
    gallery.main()
    told = page.read_text()
    assert told.startswith(f"before\n{BEGIN}\n\nAll tests")
    assert told.endswith(f"\n\n{END}\nafter\n")
    assert gallery.between_markers(told) == gallery.tables({"stuck": [trial]})
    gallery.main()
    assert page.read_text() == told


def test_a_page_without_markers_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n")
    monkeypatch.setattr("sys.argv", ["gallery", str(page)])
    with pytest.raises(ValueError, match="substring not found"):
        gallery.main()
