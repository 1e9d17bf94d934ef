"""AlphaEdit: a joint edit in the null space of what must be preserved (arXiv 2410.02355).

At each layer, with P the projector on the directions of key space that ordinary text hardly uses,

    dW = R K^T P (K K^T P + L2 I)^-1   (keys of earlier edits joined to K with residual zero)

so dW P = dW: what ordinary text reads from W stays, to the accuracy of P. Which directions count as
unused is a share of the keys' energy, so it means the same for every model; the dimension it leaves is
reported. The closed form is solved in the size of the number of facts.
"""

from __future__ import annotations

import torch

from surgery.facts.capture import capture, context_mean
from surgery.facts.least_squares import null_space
from surgery.methods.joint import Metric, solve_joint
from surgery.methods.solved import Solved
from surgery.methods.spread import Spread, diagnostics, filled, prepare_spread
from surgery.model import Model
from surgery.spec import AlphaEdit

# Share of the energy of ordinary keys that lies in the null space.
THRESHOLD = 0.1
# L2 over the median of k^T P k.
RIDGE = 0.1


def solve_alphaedit(part: AlphaEdit, model: Model, seed: int) -> Solved:
    """Solve an alphaedit part. Raises SurgeryError for layers the model lacks or unusable facts."""
    spread = prepare_spread(part, model, seed)
    threshold = part.threshold or THRESHOLD
    bases = {n: null_space(spread.moments[n], threshold) for n in spread.layers}
    share = part.ridge or RIDGE
    softness = share * _typical_weight(model, spread, bases[spread.layers[-1]])

    def metric(layer: int) -> Metric:
        U = bases[layer]
        return Metric(lambda keys: U @ (U.T @ keys), softness)

    joint = solve_joint(
        model, spread.requests.items, spread.wanted, spread.layers, metric, part.accumulate
    )
    chosen = filled(part, spread).model_copy(update={"threshold": threshold, "ridge": share})
    report = diagnostics(spread, joint)
    report["null_space"] = {str(n): [U.shape[1], U.shape[0]] for n, U in bases.items()}
    return Solved(joint.tensors, chosen, report)


def _typical_weight(model: Model, spread: Spread, basis: torch.Tensor) -> float:
    """Median k^T P k over the facts, at the last layer."""
    layer = spread.layers[-1]
    rows = [row for request in spread.requests.items for row in request.rewriting]
    captured = capture(model, rows, keys=[layer]).keys[layer].double().cpu()
    keys = context_mean(captured, spread.requests.contexts)
    return float((keys @ basis).pow(2).sum(-1).median())
