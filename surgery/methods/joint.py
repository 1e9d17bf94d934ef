"""Many facts over several layers: what MEMIT and AlphaEdit share (arXiv 2210.07229, algorithm 1).

The targets are vectors z of the residual stream after the last edited layer. Going up through the
layers, each down projection is asked to write its share of what is still missing,

    R_l = (z - h) / (number of layers left),   h re-read after the layers below were changed,

so a layer that could not do its share leaves it to the next. Every context a fact is met in is an
equation of its own: the papers ask only that the mean of a fact's keys gives R_l, which a change can
satisfy while no single key does, and least of all one in another wording. How a layer is changed so
that its keys give R_l is the method's own `Metric`: one least-squares solver, two ways of saying what is
small.

Behind a post-norm (Gemma-2 and 3) the down projection's output m reaches the stream as N(m), which has
a fixed length. What is wanted of it is then the m' whose N(m') comes nearest to N(m) + R_l, and since
that is not all of R_l, the layers are gone through again with what is left. A small part of the way to z
may remain for good. So at the end targets are found anew, as changes of the last layer's m itself with
gradients through N, from where the edit has come to; those can be met, whatever N does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from surgery.delta import Change, combine
from surgery.facts.capture import capture, context_keys
from surgery.facts.earlier import earlier_keys
from surgery.facts.least_squares import Whiten, solve
from surgery.facts.requests import Request
from surgery.methods.solved import as_delta, stored_factors, weight_key
from surgery.model import Model
from surgery.progress import meter
from surgery.stack.memory import applied

# Times the layers of a post-norm model are gone through, and times the last layer's targets are found anew.
POST_NORM_SWEEPS, POST_NORM_ROUNDS = 3, 2


@dataclass(frozen=True)
class Metric:
    """M^-1 applied to keys (d_ff, n), and the softness of the least squares (see least_squares)."""

    whiten: Whiten
    softness: float


@dataclass
class Joint:
    """Result: changes by tensor and, for each layer, what the solve saw."""

    tensors: dict[str, Change]
    layers: list[dict[str, Any]] = field(default_factory=list)
    achieved: list[float] = field(default_factory=list)


def solve_joint(
    model: Model,
    requests: Sequence[Request],
    wanted: torch.Tensor,
    layers: Sequence[int],
    metric: Callable[[int], Metric],
    accumulate: bool,
    missing: Callable[[], torch.Tensor],
) -> Joint:
    """Spread residuals over layers. wanted: z, (facts, d_model), of the stream after the last layer.

    missing: finds, on the model as it is when it is called, what the last layer's down projection would have
    to write besides (facts, d_model); asked for behind a post-norm.
    """
    bare = [request.rewriting[0] for request in requests]
    last = layers[-1]
    bounded = model.mlp_post_norm(last) is not None
    sweeps, rounds = (POST_NORM_SWEEPS, POST_NORM_ROUNDS) if bounded else (1, 0)
    start = capture(model, bare, stream=[last]).stream[last]
    total = (wanted - start).double()

    def share(layer: int, left: int) -> torch.Tensor:
        """What a layer is asked to write: its part of what the stream still lacks."""
        now = capture(model, bare, values=[layer], stream=[last])
        return _before_norm(model, layer, now.values[layer], (wanted - now.stream[last]) / left)

    result = Joint({})
    steps: list[tuple[int, Callable[[], torch.Tensor]]] = [
        (layer, partial(share, layer, len(layers) - place))
        for _ in range(sweeps)
        for place, layer in enumerate(layers)
    ] + [(last, missing)] * rounds
    with meter("solving layers", len(steps), unit="layer") as progress:
        for layer, ask in steps:
            with applied(model, as_delta(model, result.tensors)):
                factors, report = _one_layer(
                    model, requests, layer, ask(), metric(layer), accumulate
                )
            result.tensors = combine([result.tensors, {weight_key(model, layer): factors}])
            result.layers.append(report)
            progress.advance()
    with applied(model, as_delta(model, result.tensors)):
        reached = capture(model, bare, stream=[last]).stream[last]
    moved = (reached - start).double()
    # Share of the way to z that the stream really went, measured along the way to it.
    result.achieved = ((moved * total).sum(-1) / (total * total).sum(-1).clamp_min(1e-30)).tolist()
    return result


def _one_layer(
    model: Model,
    requests: Sequence[Request],
    layer: int,
    asked_for: torch.Tensor,
    metric: Metric,
    accumulate: bool,
) -> tuple[Change, dict[str, Any]]:
    """The change of a layer whose down projection is to write `asked_for` (facts, d_model) besides."""
    found, weights = context_keys(model, requests, [layer])
    keys = (found[layer] * weights.sqrt()).flatten(1)  # (d_ff, facts * contexts)
    asked = torch.kron(torch.eye(len(requests)).double(), weights.sqrt()[None])
    residual = asked_for.T.double().cpu()  # (d, n)

    previous = earlier_keys(model, layer) if accumulate else None
    if previous is not None:
        keys = torch.cat([previous.double().cpu(), keys], dim=1)
        asked = torch.cat([asked.new_zeros(len(asked), previous.shape[1]), asked], dim=1)
    A = solve(keys, metric.whiten, metric.softness, asked)
    return stored_factors(model, residual, A), {
        "layer": layer,
        "residual": float(residual.norm(dim=0).mean()),
        "softness": metric.softness,
        "earlier_keys": 0 if previous is None else previous.shape[1],
    }


def _before_norm(
    model: Model, layer: int, value: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """What to add to the down projection's output so that the stream gains `share`, (facts, d)."""
    norm: Any = model.mlp_post_norm(layer)
    if norm is None:
        return share
    value, share = value.double(), share.double()
    gain = norm.weight.detach().double() + model.architecture.norm_offset
    rms = value.pow(2).mean(-1, keepdim=True).sqrt()
    # N(m) = gain * m / rms(m), so N(m) + R = gain * t; the nearest m' of the old length lies along t.
    t = value / rms + share / gain.where(gain.abs() > 1e-6, torch.ones_like(gain))
    return (t / t.pow(2).mean(-1, keepdim=True).sqrt() * rms - value).float()
