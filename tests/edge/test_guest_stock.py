# SPDX-License-Identifier: Apache-2.0
"""The agent's stock against the plainest model of it; spent bytes are gone from memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netrng_guest.stock import Stock


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=60))
def test_first_in_first_out_and_nothing_left_behind(steps: list[tuple[bool, int]]) -> None:
    stock, model, written = Stock(100), bytearray(), 0
    for put, n in steps:
        if put:
            data = bytearray((written + i) % 251 + 1 for i in range(n))
            written += n
            if len(model) + n > 100:
                with pytest.raises(ValueError, match=r"^\d+ bytes, room for \d+$"):
                    stock.put(data)
            else:
                stock.put(data)
                model += data
        else:
            spent = min(n, len(model))
            stock.drop(spent)
            del model[:spent]
        with stock.view() as view:
            assert bytes(view) == model
        assert len(stock) == len(model)
        assert len(stock._buffer) == 100
        assert sum(map(bool, stock._buffer)) == len(model), "a spent byte is still in memory"


def test_wipe_and_repr() -> None:
    stock = Stock(10)
    stock.put(bytearray(b"abc"))
    assert repr(stock) == "Stock(3 bytes)"
    assert stock.wipe() == 3
    assert not len(stock) and not any(stock._buffer)
