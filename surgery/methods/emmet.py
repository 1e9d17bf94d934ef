"""EMMET: a batch of facts at one layer, each met exactly (arXiv 2403.14236).

    dW = R (K^T C^-1 K + ridge I)^-1 K^T C^-1

is ROME for many facts at once: the smallest change, measured by ordinary text, with W' k_i = v_i for
all of them. The ridge softens the equalities where keys nearly coincide; without it and with one fact
this is ROME.
"""

from __future__ import annotations

from surgery.facts.capture import fact_keys
from surgery.facts.least_squares import solve, whitener
from surgery.facts.requests import prepare
from surgery.facts.target import solve_targets
from surgery.methods.rome import choose_layer, fact_report, target_settings
from surgery.methods.solved import Solved, filled, stored_factors, weight_key
from surgery.model import Model
from surgery.spec import EmmetEdit
from surgery.statistics import collect

RIDGE = 1e-3


def solve_emmet(part: EmmetEdit, model: Model, seed: int) -> Solved:
    """Solve an emmet part. Raises SurgeryError for a layer the model lacks or unusable facts."""
    layer = choose_layer(part.layer, model)
    requests = prepare(part, model, seed)
    settings = target_settings(part, layer)
    statistics = collect(model, [layer], part.statistics, part.statistics_tokens, names=True)
    found = solve_targets(
        model,
        [item.rewriting for item in requests.items],
        [item.essence for item in requests.items],
        settings,
    )
    keys = fact_keys(model, requests.items, [layer])[layer]
    second_moment = statistics.against(model, requests.facts)[layer]
    whiten = whitener(second_moment, RIDGE)
    energy = (keys * whiten(keys)).sum(0)
    softness = part.ridge * float(energy.mean())
    A = solve(keys, whiten, softness)
    chosen = filled(part, requests, settings, layer=layer)
    reports = [
        fact_report(item.fact, found, i, float(energy[i])) for i, item in enumerate(requests.items)
    ]
    return Solved(
        {weight_key(model, layer): stored_factors(model, found.change.T.cpu(), A)},
        chosen,
        {"facts": reports, "statistics": statistics.record, "warnings": requests.warnings},
    )
