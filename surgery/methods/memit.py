"""MEMIT: many facts at once, over several layers (arXiv 2210.07229).

At each layer  dW = R K^T (lambda C + K K^T)^-1 : keep what ordinary text reads, C = E[k k^T], at weight
lambda, against the facts' keys K. lambda is in units of tokens per fact, and which value is right
depends on the model: 15,000, tuned for GPT-J, leaves a small model unedited and says nothing. A key
weighs g = k^T C^-1 k against ordinary text, and one layer alone achieves g / (g + lambda) of its share,
so lambda is set as a share of the median g of the facts in hand.
"""

from __future__ import annotations

from surgery.facts.least_squares import whitener
from surgery.methods.solved import Solved, filled
from surgery.methods.spread import diagnostics, prepare_spread, solve_spread, typical_weight
from surgery.model import Model
from surgery.spec import MemitEdit

# lambda over the median g, for many facts.
SOFTNESS = 0.5
RIDGE = 1e-3


def solve_memit(part: MemitEdit, model: Model, seed: int) -> Solved:
    """Solve a memit part. Raises SurgeryError for layers the model lacks or facts it cannot take."""
    spread = prepare_spread(part, model, seed)
    # One Cholesky factor a layer serves every solve there.
    whiteners = {layer: whitener(c, RIDGE) for layer, c in spread.moments.items()}
    weight = part.statistics_weight or SOFTNESS / spread.room * typical_weight(
        model, spread, whiteners[spread.layers[-1]]
    )

    joint = solve_spread(model, spread, whiteners, weight, part.accumulate)
    chosen = filled(part, spread.requests, spread.settings, layers=spread.layers).model_copy(
        update={"statistics_weight": weight}
    )
    return Solved(joint.tensors, chosen, diagnostics(spread, joint))
