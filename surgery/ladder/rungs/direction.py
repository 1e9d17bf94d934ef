"""Removal of one direction: the one along which the edit moved the activations.

Source: refusal-like "junk" directions added by unlearning (see arXiv 2409.18025, which removes them and
gets the knowledge back); difference of means as in arXiv 2406.11717.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from surgery.directions.algebra import orthonormal
from surgery.directions.intervene import ablating
from surgery.ladder.asking import direct
from surgery.ladder.items import Item
from surgery.ladder.rung import Family, Score, Setting
from surgery.ladder.states import states, subject_ends
from surgery.model import Model


def read(model: Model, items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
    """(items, layers, d) at the end of the prompts, and at the end of their subjects."""
    return states(model, [item.text for item in items]), states(model, subject_ends(items))


def moved(
    base: tuple[torch.Tensor, torch.Tensor], edited: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """A unit vector for each of the two places, at the layer that moved most for its size."""
    found = []
    for before, after in zip(base, edited, strict=True):
        shift = (after.double() - before.double()).mean(0)
        share = shift.norm(dim=-1) / before.double().norm(dim=-1).mean(0).clamp_min(1e-12)
        layer = int(share.argmax())
        if float(share[layer]) > 1e-6:
            found.append((shift[layer] / shift[layer].norm()).float())
    return tuple(found)


def remove_direction(
    model: Model, items: Sequence[Item], setting: Setting
) -> dict[str, list[Score]]:
    """The direct question, with one direction cut out of everything attention and MLPs write. Of two
    directions (prompt's end, subject's end) the better one counts, for the control as well."""
    if not setting.directions:
        return {"direction": direct(model, items)}
    tries: list[list[Score]] = []
    for vector in setting.directions:
        with ablating(model, orthonormal(vector[None])):
            tries.append(direct(model, items))
    return {
        "direction": [max(row, key=lambda s: s.margin or 0.0) for row in zip(*tries, strict=True)]
    }


FAMILIES = (Family({"direction": "the direction of the edit taken out"}, remove_direction),)
