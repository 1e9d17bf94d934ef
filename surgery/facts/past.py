"""Keys and values of what stands before the subject, and nothing that rows share is run twice.

A batch of facts meets the same few prefixes again and again: of 15 tokens before a subject, 11 are those
of a prefix that all facts have in common. Rows are grouped by how they begin; the longest beginning of
each group is run once, and each row goes on from there with what is its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from surgery.facts.partition import partition
from surgery.model import Model, pad
from surgery.model.hooks import Stop, hooks

# Rows with this many first tokens in common are a group.
SHARED = 4


@dataclass(frozen=True)
class Past:
    """By layer, keys and values (rows, heads, width, head_dim), and which columns are real (rows, width).

    Every row ends in the last column: models with a sliding window count columns. Columns that are not
    real are zero.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    real: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> Past:
        """Some rows (a mask, or indices), as wide as the longest of them."""
        real = self.real[rows]
        spare = max(real.shape[1] - max(int(real.sum(1).max()), 1), 0)
        layers = [(k[rows][:, :, spare:], v[rows][:, :, spare:]) for k, v in self.layers]
        return Past(layers, real[:, spare:])

    def cache(self) -> DynamicCache:
        """To be gone on from. A fresh one over detached tensors every time: one that was used keeps the
        graph it was used in alive."""
        cache = DynamicCache()
        for layer, (k, v) in enumerate(self.layers):
            cache.update(k, v, layer)
        return cache


@torch.no_grad()
def read_past(model: Model, rows: Sequence[tuple[int, ...]]) -> Past:
    """Run rows of token ids, any of which may be empty."""
    starts, groups = beginnings(rows)
    nothing = Past([], torch.zeros(len(starts), 0, dtype=torch.bool, device=model.device))
    begun = _extended(model, nothing, starts)[torch.tensor(groups, device=model.device)]
    return _extended(
        model, begun, [row[len(starts[g]) :] for row, g in zip(rows, groups, strict=True)]
    )


def beginnings(rows: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The starts to run, and which of them each row goes on from. A row by itself is its own start."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row[:SHARED], []).append(index)
    starts: list[tuple[int, ...]] = []
    number = [0] * len(rows)
    for members in groups.values():
        # What the first and the last in order have in common, all between them have.
        low, high = min(rows[i] for i in members), max(rows[i] for i in members)
        same = next(
            (n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low)
        )
        for index in members:
            number[index] = len(starts)
        starts.append(low[:same])
    return starts, number


def _extended(model: Model, past: Past, rows: Sequence[tuple[int, ...]]) -> Past:
    """A past, and rows of tokens that follow it, in batches of like length."""
    if past.layers and not any(rows):
        return past
    batches = partition([len(row) for row in rows])
    parts = [
        _run(model, past[torch.tensor(b, device=model.device)], [rows[i] for i in b])
        for b in batches
    ]
    width = max(part.real.shape[1] for part in parts)
    back = torch.argsort(torch.tensor(sum(batches, []), device=model.device))

    def joined(tensors: Iterable[torch.Tensor], column: int) -> torch.Tensor:
        """All rows in their order, moved to the right."""
        after = (0, 0) * (-1 - column)
        wide = [nn.functional.pad(t, (*after, width - t.shape[column], 0)) for t in tensors]
        return torch.cat(wide)[back]

    layers = [
        (joined((k for k, _ in layer), -2), joined((v for _, v in layer), -2))
        for layer in zip(*(part.layers for part in parts), strict=True)
    ]
    return Past(layers, joined((part.real for part in parts), -1))


def _run(model: Model, past: Past, rows: Sequence[tuple[int, ...]]) -> Past:
    """One batch of them; no logits."""
    # A row of no tokens is run as one that is never looked at.
    batch = pad([row or (0,) for row in rows], model)
    own = torch.tensor([len(row) for row in rows], device=model.device)
    before = past.real.sum(1)
    cache = past.cache()

    def stop(*_: object) -> None:
        raise Stop

    with hooks() as attach:
        attach.pre(model.final_norm, stop)
        model.hf(
            input_ids=batch.ids,
            attention_mask=torch.cat([past.real.long(), batch.mask], dim=1),
            position_ids=before[:, None] + torch.arange(batch.ids.shape[1], device=own.device),
            past_key_values=cache,
            use_cache=True,
        )
    return _ending(cache, past.real.shape[1] + own, before + own)


def _ending(cache: DynamicCache, end: torch.Tensor, length: torch.Tensor) -> Past:
    """Of each row of a cache, the `length` columns before column `end`, moved to the right."""
    # One column at least, so that there is something to go on from.
    width = max(int(length.max()), 1)
    column = torch.arange(width, device=end.device)
    real = column >= width - length[:, None]
    source = (end[:, None] - width + column).clamp_min(0)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        index = source[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
        return tensor.gather(2, index).masked_fill(~real[:, None, :, None], 0)

    kept: list[Any] = list(cache.layers)
    return Past([(moved(e.keys), moved(e.values)) for e in kept], real)
