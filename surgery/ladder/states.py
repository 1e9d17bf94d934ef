"""The stream out of every layer at the end of texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from surgery.directions.capture import Store, run_to_end
from surgery.ladder.items import Item
from surgery.model import Model
from surgery.model.hooks import Attach, first


def states(model: Model, texts: Sequence[str]) -> torch.Tensor:
    """(texts, layers, d) float32 on the CPU: what each block gives, at each text's last token."""
    found = torch.zeros(len(texts), 1, model.n_layers, model.hidden_size)

    def watch(attach: Attach, store: Store) -> None:
        for layer in range(model.n_layers):
            attach.post(
                model.layer(layer),
                lambda _m, _a, _k, output, layer=layer: store(found, layer, first(output)),
            )

    run_to_end(model, texts, 1, watch)
    return found[:, 0]


def subject_ends(items: Sequence[Item]) -> list[str]:
    """Each prompt up to the end of its subject: where facts are looked up, and where edits sit."""
    return [item.fill(item.template[: item.template.index("{}") + 2]) for item in items]
