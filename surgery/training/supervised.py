"""Supervised fine-tuning of a LoRA: cross-entropy on the answers' tokens, and on nothing else.

What must not change may be held by *anchors*: on their tokens the loss is KL(model || with adapter)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from surgery.errors import SurgeryError
from surgery.model import Model, chat, continuation_ids, pad
from surgery.model.hooks import argument, hooks
from surgery.progress import meter
from surgery.training.lora import LoRA
from surgery.training.prefix import inputs_after, shared_prefix

E = TypeVar("E", bound="Example")

# Examples of like length are looked for among those of this many batches.
_WINDOW = 4
# What a nat of an anchor's KL weighs, against one of what is to be learned.
_ANCHOR = 2.0


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of its answer, the token that ends the turn included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def examples(
    model: Model, pairs: Sequence[tuple[str, str]], finished: Sequence[bool] | None = None
) -> list[Example]:
    """Prompts and answers in the chat template.

    finished: whether each answer is whole; one that was cut off gets no end-of-turn token, or the
    model would learn to stop in the middle.
    """
    end = model.tokenizer.eos_token_id
    made = []
    for number, (prompt, answer) in enumerate(pairs):
        head, tail = continuation_ids(model, chat(model, prompt), answer)
        whole = finished is None or finished[number]
        made.append(
            Example(tuple(head), tuple(tail) + ((end,) if whole and end is not None else ()))
        )
    return made


def answer_logits(
    model: Model, batch: Sequence[Example], shared: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (answer tokens of all rows, vocabulary) that predict each answer token, and the tokens.

    Only these positions reach the output head: over a whole sequence the logits would cost more than
    the rest of the model. The first `shared` tokens, the same in every row, go through the model once;
    gradients flow through them as through the rest.
    """
    rows = pad([[*e.prompt[shared:], *e.answer] for e in batch], model)
    where = torch.zeros_like(rows.mask, dtype=torch.bool)
    for line, example in enumerate(batch):
        begin = len(example.prompt) - shared - 1
        where[line, begin : begin + len(example.answer)] = True

    def select(_m: nn.Module, args: Any, kwargs: Any) -> Any:
        return (argument(args, kwargs)[where][None],), {}

    # The prefix runs first, without the hook: it has no answer tokens to select.
    inputs = inputs_after(model, batch[0].prompt[:shared], rows)
    with hooks() as attach:
        attach.pre(model.head, select)
        logits = model.hf(**inputs).logits[0]
    targets = torch.tensor([t for e in batch for t in e.answer], device=logits.device)
    return logits, targets


def train(
    model: Model,
    lora: LoRA,
    data: Sequence[Example],
    *,
    anchors: Sequence[Example] = (),
    epochs: float = 2,
    learning_rate: float = 5e-4,
    batch: int = 8,
    warmup: int = 10,
    seed: int = 0,
) -> list[float]:
    """Train the adapter; the model's own weights stay frozen. Returns the loss of every step.

    AdamW, gradient norm clipped to 1, learning rate warmed up and then lowered along a cosine to 0.
    anchors: where the model is to predict what it predicts without the adapter; every step has one, in turn.

    Raises:
        SurgeryError: nothing to train on, or the loss stops being a number.
    """
    if not data:
        raise SurgeryError("no examples to train on")
    order = random.Random(seed)
    total = max(1, round(epochs * math.ceil(len(data) / batch)))
    queue: list[list[Example]] = []

    def loss(step: int) -> torch.Tensor:
        if not queue:
            queue.extend(batches(data, batch, order))
        loss = _learning(model, lora, queue.pop())
        if anchors:
            loss = loss + _ANCHOR * _moved(model, lora, anchors[step % len(anchors)])
        return loss

    return descend(lora, loss, total, learning_rate, warmup)


def descend(
    lora: LoRA,
    loss_of: Callable[[int], torch.Tensor],
    steps: int,
    learning_rate: float,
    warmup: int = 10,
    label: str = "training",
) -> list[float]:
    """Lower a loss, given by step, with AdamW as `train` says. Returns the loss of every step.

    Raises:
        SurgeryError: the loss stops being a number.
    """
    optimizer = torch.optim.AdamW(lora.parameters(), lr=learning_rate, weight_decay=0.0)
    losses: list[float] = []
    with meter(label, steps) as progress, torch.enable_grad():
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(step, steps, warmup)
            loss = loss_of(step)
            if not torch.isfinite(loss):
                raise SurgeryError(
                    f"the loss is {float(loss)} at step {step}: lower the learning rate"
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(lora.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            progress.note(f"loss {losses[-1]:.3f}")
            progress.advance()
    return losses


def _learning(model: Model, lora: LoRA, rows: Sequence[Example]) -> torch.Tensor:
    """Mean of -log p over the answers' tokens."""
    shared = shared_prefix([example.prompt for example in rows])
    with lora.on(model):
        logits, targets = answer_logits(model, rows, shared)
    return nn.functional.cross_entropy(logits.float(), targets)


def _moved(model: Model, lora: LoRA, anchor: Example) -> torch.Tensor:
    """Mean KL(model || with adapter) over an anchor's tokens."""
    with torch.no_grad():
        before = answer_logits(model, [anchor])[0].float().log_softmax(-1)
    with lora.on(model):
        now = answer_logits(model, [anchor])[0].float().log_softmax(-1)
    return (before.exp() * (before - now)).sum(-1).mean()


def batches(data: Sequence[E], size: int, order: random.Random) -> list[list[E]]:
    """Every example once, in random batches of like length: padding costs as much as any other token."""
    shuffled = order.sample(list(data), len(data))
    found = []
    for begin in range(0, len(shuffled), _WINDOW * size):
        near = shuffled[begin : begin + _WINDOW * size]
        near.sort(key=lambda e: len(e.prompt) + len(e.answer))
        found += [near[i : i + size] for i in range(0, len(near), size)]
    return order.sample(found, len(found))


def _schedule(step: int, total: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * done))
