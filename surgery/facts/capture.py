"""Keys, values and stream at the subject's last token, in one pass that stops when all are seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from surgery.facts.requests import Request
from surgery.facts.rows import Row
from surgery.model import Model, by_length, pad
from surgery.model.hooks import Stop, argument, first, hooks
from surgery.progress import track

# How much the subject elsewhere counts against the prompt's own contexts.
SHARE_ELSEWHERE = 0.5


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


def fact_keys(
    model: Model, requests: Sequence[Request], layers: Sequence[int]
) -> dict[int, torch.Tensor]:
    """The key k* of every fact at each layer, (d_ff, facts) float64 on the CPU.

    A mean over the contexts a fact is met in, so that the edit does not hang on one wording: half of it
    is the bare prompt, half the prompt behind sampled texts, as in MEMIT.
    """
    found = _keys_of(model, [request.rewriting for request in requests], layers)
    weights = _in_its_contexts(len(requests[0].rewriting))
    return {layer: torch.einsum("dfc,c->df", keys, weights) for layer, keys in found.items()}


def context_keys(
    model: Model, requests: Sequence[Request], layers: Sequence[int]
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Every key by itself, at each layer (d_ff, facts, contexts) float64 on the CPU, and how much each
    context counts, (contexts,) with a sum of one.

    Besides the contexts of `fact_keys`, which share the prompt, the subject as it is met elsewhere.
    """
    rows = [[*request.rewriting, *request.elsewhere] for request in requests]
    others = len(requests[0].elsewhere)
    near = (1 - SHARE_ELSEWHERE) * _in_its_contexts(len(requests[0].rewriting))
    weights = torch.cat([near, near.new_full((others,), SHARE_ELSEWHERE / others)])
    return _keys_of(model, rows, layers), weights


def _keys_of(
    model: Model, rows: Sequence[Sequence[Row]], layers: Sequence[int]
) -> dict[int, torch.Tensor]:
    """(d_ff, facts, contexts) at each layer; rows[fact][context]."""
    found = capture(model, [row for of_one in rows for row in of_one], keys=layers).keys
    return {
        layer: keys.double().cpu().unflatten(0, (len(rows), -1)).permute(2, 0, 1)
        for layer, keys in found.items()
    }


def _in_its_contexts(contexts: int) -> torch.Tensor:
    behind = contexts - 1
    return torch.tensor([0.5] + [0.5 / behind] * behind if behind else [1.0]).double()
