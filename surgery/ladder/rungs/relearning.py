"""Relearning: a few steps on half of the old facts. Does the other half come back, unasked?

Facts that are tested are never trained on, and a subject is in one half only (Deeb & Roger, arXiv
2410.08827). Training also teaches what answers look like, so the same is done with made-up subjects.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence

import torch
from torch import nn

from surgery.audit.score import pair_ids
from surgery.ladder.asking import direct
from surgery.ladder.items import Item
from surgery.ladder.rung import NOTHING, Family, Score, Setting
from surgery.model import Model
from surgery.progress import meter
from surgery.training import Example, LoRA
from surgery.training.supervised import answer_logits

_BATCH = 8
_LEARNING_RATE = 2e-4  # higher ones break what the base knows of the other half
_RANK = 8
_LEARNT = 0.01


def relearn(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """LoRA on every matrix, as hooks: the model's own weights are never written to."""
    found = {f"relearn{steps}": [NOTHING] * len(items) for steps in setting.steps}
    for fold in (0, 1):
        tested = [i for i, f in enumerate(setting.fold) if f == fold]
        taught = [items[i] for i, f in enumerate(setting.fold) if f != fold]
        if not tested or not taught:
            continue
        asked = [items[i] for i in tested]
        for steps, scores in _train(model, taught, asked, setting).items():
            for index, score in zip(tested, scores, strict=True):
                found[f"relearn{steps}"][index] = score
    return found


def _train(
    model: Model, taught: Sequence[Item], asked: Sequence[Item], setting: Setting
) -> dict[int, list[Score]]:
    data = [
        Example(tuple(head), tuple(tail))
        for head, tail in (pair_ids(model, item.text, item.old) for item in taught)
    ]
    order = random.Random(setting.seed)
    lora = LoRA(model, rank=_RANK, alpha=2 * _RANK, seed=setting.seed)
    optimizer = torch.optim.AdamW(lora.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
    found: dict[int, list[Score]] = {}
    batches = math.ceil(len(data) / _BATCH)
    last = max(setting.steps)
    losses: deque[float] = deque(maxlen=batches)  # of one pass over the data
    queue: list[list[Example]] = []
    with lora.on(model), meter("relearning", last) as progress:
        for step in range(1, last + 1):
            if not queue:
                shuffled = order.sample(data, len(data))
                queue = [shuffled[i::batches] for i in range(batches)]
            with torch.enable_grad():
                logits, targets = answer_logits(model, queue.pop())
                loss = nn.functional.cross_entropy(logits.float(), targets)
                optimizer.zero_grad()
                loss.backward()
            nn.utils.clip_grad_norm_(lora.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            progress.advance()
            if step in setting.steps:
                found[step] = direct(model, asked)
            if len(losses) == batches and max(losses) < _LEARNT:
                break
        # What is known by heart teaches nothing more: later looks would see the same.
        rest = [step for step in setting.steps if step not in found]
        if rest:
            found.update(dict.fromkeys(rest, direct(model, asked)))
    return found


def _names(setting: Setting) -> tuple[str, ...]:
    return tuple(f"relearn{steps}" for steps in setting.steps)


FAMILIES = (
    Family(
        {
            "relearn5": "5 steps of training on other old answers",
            "relearn20": "20 steps of training on other old answers",
            "relearn100": "100 steps of training on other old answers",
        },
        relearn,
        trained=True,
        only=_names,
    ),
)
