"""`sparing: shift`: take the behaviour away from `positive` and leave it with `spare`, in closed form.

What `sparing: distil` learns, in seconds instead of minutes and with less of an eye for the difference. With
a saved direction, what is taken away (or, with negative strength, brought on) is the difference of its two
means, whatever the model does by itself; the prompts only say where.
"""

from __future__ import annotations

from typing import Any

import torch

from surgery.delta import Change, combine
from surgery.directions.conditional import conditional_detector, gap_between, layer_keys
from surgery.directions.metric import Opening
from surgery.directions.trial import first_logits, prompt_rows
from surgery.errors import SurgeryError
from surgery.methods.solved import Solved, as_delta, saved_direction, stored_factors, weight_key
from surgery.model import Model
from surgery.progress import track
from surgery.spec import AblateEdit, read_prompts
from surgery.stack.memory import applied

# The detector sits where the model has understood the prompt and has not yet decided what to say.
FIRST, LAST = 0.4, 0.6
LAYERS = 4
POSITIONS = 4
FEWEST_SHOWN = 3
# What strength 1 is of the gap between the means. On prompts of our own (benchmarks/flinch) 0.6 takes away
# three fifths of the false refusals and 6 % of the true, the whole gap nine tenths and a quarter. Unsafe
# prompts that differ from safe ones by a word lose more, hence less than that.
SHARE = 0.4


def default_layers(n_layers: int) -> list[int]:
    """Four layers spread over the middle of the model (fewer in a tiny one)."""
    first, last = round(FIRST * n_layers), max(round(FIRST * n_layers), round(LAST * n_layers))
    step = max(1, (last - first) // max(1, LAYERS - 1))
    return list(range(first, last + 1, step))[:LAYERS]


def _shows(model: Model, sets: list[list[str]], use_chat: bool | None) -> torch.Tensor:
    """Which prompts show the behaviour, by how the model begins to answer them."""
    on, spare, ordinary = (first_logits(model, prompt_rows(model, p, use_chat)) for p in sets)
    opening = Opening.of(spare, ordinary)
    shows = opening.shows(torch.cat([on, spare, ordinary]))
    if min(int(shows.sum()), int((~shows).sum())) < FEWEST_SHOWN:
        raise SurgeryError(
            f"{int(shows.sum())} of {len(shows)} prompts show the behaviour: there is nothing to tell "
            "those that do from those that do not"
        )
    return shows


def _layers(part: AblateEdit, model: Model) -> list[int]:
    """Those of the part, else the four up to its `layer`, else the default."""
    if part.layers is not None:
        return sorted({model.check_layer(layer) for layer in part.layers})
    if part.layer is not None:
        layer = model.check_layer(part.layer)
        return list(range(max(0, layer - LAYERS + 1), layer + 1))
    return default_layers(model.n_layers)


def solve_shift(part: AblateEdit, model: Model, seed: int) -> Solved:
    """One conditional shift a layer, lowest layer first, each solved on the model as the ones before
    leave it."""
    assert part.positive is not None and part.negative is not None and part.spare is not None
    strength = part.strength
    assert isinstance(strength, float | int)
    sets = [read_prompts(source) for source in (part.positive, part.spare, part.negative)]
    saved = saved_direction(part, model)
    if saved is not None and part.layer is None:
        # It was read at the input of its layer: what is written below that arrives there.
        part = part.model_copy(update={"layer": max(0, saved.layer - 1)})
    layers = _layers(part, model)
    positions = POSITIONS if getattr(model.tokenizer, "chat_template", None) else 1
    shows = _shows(model, sets, part.chat) if saved is None else None
    tensors: dict[str, Change] = {}
    figures: dict[str, Any] = {}
    for number, layer in enumerate(track(layers, "sparing layers")):
        with applied(model, as_delta(model, tensors)):
            read = [layer_keys(model, prompts, layer, positions, part.chat) for prompts in sets]
        if saved is not None:
            shift, portion = saved.negative - saved.positive, 1 / len(layers)
        else:
            assert shows is not None
            # What is left to move is shared out among the layers that remain.
            shift, portion = gap_between(read, shows), SHARE / (len(layers) - number)
        a, found = conditional_detector(read, part.ridge)
        figures[str(layer)] = {**found, "length": float(shift.norm())}
        s = strength * portion * shift.double()
        change = stored_factors(model, s[:, None], a[None])
        tensors = combine([tensors, {weight_key(model, layer): change}])
    filled = part.model_copy(
        update={
            "positive": sets[0],
            "spare": sets[1],
            "negative": sets[2],
            "layers": list(layers),
        }
    )
    return Solved(tensors, filled, {"detector": figures, "writers": len(layers)})
