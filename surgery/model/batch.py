"""Texts to padded batches. Positions come from the mask, so padding changes no result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from surgery.errors import SurgeryError
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


def check_length(model: Model, rows: Sequence[Sequence[int]], more: int = 0) -> None:
    """Raises SurgeryError for a row without tokens, or with none of the model's positions left for the
    `more` tokens behind it.

    Only learned positions run out; rotary ones go on past the length they were trained at.
    """
    if not all(rows):
        raise SurgeryError("an empty prompt: there is nothing to go on from")
    longest = max(map(len, rows), default=0)
    if model.architecture.positions is not None and longest + more > model.max_positions:
        behind = f" and {more} are to follow" if more else ""
        raise SurgeryError(
            f"a prompt has {longest} tokens{behind}: the model takes {model.max_positions}; shorten it"
        )


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
