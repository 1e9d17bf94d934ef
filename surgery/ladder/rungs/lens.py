"""The logit lens (nostalgebraist, 2020): what each layer would say if it were the last."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from surgery.audit.head import Head
from surgery.audit.score import pair_ids
from surgery.ladder.items import Item
from surgery.ladder.rung import NOTHING, Family, Score, Setting
from surgery.ladder.states import states
from surgery.model import Model


@torch.no_grad()
def read_layers(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """margin: of the first token of the old answer over its rivals' at the layer where it is largest;
    rank: the best over the layers. Taking the best layer favours every answer, so only what exceeds
    the control counts."""
    seen = states(model, [item.text for item in items])
    head = Head.of(model)
    found: list[Score] = []
    for item, layers in zip(items, seen, strict=True):
        tokens = [pair_ids(model, item.text, answer)[1][0] for answer in item.answers]
        rivals = sorted({token for token in tokens[1:] if token != tokens[0]})
        if not rivals or (item.new and tokens[0] == tokens[1]):
            found.append(NOTHING)
            continue
        hidden = model.final_norm(layers.to(model.device, model.dtype))
        logits = head.logits(hidden)
        old = logits[:, tokens[0]]
        margin = float((old - logits[:, rivals].amax(-1)).max())
        rank = int((logits > old[:, None]).sum(-1).min()) + 1
        found.append(Score(margin, rank))
    return {"lens": found}


FAMILIES = (Family({"lens": "logit lens, the best layer"}, read_layers),)
