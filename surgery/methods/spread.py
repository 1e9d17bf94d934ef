"""What MEMIT and AlphaEdit do before they differ: layers, rows, targets, statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from surgery.errors import SurgeryError
from surgery.facts.capture import fact_keys
from surgery.facts.earlier import earlier_facts
from surgery.facts.least_squares import Whiten
from surgery.facts.requests import Requests, prepare
from surgery.facts.target import Targets, TargetSettings, solve_targets
from surgery.methods.joint import Joint, Metric, solve_joint
from surgery.model import Model
from surgery.spec import SpreadPart
from surgery.statistics import Statistics, collect, metric, sensitivity

# The middle of the edited layers, as a share of the depth, and how many there are.
DEPTH, COUNT = 0.2, 5
# Longest change of the stream, in lengths of what was there.
CLAMP = 0.75
# With fewer facts than this in the model each of them goes further, at most so many times (see `room`).
FULL, MOST = 40, 4.0
# A fact whose answer stays below this probability, with the best vector found, is left out.
HOPELESS = 0.05


@dataclass(frozen=True)
class Spread:
    """A part made ready: `wanted` (facts, d_model) is the stream asked for after the last layer."""

    layers: list[int]
    requests: Requests
    settings: TargetSettings
    targets: Targets
    statistics: Statistics
    moments: dict[int, torch.Tensor]  # second moment by layer, (d_ff, d_ff) float64, on the CPU
    room: float

    @property
    def wanted(self) -> torch.Tensor:
        return self.targets.start + self.targets.change


def default_layers(model: Model) -> list[int]:
    """A few neighbouring layers about a fifth of the way up."""
    middle = round(DEPTH * (model.n_layers - 1))
    first = max(0, middle - COUNT // 2)
    return list(range(first, min(model.n_layers, first + COUNT)))


def room(model: Model, facts: int) -> float:
    """How many times the damage of one fact among many each of `facts` may do.

    Damage adds up over facts, and what it buys for one of them is that its answer is found behind other
    words. So the fewer there are, those of earlier edits counted, the longer their targets
    (as the square root, since damage is quadratic in the length), the surer their answers and the harder
    the solve.
    """
    return min(MOST, max(1.0, FULL / (facts + earlier_facts(model))))


def prepare_spread(part: SpreadPart, model: Model, seed: int) -> Spread:
    layers = sorted(set(part.layers if part.layers is not None else default_layers(model)))
    for layer in layers:
        model.check_layer(layer)
    requests = prepare(part, model, seed)
    statistics = collect(model, layers, part.statistics, part.statistics_tokens, names=True)
    more = room(model, len(requests.items))
    settings = TargetSettings(
        layer=layers[-1],
        site="stream",
        steps=part.steps,
        learning_rate=part.learning_rate,
        clamp=part.clamp or CLAMP * more**0.5,
        aim=TargetSettings.aim / more,
        kl_factor=part.kl_factor,
        weight_decay=(
            part.weight_decay if part.weight_decay is not None else TargetSettings.weight_decay
        ),
        stop_loss=part.stop_loss,
    )
    targets = solve_targets(
        model,
        [request.rewriting for request in requests.items],
        [request.essence for request in requests.items],
        settings,
        metric(sensitivity(model, layers[-1])) if settings.learning_rate is None else None,
    )
    requests, targets = _without_hopeless(requests, targets)
    against = statistics.against(model, requests.facts)
    return Spread(layers, requests, settings, targets, statistics, against, more)


def solve_spread(
    model: Model, spread: Spread, whiteners: Mapping[int, Whiten], softness: float, accumulate: bool
) -> Joint:
    """The joint solve, once a method has said what is small: M^-1 by layer, and how soft."""
    return solve_joint(
        model,
        spread.requests.items,
        spread.wanted,
        spread.layers,
        lambda layer: Metric(whiteners[layer], softness),
        accumulate,
        lambda: missing_value(model, spread),
    )


def missing_value(model: Model, spread: Spread) -> torch.Tensor:
    """What the last edited layer's down projection would have to write besides, on the model as it is now,
    for the answers to be given: (facts, d_model)."""
    settings = replace(spread.settings, site="value", clamp=TargetSettings.clamp)
    items = spread.requests.items
    return solve_targets(
        model, [i.rewriting for i in items], [i.essence for i in items], settings
    ).change


def typical_weight(model: Model, spread: Spread, whiten: Whiten) -> float:
    """Median of k^T M^-1 k over the facts, at the last layer: how unusual their keys are."""
    layer = spread.layers[-1]
    keys = fact_keys(model, spread.requests.items, [layer])[layer]
    return float((keys * whiten(keys)).sum(0).median())


def _without_hopeless(requests: Requests, targets: Targets) -> tuple[Requests, Targets]:
    """Leave out facts for which no vector makes the model say the answer: writing what was found would
    cost the others and gain nothing.

    Raises:
        SurgeryError: that is all of them.
    """
    possible = (targets.probability >= HOPELESS).tolist()
    if all(possible):
        return requests, targets
    lost = [i.fact for i, ok in zip(requests.items, possible, strict=True) if not ok]
    warnings = [
        f"left out: nothing found that makes the model say {f.text!r} → {f.target!r}" for f in lost
    ]
    if not any(possible):
        raise SurgeryError(warnings[0].removeprefix("left out: "))
    items = [item for item, ok in zip(requests.items, possible, strict=True) if ok]
    kept = torch.tensor(possible, device=targets.change.device)
    return replace(requests, items=items, warnings=[*requests.warnings, *warnings]), targets[kept]


def diagnostics(spread: Spread, joint: Joint) -> dict[str, Any]:
    targets = spread.targets
    length = targets.start.norm(dim=-1)
    facts = [
        {
            "subject": item.fact.subject,
            "target": item.fact.target,
            "probability": float(targets.probability[i]),
            "loss": float(targets.loss[i]),
            "steps": int(targets.steps[i]),
            "change": float(targets.change[i].norm() / length[i]),
            "achieved": joint.achieved[i],
        }
        for i, item in enumerate(spread.requests.items)
    ]
    return {
        "facts": facts,
        "layers": joint.layers,
        "room": spread.room,
        "statistics": spread.statistics.record,
        "warnings": list(spread.requests.warnings),
    }
