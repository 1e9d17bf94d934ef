"""How likely a model finds each of many answers to the same prompt.

The numbers are those of `surgery.audit.score`, made in another order: a rung asks one prompt about five or
six answers, so the prompt goes through the model once and what it leaves in the attention cache serves all
of them. The first token of every answer is read off the prompt's last position; the others need only rows of
two or three tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from surgery.model import Model, by_length, pad
from surgery.progress import meter

_BATCH_TOKENS = 1024
_ROWS = 48  # continuations at once: their logits are rows x tokens x vocabulary
Ids = tuple[int, ...]


@torch.no_grad()
def answer_means(
    model: Model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], label: str
) -> list[float]:
    """Mean log-probability (nats a token) of each answer after its prompt, both as token ids."""
    answers: dict[Ids, dict[Ids, float]] = {}
    for prompt, answer in pairs:
        answers.setdefault(tuple(prompt), {})[tuple(answer)] = 0.0
    prompts = list(answers)
    with meter(label, len(prompts)) as progress:
        for index in by_length([len(p) for p in prompts], _BATCH_TOKENS):
            _score(model, [prompts[i] for i in index], [answers[prompts[i]] for i in index])
            progress.advance(len(index))
    return [answers[tuple(p)][tuple(a)] / len(a) for p, a in pairs]


def _score(model: Model, prompts: list[Ids], answers: list[dict[Ids, float]]) -> None:
    """Fill in the total log-probability of every answer of a batch of prompts."""
    from transformers import DynamicCache

    longer = [(line, a) for line, mine in enumerate(answers) for a in mine if len(a) > 1]
    batch = pad(prompts, model, side="left")
    cache: Any = DynamicCache(config=model.hf.config) if longer else None
    inputs = {**batch.inputs(), "past_key_values": cache, "use_cache": cache is not None}
    first = model.hf(**inputs, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
    for line, wanted in enumerate(answers):
        for answer in wanted:
            wanted[answer] = float(first[line, answer[0]])
    for begin in range(0, len(longer), _ROWS):
        part = longer[begin : begin + _ROWS]
        lines = torch.tensor([line for line, _ in part], device=model.device)
        rows = pad([answer[:-1] for _, answer in part], model)
        mine = copy.deepcopy(cache) if begin + _ROWS < len(longer) else cache
        mine.batch_select_indices(lines)
        logits = model.hf(
            input_ids=rows.ids,
            attention_mask=torch.cat([batch.mask[lines], rows.mask], dim=1),
            position_ids=rows.positions + batch.mask[lines].sum(-1, keepdim=True),
            past_key_values=mine,
            use_cache=True,
        ).logits.float()
        logits = logits.log_softmax(-1)
        for row, (line, answer) in enumerate(part):
            rest = torch.tensor(answer[1:], device=model.device)
            told = logits[row, : len(rest)].gather(-1, rest[:, None]).cpu()  # MPS has no float64
            answers[line][answer] += float(told.double().sum())
