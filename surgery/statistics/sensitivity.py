"""How much text notices a change of the residual stream: the Fisher information of its state.

Let h be the stream after a layer at one token, and y what the model itself would go on with, there and
at every later token. With g the gradient of log p(y) by h,

    G = E[g g^T],        KL(before || after a change d of h) = d^T G d / 2 + O(|d|^3)   nats,

summed over all predictions that can see that token. Directions differ in it by a factor of fifty and
more, so of two vectors of one length that both make the model say a new answer, one may be noticed far
less by everything else that reads the changed weights. G is the output half of K-FAC (Martens and Grosse,
arXiv 1503.05671), whose input half, the second moment C of the keys, is what the papers' solvers
weigh a change by.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from surgery.model import Model, by_length, pad, tokenize
from surgery.model.hooks import argument, first, hooks, with_argument, with_first
from surgery.progress import meter
from surgery.stack.lineage import Lineage
from surgery.stack.memory import bare
from surgery.statistics.moments import Moment, MomentFitter
from surgery.statistics.store import Store, content_key
from surgery.statistics.text import read_passages, shuffled

# Tokens by default, in multiples of the stream's width; and how far ahead a change is followed.
ENOUGH = 10
WINDOW, SHORTEST = 64, 16
BATCH_TOKENS = 512
# Added to the metric: a sample of this size knows the least noticed directions only roughly.
RIDGE = 0.1


def sensitivity(
    model: Model, layer: int, tokens: int | None = None, use_store: bool = True, seed: int = 0
) -> Moment:
    """G of the stream after `layer`, of the base without any edits, over the text that ships with surgery.

    tokens: how many to run, ten times the stream's width by default. Kept by content, found again.

    Raises:
        SurgeryError: a layer the model does not have.
    """
    layer = model.check_layer(layer)
    wanted = tokens or ENOUGH * model.hidden_size
    rows: list[list[int]] = []
    for passage in shuffled(read_passages()):
        ids = tokenize(model, passage)[: min(WINDOW, model.max_positions)]
        if len(ids) >= SHORTEST:
            rows.append(ids)
            wanted -= len(ids)
        if wanted <= 0:
            break
    base_id = Lineage.of(model.checkpoint).base_id
    store = Store(content_key(f"sensitivity {seed} {base_id}", rows))
    if use_store and store.has(layer):
        return store.load(layer)
    with bare(model):
        moment = _measure(model, layer, rows, seed)
    if use_store:
        texts = hashlib.sha256(repr(rows).encode()).hexdigest()
        store.save(layer, moment, {"base_id": base_id, "text_hash": texts, "of": "sensitivity"})
    return moment


def _measure(model: Model, layer: int, rows: list[list[int]], seed: int) -> Moment:
    """One backward pass from what the model would say to the stream after `layer`."""
    dice = torch.Generator().manual_seed(seed)
    fitter = MomentFitter(model.hidden_size, model.device)
    with meter(f"sensitivity of layer {layer}", sum(map(len, rows)), "tok") as progress:
        for index in by_length([len(row) for row in rows], BATCH_TOKENS):
            chosen = [rows[i] for i in index]
            fitter.update(gradients(model, layer, chosen, dice))
            progress.advance(sum(map(len, chosen)))
    return fitter.fit()


def gradients(
    model: Model, layer: int, rows: list[list[int]], dice: torch.Generator
) -> torch.Tensor:
    """g at every token but the first of each row, (n, d_model) float32.

    The first token is where attention rests when it looks for nothing: nothing is ever said of it.
    """
    batch = pad(rows, model)
    real = batch.mask.bool()
    leaf: list[torch.Tensor] = []

    def cut(_m: nn.Module, _a: Any, _k: Any, output: Any) -> Any:
        leaf.append(first(output).detach().requires_grad_(True))
        return with_first(output, leaf[0])

    with hooks() as attach, torch.enable_grad():
        attach.post(model.layer(layer), cut)
        # Predictions of real tokens only: a padded one is asked nothing.
        attach.pre(model.head, lambda _m, a, k: with_argument(a, k, argument(a, k)[real][None]))
        logits = model.hf(**batch.inputs(), use_cache=False).logits[0].float()
        odds = logits.detach().softmax(-1).cpu()
        said = torch.multinomial(odds, 1, generator=dice)[:, 0].to(logits.device)
        loss = nn.functional.cross_entropy(logits, said, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf[0])
    followed = real.clone()
    followed[torch.arange(len(rows)), real.int().argmax(1)] = False
    return gradient[followed].float()


def metric(moment: Moment, ridge: float = RIDGE) -> torch.Tensor:
    """G with a mean eigenvalue of one, plus `ridge` of the identity: what is short, (d_model, d_model)."""
    G = moment.mean.double()
    eye = torch.eye(G.shape[0], dtype=G.dtype, device=G.device)
    return G / G.diagonal().mean() + ridge * eye
