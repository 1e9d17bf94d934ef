"""`sparing: distil`: the model teaches itself on which prompts a behaviour is to go.

Taking a direction out takes the behaviour away from every prompt; the model as it is shows it on all of them.
So the model is its own teacher twice over, and a low-rank change of the layers that decide learns to answer

    positive            as the model with the direction taken out does,
    spare, negative     as the model does,

where the loss is the divergence from the teacher's words (`training.distil`). Unlike a projection or a
rank-one shift this uses whatever tells the prompts apart, in all of these layers, and is held in place by
what it is to keep. With negative strength the first teacher has the behaviour added instead; a saved
direction brings it on in a model that does not show it by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from surgery.directions import Direction, difference_of_means
from surgery.directions.capture import frame
from surgery.directions.intervene import ablating, adding
from surgery.directions.select import FEWEST, START, select
from surgery.measure.answering import answer
from surgery.measure.sample import spread
from surgery.methods.solved import Solved, saved_direction
from surgery.model import Model, tokenize
from surgery.model.run import is_templated
from surgery.spec import AblateEdit, read_prompts
from surgery.training import Example, LoRA
from surgery.training.distil import BATCH, Lesson, distil, lesson
from surgery.training.prefix import shared_prefix
from surgery.training.supervised import answer_logits

# Where what is said is decided: above the words of the prompt, below the wording of the answer.
FIRST, LAST = 0.27, 0.6
RANK = 4
# Tokens of an answer that are learned: whether the behaviour is shown is said at once, and how to go on the
# model knows, unless it is to do what it does not do by itself.
TOKENS, TOKENS_ADDED = 2, 8
# Every prompt three times, and small sets oftener.
EPOCHS, FEWEST_STEPS = 3, 120
LEARNING_RATE = 1e-3
# Prompts of a set that a direction is looked for with, if none is given.
MOST = 200
# What strength 1 is of what was learned: on prompts it has not seen a change does less than on its own.
GAIN = 1.05
# What is spared counts more: to answer what must be refused is worse than still to refuse what need not be.
WEIGHTS = {"positive": 1.0, "spare": 2.5, "negative": 1.0}


def default_layers(n_layers: int) -> list[int]:
    """The middle of the model."""
    return list(range(round(FIRST * n_layers), max(round(LAST * n_layers), 1) + 1))[:n_layers]


def solve_distilled(part: AblateEdit, model: Model, seed: int) -> Solved:
    """Train the change. Strength scales it; which teacher it has is a matter of the sign.

    Raises:
        SurgeryError: a strength by layer, or another option that belongs to the orthogonal form.
    """
    sets = {name: read_prompts(getattr(part, name)) for name in WEIGHTS}
    strength = part.strength
    assert isinstance(strength, float | int)
    layers = default_layers(model.n_layers) if part.layers is None else part.layers
    layers = sorted({model.check_layer(layer) for layer in layers})
    direction, taught = _teacher(part, model, sets, adds=strength < 0)
    data = []
    for name, prompts in sets.items():
        is_taught = name == "positive"
        tokens = TOKENS_ADDED if is_taught and strength < 0 else TOKENS
        with taught() if is_taught else nullcontext():
            data += lessons(model, frame(model, prompts, part.chat), tokens, WEIGHTS[name])
    lora = LoRA(model, rank=RANK, alpha=RANK, seed=seed, layers=layers)
    steps = max(FEWEST_STEPS, EPOCHS * len(data) // BATCH)
    losses = distil(model, lora, data, steps=steps, learning_rate=LEARNING_RATE, seed=seed)
    tail = losses[-max(1, len(losses) // 5) :]
    filled = part.model_copy(update={**sets, "layers": layers})
    return Solved(
        {key: c.scaled(GAIN * abs(strength)) for key, c in lora.changes(model).items()},
        filled,
        {
            "direction": {"layer": direction.layer, "position": direction.position},
            "selection": direction.metadata.get("selection"),
            "loss": {"first": losses[0], "last": sum(tail) / len(tail)},
            "steps": len(losses),
        },
    )


def _teacher(
    part: AblateEdit, model: Model, sets: dict[str, list[str]], adds: bool
) -> tuple[Direction, Callable[[], AbstractContextManager[None]]]:
    """The direction, and the condition under which the model answers the positives as it is to learn."""
    direction = saved_direction(part, model)
    if direction is None:
        # False and true alike show it; what is to be brought on must itself be asked.
        names = ("positive",) if adds else ("positive", "spare")
        shown = [p for name in names for p in spread(sets[name], MOST)]
        if part.layer is None and min(len(shown), len(sets["negative"])) >= FEWEST:
            direction = select(model, shown, sets["negative"], use_chat=part.chat).direction
        else:
            direction = difference_of_means(
                model, shown, sets["negative"], part.layer, part.position or -1, use_chat=part.chat
            )
    if adds:
        gap = direction.positive - direction.negative
        return direction, lambda: adding(model, gap, direction.layer)
    first = min(round(START * model.n_layers), max(0, direction.layer - 1))
    amounts = dict.fromkeys(direction.layers or range(first, direction.layer), 1.0)
    reads = None if direction.reader is None else direction.reader[None]
    rows = direction.vector[None]
    return direction, lambda: ablating(model, rows, amounts, readers=reads)


@torch.no_grad()
def lessons(model: Model, texts: Sequence[str], tokens: int, weight: float = 1.0) -> list[Lesson]:
    """What the model, as it is now, says to texts that are framed as it is to read them.

    tokens: longest answer. weight: of all of these lessons together; each gets its share.
    """
    said = answer(model, texts, tokens, label="the teacher's answers")
    end = model.tokenizer.eos_token_id
    examples = []
    for text, reply in zip(texts, said, strict=True):
        ids = tokenize(model, reply.text, special=False)[:tokens]
        if len(ids) < tokens and end is not None:
            ids = [*ids, end]
        prompt = tokenize(model, text, not is_templated(model, text))
        examples.append(Example(tuple(prompt), tuple(ids)))
    shared = shared_prefix([e.prompt for e in examples])
    found: list[Lesson] = []
    for begin in range(0, len(examples), BATCH):
        batch = examples[begin : begin + BATCH]
        logprobs = answer_logits(model, batch, shared)[0].float().log_softmax(-1)
        pieces = logprobs.split([len(e.answer) for e in batch])
        found += [lesson(e, x, weight / len(texts)) for e, x in zip(batch, pieces, strict=True)]
    return found
