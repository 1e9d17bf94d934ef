"""The logit lens (nostalgebraist, 2020): what each layer would say if it were the last."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from surgery.audit.head import Head
from surgery.audit.score import pair_ids
from surgery.ladder.items import Item
from surgery.ladder.rung import NOTHING, Family, Score, Setting
from surgery.ladder.states import states_of
from surgery.model import Model


@torch.no_grad()
def read_layers(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """margin: of the first token of the old answer over its rivals' at the layer where it is largest,
    in the upper half of the model: below, the lens reads noise, and the best of many draws of noise is
    always something. rank: the best over these layers. Taking the best still favours every answer, so
    only what exceeds the control counts."""
    asked = [_tokens(model, item) for item in items]
    rows = [found[0] for found in asked if found is not None]
    seen = iter(states_of(rows, model) if rows else ())
    head = Head.of(model)
    scores: list[Score] = []
    for found in asked:
        if found is None:
            scores.append(NOTHING)
            continue
        _, token, rivals = found
        upper = next(seen)[model.n_layers // 2 :]
        hidden = model.final_norm(upper.to(model.device, model.dtype))
        logits = head.logits(hidden)
        old = logits[:, token]
        margin = float((old - logits[:, rivals].amax(-1)).max())
        scores.append(Score(margin, int((logits > old[:, None]).sum(-1).min()) + 1))
    return {"lens": scores}


def _tokens(model: Model, item: Item) -> tuple[list[int], int, list[int]] | None:
    """Where to read, the old answer's token there, and its rivals'. That is the first token, unless
    the new answer begins with the same one: then both are followed to where they part."""
    prompt = pair_ids(model, item.text, item.old)[0]
    old, *others = (pair_ids(model, item.text, answer)[1] for answer in item.answers)
    start = 0
    while start < min(len(old), len(others[0])) and old[start] == others[0][start]:
        start += 1
    if start in (len(old), len(others[0])):
        return None
    rivals = {o[start] for o in others if o[:start] == old[:start] and len(o) > start}
    return [*prompt, *old[:start]], old[start], sorted(rivals - {old[start]})


FAMILIES = (Family({"lens": "what single layers would say (logit lens)"}, read_layers),)
