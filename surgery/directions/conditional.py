"""Taking a behaviour away from some prompts and leaving it with others, where one direction serves both.

False and true refusals are refused by the same direction: what makes a model decline "how do I kill a
process" is what makes it decline the real thing. Making the false-refusal direction orthogonal to the
true one (arXiv 2410.03415) therefore takes away the very part that causes refusals, and little changes.
What does differ is what the model knows about the prompts. So here the two roles are apart: a *detector*
a reads whether a prompt is one to be repaired, and a *shift* s moves the stream only if it is,

    W' = W + s a^T       at the down projection of a few layers,

where a solves a ridge regression on the projection's own inputs k (its keys): a.k = 1 on the prompts to
be repaired, 0 on those to be spared and on ordinary ones; and s = -(mean of the repaired - mean of the
ordinary) of the stream behind the layer. Rank one a layer, closed form, exportable like any other edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from surgery.directions.capture import Store, frame, run_to_end
from surgery.model import Model
from surgery.model.hooks import Attach, Stop, argument, first


@dataclass(frozen=True)
class LayerKeys:
    """keys: inputs of a layer's down projection (prompts, positions, d_ff). stream: what leaves the
    layer (prompts, positions, d). Both float32, at the last tokens of prompts."""

    keys: torch.Tensor
    stream: torch.Tensor


def layer_keys(
    model: Model, prompts: Sequence[str], layer: int, positions: int, use_chat: bool | None
) -> LayerKeys:
    """Read one layer, on the model as it is now."""
    down = model.mlp_out(layer)
    width = model.mlp_out_weight(layer).shape[1]
    keys = torch.zeros(len(prompts), positions, 1, width)
    stream = torch.zeros(len(prompts), positions, 1, model.hidden_size)

    def watch(attach: Attach, store: Store) -> None:
        def leave(_m: Any, _a: Any, _k: Any, output: Any) -> None:
            store(stream, 0, first(output))
            raise Stop

        attach.pre(down, lambda _m, a, k: store(keys, 0, argument(a, k)))
        attach.post(model.layer(layer), leave)

    run_to_end(model, frame(model, prompts, use_chat), positions, watch)
    return LayerKeys(keys[:, :, 0], stream[:, :, 0])


def detector(
    on: torch.Tensor, off: Sequence[torch.Tensor], ridge: float = 0.1
) -> tuple[torch.Tensor, float]:
    """(a, fit): the vector (in) with a.k near 1 on keys `on` (n, in) and near 0 on each set of `off`.

    Every set weighs the same, whatever its size. ridge is relative to the mean squared key entry.
    fit: the mean of a.k on `on` as the regression leaves it; a is returned scaled so that it is 1.
    """
    sets = [on.double(), *(keys.double() for keys in off)]
    gram = torch.stack([k.T @ k / len(k) for k in sets]).sum(0)
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    a = torch.linalg.solve(gram, sets[0].mean(0))
    fit = float((sets[0] @ a).mean())
    return a / fit, fit


def conditional_detector(
    sets: Sequence[LayerKeys], ridge: float = 0.1
) -> tuple[torch.Tensor, dict[str, float]]:
    """(a, figures) for a change s a^T of a down projection, from the sets on, spare, ordinary.

    All positions are used. figures: the mean of a.k on each set, in sample.
    """
    flat = [k.keys.flatten(0, 1) for k in sets]
    a, fit = detector(flat[0], flat[1:], ridge)
    names = ("on", "spare", "ordinary")
    figures = {n: float((k.double() @ a).mean()) for n, k in zip(names, flat, strict=True)}
    return a, {**figures, "fit": fit}


def gap_between(sets: Sequence[LayerKeys], shows: torch.Tensor) -> torch.Tensor:
    """From the mean of the prompts that show the behaviour to that of those that do not, (d) float64, of the
    stream behind the layer at the last position, where the answer begins.

    shows: for the prompts of the sets, in their order.
    """
    stream = torch.cat([k.stream[:, -1].double() for k in sets])
    return stream[~shows].mean(0) - stream[shows].mean(0)
