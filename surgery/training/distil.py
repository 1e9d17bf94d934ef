"""Distillation into a low-rank change: a model learns to answer each prompt as a teacher did.

The teacher is the model itself under some condition (unchanged, or with a direction taken out), so nothing
has to be written by hand. What is learned is not only the words it said but how likely it found others:

    loss = mean over prompts of  w * mean over the answer's tokens of  KL(teacher || model with the change),

with the distributions over the teacher's likeliest tokens and all the rest taken as one more (which is a
lower bound of the whole KL, and tight where the teacher is sure).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.training.lora import LoRA
from surgery.training.prefix import shared_prefix
from surgery.training.supervised import Example, answer_logits, batches, descend

# Tokens of the teacher's distribution that are kept one by one.
_LIKELIEST = 128
BATCH = 16


@dataclass(frozen=True, eq=False)
class Lesson(Example):
    """An answer's teacher: at each of its tokens the likeliest ids, (tokens, k), and their log-probabilities.
    weight: what the prompt counts."""

    ids: torch.Tensor
    logprobs: torch.Tensor
    weight: float = 1.0


def lesson(example: Example, logprobs: torch.Tensor, weight: float = 1.0) -> Lesson:
    """From the teacher's log-probabilities of an answer's tokens, (tokens, vocabulary)."""
    top = logprobs.topk(min(_LIKELIEST, logprobs.shape[-1] - 1))
    return Lesson(example.prompt, example.answer, top.indices, top.values, weight)


def divergence(logits: torch.Tensor, lesson: Lesson) -> torch.Tensor:
    """Mean KL(teacher || model) over a lesson's tokens; logits (tokens, vocabulary). Nats."""
    mine = logits.float().log_softmax(-1).gather(-1, lesson.ids)
    theirs = lesson.logprobs
    kept = (theirs.exp() * (theirs - mine)).sum(-1)
    rest, my_rest = ((1 - x.exp().sum(-1)).clamp_min(1e-6) for x in (theirs, mine))
    return (kept + rest * (rest.log() - my_rest.log())).mean()


def distil(
    model: Model,
    lora: LoRA,
    data: Sequence[Lesson],
    *,
    steps: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train the adapter on the lessons, 16 a step; the model's own weights stay as they are.

    Returns the loss of every step.

    Raises:
        SurgeryError: no lessons, or the loss stops being a number.
    """
    if not data:
        raise SurgeryError("no lessons to learn from")
    order = random.Random(seed)
    mean = sum(lesson.weight for lesson in data) / len(data)
    queue: list[list[Lesson]] = []

    def loss(_step: int) -> torch.Tensor:
        if not queue:
            queue.extend(batches(data, BATCH, order))
        rows = queue.pop()
        shared = shared_prefix([lesson.prompt for lesson in rows])
        with lora.on(model), _quick(model):
            logits, _ = answer_logits(model, rows, shared)
        pieces = logits.split([len(lesson.answer) for lesson in rows])
        pairs = zip(pieces, rows, strict=True)
        return torch.stack([divergence(x, y) * y.weight / mean for x, y in pairs]).mean()

    return descend(lora, loss, steps, learning_rate, label="distilling")


def _quick(model: Model) -> AbstractContextManager[Any]:
    """Half the time of float32 on a CPU that multiplies bfloat16. The factors and the loss stay float32."""
    able = model.device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=able)
