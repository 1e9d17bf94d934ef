"""Damage to the weights themselves: pruned, or rounded as a quantised reload rounds them.

What an edit hid with small changes of many weights may come back when these are rounded away
(arXiv 2410.16454). The weights come back bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from surgery.audit.reload import matrices, reloaded
from surgery.ladder.asking import direct
from surgery.ladder.items import Item
from surgery.ladder.rung import Family, Score, Setting
from surgery.model import Model

SHARE = 0.3


@contextlib.contextmanager
def pruned(model: Model, share: float = SHARE) -> Iterator[None]:
    """The smallest `share` of the weights of every projection set to zero, for the length of the block."""
    chosen = [weight for weight, _ in matrices(model)]
    kept = [weight.detach().clone() for weight in chosen]
    try:
        with torch.no_grad():
            for weight in chosen:
                size = weight.abs().flatten().float()
                limit = size.kthvalue(max(1, int(share * size.numel()))).values
                weight.masked_fill_(weight.abs().float() <= limit, 0)
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(chosen, kept, strict=True):
                weight.copy_(value)


def prune(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    with pruned(model):
        return {"pruned": direct(model, items)}


def round_weights(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    found = {}
    for how in ("int8", "int4"):
        with reloaded(model, how):
            found[how] = direct(model, items)
    return found


FAMILIES = (
    Family({"pruned": "30 % of the weights set to zero"}, prune),
    Family(
        {"int8": "weights rounded to 8 bits", "int4": "weights rounded to 4 bits"}, round_weights
    ),
)
