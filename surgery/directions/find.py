"""From two prompt sets to a direction: the difference of their means (arXiv 2406.11717)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from surgery.directions.algebra import orthonormal, unit, without
from surgery.directions.capture import Activations, activations
from surgery.directions.direction import Direction, prompts_hash
from surgery.errors import SurgeryError
from surgery.model import Model

# Where the direction is read when nobody says: about 60 % of the way up. Later layers only hold back
# the next token; earlier ones still carry which words the prompt is made of.
DEPTH = 0.6


def difference_of_means(
    model: Model,
    positive: Sequence[str],
    negative: Sequence[str],
    layer: int | None = None,
    position: int = -1,
    spare: Sequence[str] | None = None,
    use_chat: bool | None = None,
) -> Direction:
    """The unit vector from the negatives' mean to the positives', at one layer and position.

    spare: prompts whose behaviour is to be kept. What tells *them* from the negatives is taken out of
    the direction, so removing it leaves them where they are (Wang et al., arXiv 2410.03415).

    Raises:
        SurgeryError: too few prompts, or sets whose means do not differ.
    """
    for name, prompts in (("positive", positive), ("negative", negative)):
        if len(prompts) < 2:
            raise SurgeryError(f"{name} has {len(prompts)} prompt: a mean needs at least two")
    layer = model.check_layer(layer if layer is not None else round(DEPTH * model.n_layers))
    reach = -position

    def read(prompts: Sequence[str]) -> Activations:
        return activations(model, prompts, positions=reach, use_chat=use_chat)

    plus, minus = read(positive).mean()[0, layer], read(negative).mean()[0, layer]
    gap = plus - minus
    if float(gap.norm()) < 1e-6 * float(plus.norm()):
        raise SurgeryError(
            f"positive and negative have the same mean at layer {layer}: no direction to find"
        )
    vector = unit(gap)
    if spare is not None:
        kept = unit(read(spare).mean()[0, layer] - minus)
        vector = without(vector, orthonormal([kept]))
    return Direction(
        vector.float(),
        plus.float(),
        minus.float(),
        layer,
        position,
        model.checkpoint.id,
        {
            "method": "difference of means",
            "positive": {"count": len(positive), "hash": prompts_hash(positive)},
            "negative": {"count": len(negative), "hash": prompts_hash(negative)},
            "gap": float(gap.norm()),
        },
    )


def project_off(direction: Direction, mean: torch.Tensor) -> torch.Tensor:
    """The direction without its component along a mean: "projected" ablation keeps what harmless
    prompts have in common with it."""
    return without(direction.vector, orthonormal([unit(mean)]))
