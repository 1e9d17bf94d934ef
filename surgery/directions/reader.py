"""Reading how much of a direction there is, without reading anything else.

Taking the component along r out of everything also takes out what ordinary text has along r, which has
nothing to do with the behaviour and is what damages a model. A reader a with a . r = 1 that is blind to the
rest of the stream leaves that where it is:

    a = argmin  E (a . h)^2  subject to  a . r = 1   =   S^-1 r / (r . S^-1 r),     S = E h h^T,

over tokens h that do not show the behaviour, and over what differs between prompts that do. This is the
eraser of LEACE (arXiv 2306.03819) for one direction. S is not centred: the mean of ordinary text is among
what is not to be read, so that nothing constant is taken away, and no bias is needed to put it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from surgery.directions.capture import activations, frame
from surgery.directions.direction import Direction
from surgery.measure.damage import ordinary_texts
from surgery.measure.sample import spread
from surgery.model import Model, tokenize
from surgery.model.hooks import Stop, argument, hooks
from surgery.model.run import is_templated
from surgery.progress import track

# Of the mean squared entry of the stream: how much is added to every coordinate's.
RIDGE = 0.02
_TEXTS, _TOKENS, _PROMPTS = 24, 160, 64


def whitened(
    model: Model,
    r: torch.Tensor,
    layer: int,
    position: int,
    positive: Sequence[str],
    negative: Sequence[str],
    use_chat: bool | None = None,
) -> torch.Tensor:
    """The reader (d) of a direction r that is blindest to everything else at its layer, float64."""
    prompts = second_moment(model, layer, frame(model, spread(negative, _PROMPTS), use_chat))
    ordinary = second_moment(model, layer, spread(ordinary_texts(model), _TEXTS))
    shown = activations(model, spread(positive, _PROMPTS), -position, use_chat).stream[:, 0, layer]
    return reader(r, prompts + ordinary + torch.cov(shown.double().T))


def with_reader(
    model: Model,
    direction: Direction,
    positive: Sequence[str],
    negative: Sequence[str],
    use_chat: bool | None = None,
) -> Direction:
    """The same direction with its whitened reader."""
    a = whitened(
        model, direction.vector, direction.layer, direction.position, positive, negative, use_chat
    )
    return replace(direction, reader=a.float())


def reader(r: torch.Tensor, moment: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """a (d) = S^-1 r / (r . S^-1 r), with S the second moment (d, d) made safe to invert. float64."""
    r, moment = r.double(), moment.double()
    eye = torch.eye(len(r), dtype=torch.float64)
    a = torch.linalg.solve(moment + ridge * moment.diagonal().mean() * eye, r)
    return a / (a @ r)


@torch.no_grad()
def second_moment(model: Model, layer: int, texts: Sequence[str]) -> torch.Tensor:
    """E h h^T (d, d), float64, of the stream into a layer, over all tokens but each text's first: there the
    stream holds a vector hundreds of times as long, the same in every text, whose direction says nothing."""
    width = model.hidden_size
    total, count = torch.zeros(width, width, dtype=torch.float64), 0
    longest = min(_TOKENS, model.max_positions)
    for text in track(texts, "reading what is not to be read"):
        ids = tokenize(model, text, not is_templated(model, text))[:longest]
        seen: list[torch.Tensor] = []

        def see(_m: object, args: tuple, kwargs: dict, seen: list[torch.Tensor] = seen) -> None:
            seen.append(argument(args, kwargs)[0, 1:].double().cpu())
            raise Stop

        with hooks() as attach:
            attach.pre(model.layer(layer), see)
            model.hf(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
        total += seen[0].T @ seen[0]
        count += len(seen[0])
    return total / max(1, count)
