"""Greedy answers to many prompts, each row leaving the batch as soon as it has ended.

A refusal is over after a dozen tokens while an answer runs to the limit, so a batch that waits for its
longest row spends most of its time on rows that are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from surgery.model import Model, by_length, check_length, end_tokens, pad, tokenize
from surgery.model.run import is_templated
from surgery.progress import meter
from surgery.training.prefix import inputs_after, shared_prefix


@dataclass(frozen=True)
class Answer:
    """text: without special tokens. finished: it ended by itself, not at the limit. tokens: its length."""

    text: str
    finished: bool
    tokens: int


@torch.no_grad()
def answer(
    model: Model,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    batch_tokens: int = 8192,
    label: str = "answering",
) -> list[Answer]:
    """Greedy answers to prompts that are already in the chat template."""
    rows = [tokenize(model, p, not is_templated(model, p)) for p in prompts]
    check_length(model, rows, max_new_tokens)
    found: list[Answer | None] = [None] * len(rows)
    with meter(label, len(rows)) as progress:
        for index in by_length([len(r) + max_new_tokens for r in rows], batch_tokens):
            spoken = _decode(model, [rows[i] for i in index], max_new_tokens)
            for i, (ids, finished) in zip(index, spoken, strict=True):
                text = model.tokenizer.decode(ids, skip_special_tokens=True).strip()
                found[i] = Answer(text, finished, len(ids))
            progress.advance(len(index))
    return [a for a in found if a is not None]


def _decode(model: Model, rows: list[list[int]], limit: int) -> list[tuple[list[int], bool]]:
    """Token ids after each row, and whether an end token stopped them (it is not among the ids)."""
    from transformers import DynamicCache

    shared = shared_prefix(rows)
    batch = pad([row[shared:] for row in rows], model, side="left")
    inputs = inputs_after(model, rows[0][:shared], batch)
    if not shared:
        inputs |= {"past_key_values": DynamicCache(config=model.hf.config), "use_cache": True}
    cache: Any = inputs["past_key_values"]
    mask, positions = inputs["attention_mask"], inputs["position_ids"]
    ends = end_tokens(model)
    spoken: list[list[int]] = [[] for _ in rows]
    finished = [False] * len(rows)
    alive = list(range(len(rows)))
    for step in range(limit):
        output = model.hf(**inputs, logits_to_keep=1)
        chosen = output.logits[:, -1].argmax(-1)
        staying = []
        for line, token in enumerate(chosen.tolist()):
            if token in ends:
                finished[alive[line]] = True
            else:
                spoken[alive[line]].append(token)
                staying.append(line)
        if not staying or step == limit - 1:
            break
        if len(staying) < len(alive):
            keep = torch.tensor(staying, device=model.device)
            cache.batch_select_indices(keep)
            chosen, mask, positions = chosen[keep], mask[keep], positions[keep]
            alive = [alive[line] for line in staying]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        positions = positions[:, -1:] + 1
        inputs = {
            "input_ids": chosen[:, None],
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
        }
    return [(spoken[i], finished[i]) for i in range(len(rows))]
