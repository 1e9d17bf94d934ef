"""What all prompts of a set begin with, run through the model once.

A chat template puts the same system turn before every prompt, and it is often longer than the prompt.
Keys and values of a shared prefix are the same in every row, so they are made in one row and repeated;
gradients flow through them as through the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from surgery.model import Batch, Model


def shared_prefix(rows: Sequence[Sequence[int]], keep: int = 1) -> int:
    """How many tokens all rows begin with. The last `keep` tokens of the shortest row are left out."""
    first = rows[0]
    length = max(0, min(len(row) for row in rows) - keep)
    for row in rows:
        while row[:length] != first[:length]:
            length -= 1
    return length


def inputs_after(model: Model, prefix: Sequence[int], rows: Batch) -> dict[str, Any]:
    """Model inputs for rows that go on after a prefix; plain inputs if it is empty."""
    if not prefix:
        return {**rows.inputs(), "use_cache": False}
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=model.hf.config)
    ids = torch.tensor([list(prefix)], device=model.device)
    model.hf(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(len(rows.ids))
    mask = torch.cat([rows.mask.new_ones(len(rows.ids), len(prefix)), rows.mask], dim=1)
    return {
        "input_ids": rows.ids,
        "past_key_values": cache,
        "use_cache": True,
        "attention_mask": mask,
        "position_ids": rows.positions + len(prefix),
    }
