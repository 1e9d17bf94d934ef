"""The stream out of every layer at the end of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from surgery.ladder.items import Item
from surgery.model import Model, by_length, pad, tokenize
from surgery.model.hooks import first, hooks
from surgery.model.run import is_templated

_BATCH_TOKENS = 4096


def states(model: Model, texts: Sequence[str]) -> torch.Tensor:
    """(texts, layers, d) float32 on the CPU: what each block gives, at each text's last token."""
    return states_of([tokenize(model, t, not is_templated(model, t)) for t in texts], model)


@torch.no_grad()
def states_of(rows: Sequence[Sequence[int]], model: Model) -> torch.Tensor:
    """The same for texts that are token ids already."""
    found = torch.zeros(len(rows), model.n_layers, model.hidden_size)
    for index in by_length([len(row) for row in rows], _BATCH_TOKENS):
        batch = pad([rows[i] for i in index], model, side="left")

        def keep(layer: int, output: Any, index: list[int] = index) -> None:
            found[index, layer] = first(output)[:, -1].float().cpu()

        with hooks() as attach:
            for layer in range(model.n_layers):
                attach.post(
                    model.layer(layer), lambda _m, _a, _k, out, at=layer, put=keep: put(at, out)
                )
            model.hf(**batch.inputs(), use_cache=False, logits_to_keep=1)
    return found


def subject_ends(items: Sequence[Item]) -> list[str]:
    """Each prompt up to the end of its subject: where facts are looked up, and where edits sit."""
    return [item.fill(item.template[: item.template.index("{}") + 2]) for item in items]
