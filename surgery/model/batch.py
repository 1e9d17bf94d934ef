"""Texts to padded batches. Positions come from the mask, so padding changes no result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from surgery.model.model import Model


@dataclass(frozen=True)
class Batch:
    """Token ids (rows, tokens), mask (1 = a real token), and position ids derived from the mask."""

    ids: torch.Tensor
    mask: torch.Tensor

    @property
    def positions(self) -> torch.Tensor:
        return (self.mask.cumsum(-1) - 1).clamp_min(0)

    def inputs(self) -> dict[str, torch.Tensor]:
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            "position_ids": self.positions,
        }


def pad(rows: Sequence[Sequence[int]], model: Model, side: str = "right") -> Batch:
    """One batch out of rows of token ids, padded on the right (default) or left."""
    width = max(len(row) for row in rows)
    filler = model.tokenizer.pad_token_id or 0
    ids = torch.full((len(rows), width), filler, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, span] = torch.tensor(row, dtype=torch.long)
        mask[index, span] = 1
    return Batch(ids.to(model.device), mask.to(model.device))


def tokenize(model: Model, text: str, special: bool = True) -> list[int]:
    return model.tokenizer(text, add_special_tokens=special)["input_ids"]


def encode(model: Model, texts: Sequence[str], special: bool = True, side: str = "left") -> Batch:
    """Tokenize and pad. Left padding puts the last token of every row in the last column."""
    return pad([tokenize(model, text, special) for text in texts], model, side)


def by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, each of about `tokens` tokens with its padding."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[index] > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
