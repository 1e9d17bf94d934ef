"""AlphaEdit: a joint edit in the null space of what must be preserved (arXiv 2410.02355).

At each layer, with P the projector on the directions of key space that ordinary text uses least,

    dW = R K^T Q (K K^T Q + L2 I)^-1,   Q = P C^-1 P

and keys of earlier edits joined to K with residual zero. dW P = dW: what ordinary text reads from W in
the other directions stays exactly as it is. Which directions count as unused is a share of the keys'
energy, so it means the same for every model (the released code has an absolute threshold); the
dimension it leaves is reported.

The paper has Q = P, as if all directions inside the null space were used equally little. They are not,
and weighing them by C, which costs nothing, does half the damage at the same success.
"""

from __future__ import annotations

import torch

from surgery.errors import SurgeryError
from surgery.facts.least_squares import Whiten, null_space
from surgery.methods.solved import Solved, filled
from surgery.methods.spread import diagnostics, prepare_spread, solve_spread, typical_weight
from surgery.model import Model
from surgery.spec import AlphaEdit

# Share of the energy of ordinary keys that lies in the null space.
THRESHOLD = 0.4
# L2 over the median of k^T P k, for many facts.
RIDGE = 0.4


def solve_alphaedit(part: AlphaEdit, model: Model, seed: int) -> Solved:
    """Solve an alphaedit part. Raises SurgeryError for layers the model lacks or unusable facts."""
    spread = prepare_spread(part, model, seed)
    threshold = part.threshold or THRESHOLD
    bases = {n: null_space(spread.moments[n], threshold) for n in spread.layers}
    for layer, U in bases.items():
        if U.shape[1] == 0:
            raise SurgeryError(
                f"threshold {threshold} leaves no null space at layer {layer}: raise it"
            )
    share = part.ridge or RIDGE / spread.room
    whiteners = {n: _whitener(spread.moments[n], U) for n, U in bases.items()}
    softness = share * typical_weight(model, spread, whiteners[spread.layers[-1]])

    joint = solve_spread(model, spread, whiteners, softness, part.accumulate)
    chosen = filled(part, spread.requests, spread.settings, layers=spread.layers).model_copy(
        update={"threshold": threshold, "ridge": share}
    )
    report = diagnostics(spread, joint)
    report["null_space"] = {str(n): [U.shape[1], U.shape[0]] for n, U in bases.items()}
    return Solved(joint.tensors, chosen, report)


def _whitener(second_moment: torch.Tensor, U: torch.Tensor) -> Whiten:
    """Keys -> P C^-1 P keys. U are eigenvectors of C, so inside their span C is diagonal."""
    values = (U * (second_moment @ U)).sum(0).clamp_min(1e-12)
    return lambda keys: U @ ((U.T @ keys) / values[:, None])
