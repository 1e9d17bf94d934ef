"""Keys, values and stream at the subject's last token, in one pass that stops when all are seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from surgery.facts.rows import Row
from surgery.model import Model, by_length, pad
from surgery.model.hooks import Stop, argument, first, hooks
from surgery.progress import track


@dataclass
class Captured:
    """By layer, one line a row, float32: keys (rows, d_ff), values and stream (rows, d).

    key: input of the down projection. value: its output, before any post-norm. stream: the block's
    output, which is the residual stream after the layer.
    """

    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    stream: dict[int, torch.Tensor] = field(default_factory=dict)


@torch.no_grad()
def capture(
    model: Model,
    rows: Sequence[Row],
    keys: Sequence[int] = (),
    values: Sequence[int] = (),
    stream: Sequence[int] = (),
    batch_tokens: int = 4096,
    label: str = "reading keys",
) -> Captured:
    """Read keys, values and stream of the given layers at every row's subject."""
    wanted = {"keys": set(keys), "values": set(values), "stream": set(stream)}
    last = max(layer for layers in wanted.values() for layer in layers)
    parts: dict[tuple[str, int], list[tuple[list[int], torch.Tensor]]] = {}

    batches = list(by_length([row.subject + 1 for row in rows], batch_tokens))
    for index in track(batches, label):
        chosen = [rows[i].bare for i in index]
        batch = pad([row.ids for row in chosen], model)
        line = torch.arange(len(chosen), device=model.device)
        subject = torch.tensor([row.subject for row in chosen], device=model.device)

        def keep(
            what: str, layer: int, hidden: torch.Tensor, at: Any = (line, subject), i=index
        ) -> None:
            parts.setdefault((what, layer), []).append((i, hidden[at].float()))

        with hooks() as attach:
            for layer in sorted(set.union(*wanted.values())):
                if layer in wanted["keys"]:
                    attach.pre(
                        model.mlp_out(layer),
                        lambda _m, a, k, layer=layer: keep("keys", layer, argument(a, k)),
                    )
                if layer in wanted["values"]:
                    attach.post(
                        model.mlp_out(layer),
                        lambda _m, a, k, o, layer=layer: keep("values", layer, first(o)),
                    )
                if layer in wanted["stream"]:
                    attach.post(
                        model.layer(layer),
                        lambda _m, a, k, o, layer=layer: keep("stream", layer, first(o)),
                    )
            attach.post(model.layer(last), _stop)
            model.hf(**batch.inputs(), use_cache=False, logits_to_keep=1)

    found = Captured()
    for (what, layer), pieces in parts.items():
        order = torch.tensor([i for index, _ in pieces for i in index])
        stacked = torch.cat([piece for _, piece in pieces])
        getattr(found, what)[layer] = stacked[torch.argsort(order).to(stacked.device)]
    return found


def _stop(_module: nn.Module, _args: Any, _kwargs: Any, _output: Any) -> None:
    raise Stop


def context_mean(per_row: torch.Tensor, contexts: int) -> torch.Tensor:
    """Mean over the contexts of each fact: (facts * contexts, n) to (facts, n).

    The bare prompt weighs one half and the prefixed ones share the other, as in MEMIT; with no
    prefixes it is all there is.
    """
    grouped = per_row.reshape(-1, contexts, per_row.shape[-1])
    if contexts == 1:
        return grouped[:, 0]
    return 0.5 * grouped[:, 0] + 0.5 * grouped[:, 1:].mean(1)
