"""Rows read as a forest against rows read one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES

from surgery.audit.forest import fits, hidden_in_rows, plant
from surgery.audit.head import hidden_at
from surgery.model import Model

ROWS = st.lists(
    st.lists(st.integers(3, 6), min_size=1, max_size=12).map(tuple), min_size=1, max_size=40
)


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(1, 30))
def test_every_row_is_a_branch_and_nothing_is_read_twice(
    rows: list[tuple[int, ...]], most: int
) -> None:
    lines, where = plant(rows, most)
    assert set(where) == set(rows)
    for row, (number, nodes) in where.items():
        line = lines[number]
        assert [line.tokens[node] for node in nodes] == list(row)
        assert [line.depths[node] for node in nodes] == list(range(len(row)))
        sight = line.sight()
        # The last node sees the row, and nothing else.
        assert sight[nodes[-1]].nonzero()[:, 0].tolist() == sorted(nodes)
    for number, line in enumerate(lines):
        mine = [row for row, (of, _) in where.items() if of == number]
        assert len(line.tokens) == len({row[:k] for row in mine for k in range(1, len(row) + 1)})
        assert len(line.tokens) <= most or len(mine) == 1
    assert plant(list(reversed(rows)), most)[1] == where


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_states_are_those_of_rows_read_alone(tiny_model: Callable[..., Model], family: str) -> None:
    model = tiny_model(family)
    beginning = (9, 40, 12, 77)
    rows = [beginning, (*beginning, 5), (*beginning, 5, 6), (*beginning, 8, 9, 10), (30, 31), (9,)]
    wanted = [list(range(len(row))) for row in rows]
    expected = [
        hidden_at(model, [row], [places])[0] for row, places in zip(rows, wanted, strict=True)
    ]
    found, index = hidden_in_rows(model, rows, wanted)
    assert len(found) == 4 + 1 + 1 + 3 + 2  # distinct beginnings
    for row, places in zip(expected, index, strict=True):
        assert torch.allclose(found[places], row, rtol=1e-4, atol=1e-5)


def test_rows_longer_than_a_sliding_window_are_left_alone(
    tiny_model: Callable[..., Model],
) -> None:
    model = tiny_model("gemma3")
    window = model.hf.config.sliding_window
    assert fits(model, [(1,) * window]) and not fits(model, [(1,) * (window + 1)])
    assert fits(tiny_model("llama"), [(1,) * 500])
