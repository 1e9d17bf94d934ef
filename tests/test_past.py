"""Keys and values before a subject: shared beginnings are run once and change nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from surgery.facts.past import beginnings, read_past

TOKENS = st.lists(st.integers(1, 3), max_size=9).map(tuple)


@settings(max_examples=200, deadline=None)
@given(st.lists(TOKENS, min_size=1, max_size=12))
def test_every_row_goes_on_from_its_own_beginning(rows):
    starts, number = beginnings(rows)
    for row, n in zip(rows, number, strict=True):
        assert row[: len(starts[n])] == starts[n]
    # No token of a start is one that two of its rows do not share, and a row alone has no rest.
    for n, start in enumerate(starts):
        mine = {row for row, k in zip(rows, number, strict=True) if k == n}
        assert len({row[: len(start) + 1] for row in mine}) > 1 or mine == {start}


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_values_are_those_of_each_row_alone(tiny_model, family):
    model = tiny_model(family)
    long = tuple(range(5, 25))
    rows = [long + (20, 21), (), long, long + (22,), (7,), (9, 8, 7, 6, 5, 4), long[:5] + (30,)]
    past = read_past(model, rows)
    assert past.real.sum(1).tolist() == [len(row) for row in rows]
    for index, row in enumerate(rows):
        if not row:
            continue
        cache = DynamicCache()
        model.hf(input_ids=torch.tensor([row]), past_key_values=cache, use_cache=True)
        one = past[torch.tensor([index])]
        assert one.real.all() and one.real.shape[1] == len(row)
        for (k, v), alone in zip(one.layers, cache.layers, strict=True):
            assert isinstance(alone, DynamicLayer)
            torch.testing.assert_close(k, alone.keys, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(v, alone.values, atol=1e-5, rtol=1e-4)


def test_some_rows_are_as_wide_as_the_longest_of_them(tiny_model):
    past = read_past(tiny_model("llama"), [(1, 2, 3, 4, 5), (6, 7), ()])
    short = past[torch.tensor([False, True, True])]
    assert short.real.tolist() == [[True, True], [False, False]]
    assert all(k.shape[2] == 2 and (k[1] == 0).all() for k, _ in short.layers)
