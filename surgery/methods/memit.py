"""MEMIT: many facts at once, over several layers (arXiv 2210.07229).

At each layer  dW = R K^T (lambda C + K K^T)^-1 : keep what ordinary text reads, C = E[k k^T], at weight
lambda, against the facts' keys K. lambda is in units of tokens per fact, and which value is right
depends on the model: 15,000, tuned for GPT-J, leaves a small model unedited and says nothing. A key
weighs g = k^T C^-1 k against ordinary text, and one layer alone achieves g / (g + lambda) of its share,
so lambda is set as a share of the median g of the facts in hand.
"""

from __future__ import annotations

import torch

from surgery.facts.capture import fact_keys
from surgery.facts.least_squares import factor, in_metric
from surgery.methods.joint import Metric, solve_joint
from surgery.methods.solved import Solved, filled
from surgery.methods.spread import Spread, diagnostics, prepare_spread
from surgery.model import Model
from surgery.spec import MemitEdit

# lambda over the median g.
SOFTNESS = 0.5
RIDGE = 1e-3


def solve_memit(part: MemitEdit, model: Model, seed: int) -> Solved:
    """Solve a memit part. Raises SurgeryError for layers the model lacks or facts it cannot take."""
    spread = prepare_spread(part, model, seed)
    weight = part.statistics_weight or SOFTNESS * _typical_weight(model, spread)

    # One Cholesky factor a layer serves every solve there.
    factors = {layer: factor(c, RIDGE) for layer, c in spread.moments.items()}

    def metric(layer: int) -> Metric:
        return Metric(lambda keys: torch.cholesky_solve(keys, factors[layer]), weight)

    joint = solve_joint(
        model, spread.requests.items, spread.wanted, spread.layers, metric, part.accumulate
    )
    chosen = filled(part, spread.requests, spread.settings, layers=spread.layers).model_copy(
        update={"statistics_weight": weight}
    )
    return Solved(joint.tensors, chosen, diagnostics(spread, joint))


def _typical_weight(model: Model, spread: Spread) -> float:
    """Median g = k^T C^-1 k over the facts, at the last layer."""
    layer = spread.layers[-1]
    keys = fact_keys(model, spread.requests.items, [layer])[layer]
    whitened = in_metric(spread.moments[layer], keys, RIDGE)
    return float((keys * whitened).sum(0).median())
