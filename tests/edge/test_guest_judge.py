# SPDX-License-Identifier: Apache-2.0
"""What the three programs named rngd say, word for word as they said it, and what follows."""

from __future__ import annotations

import pytest

from netrng_guest.judge import Judge

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
