"""Second moments of all wanted layers in one pass over the text, which stops after the last of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgery.model import Model, by_length, pad, tokenize
from surgery.model.hooks import Stop, argument, hooks
from surgery.progress import meter
from surgery.spec import Fact
from surgery.stack.lineage import Lineage
from surgery.stack.memory import bare
from surgery.statistics.moments import Moment, MomentFitter
from surgery.statistics.store import Store, content_key
from surgery.statistics.subjects import (
    WEIGHT,
    SubjectKeys,
    moments_in_context,
    subject_keys,
)
from surgery.statistics.text import WINDOW, read_passages, shuffled

# Tokens by default, in multiples of the inner width d_ff. Two are enough to make C invertible; ten give
# the full quality of a hundred thousand articles (arXiv 2506.04226, tables 26 and 31).
ENOUGH, LEAST = 10, 2
BATCH_TOKENS = 2048
SAVE_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Statistics:
    """Second moments by layer, and what they were taken from."""

    moments: dict[int, Moment]
    record: dict[str, Any] = field(default_factory=dict)
    subjects: SubjectKeys | None = None

    def against(self, model: Model, facts: Sequence[Fact]) -> dict[int, torch.Tensor]:
        """What an edit of these facts is solved against, by layer: (d_ff, d_ff) float64 on the CPU."""
        text = {layer: moment.mean.double() for layer, moment in self.moments.items()}
        if self.subjects is None:
            return text
        about = [fact.subject for fact in facts]
        here = moments_in_context(model, facts, list(text))
        return {
            layer: c + WEIGHT * (self.subjects.moment(layer, about) + here[layer])
            for layer, c in text.items()
        }


def collect(
    model: Model,
    layers: Sequence[int],
    text: str | Path | None = None,
    tokens: int | None = None,
    use_store: bool = True,
    names: bool = False,
) -> Statistics:
    """Second moments of the down projections' inputs at `layers`, of the base: without any edits.

    names: read the keys of well-known names too, for fact edits (see `subjects`).
    tokens: how many to run; by default ten times the inner width or all there is, whichever is less.
    The result is kept by content and found again; an interrupted pass is taken up where it stopped.

    Raises:
        SurgeryError: no text, or a layer the model does not have.
    """
    layers = sorted({model.check_layer(layer) for layer in layers})
    width = model.mlp_out_weight(layers[0]).shape[1]
    passages = shuffled(read_passages(text))
    wanted = tokens or ENOUGH * width
    rows, taken = _rows(model, passages, wanted)
    base_id = Lineage.of(model.checkpoint).base_id
    record = {
        "base_id": base_id,
        "text": str(text) if text is not None else "the text that ships with surgery",
        "text_hash": hashlib.sha256("\n\n".join(passages).encode()).hexdigest(),
        "tokens": taken,
        "width": width,
        "enough": taken >= LEAST * width,
    }
    store = Store(content_key(base_id, rows))
    found = {n: store.load(n) for n in layers if use_store and store.has(n)}
    missing = [layer for layer in layers if layer not in found]
    if missing:
        with bare(model):
            found.update(_one_pass(model, missing, rows, store if use_store else None, record))
    subjects = subject_keys(model, layers, use_store) if names else None
    return Statistics({layer: found[layer] for layer in layers}, record, subjects)


def _rows(model: Model, passages: list[str], wanted: int) -> tuple[list[list[int]], int]:
    rows: list[list[int]] = []
    taken = 0
    window = min(WINDOW, model.max_positions)
    for passage in passages:
        ids = tokenize(model, passage)
        for begin in range(0, len(ids), window):
            piece = ids[begin : begin + min(window, wanted - taken)]
            if piece:
                rows.append(piece)
                taken += len(piece)
            if taken >= wanted:
                return rows, taken
    return rows, taken


@torch.no_grad()
def _one_pass(
    model: Model,
    layers: list[int],
    rows: list[list[int]],
    store: Store | None,
    record: dict[str, Any],
) -> dict[int, Moment]:
    fitters = {n: MomentFitter(model.mlp_out_weight(n).shape[1], model.device) for n in layers}
    batches = list(by_length([len(row) for row in rows], BATCH_TOKENS))
    ends = list(accumulate(sum(len(rows[i]) for i in index) for index in batches))
    done = 0
    if store is not None and (partial := store.load_partial(layers)) is not None:
        sums, count = partial
        # The rows are always run in one order. Batches of another size may end elsewhere: begin again then.
        if count in ends:
            done = ends.index(count) + 1
            for fitter, total in zip(fitters.values(), sums, strict=True):
                fitter.sum.copy_(total)
                fitter.count = count

    saved = time.monotonic()
    total = sum(len(row) for row in rows)
    with meter(
        f"statistics of {len(layers)} layer{'s' * (len(layers) > 1)}", total, "tok"
    ) as progress:
        for number, index in enumerate(batches):
            size = sum(len(rows[i]) for i in index)
            if number >= done:
                _run(model, fitters, [rows[i] for i in index])
                if store is not None and time.monotonic() - saved > SAVE_EVERY:
                    sums = [fitter.sum for fitter in fitters.values()]
                    store.save_partial(layers, sums, fitters[layers[0]].count)
                    saved = time.monotonic()
            progress.advance(size)

    moments = {layer: fitter.fit() for layer, fitter in fitters.items()}
    if store is not None:
        for layer, moment in moments.items():
            store.save(layer, moment, record)
        store.drop_partial(layers)
    return moments


def _run(model: Model, fitters: dict[int, MomentFitter], rows: list[list[int]]) -> None:
    batch = pad(rows, model)
    real = batch.mask.bool()

    def update(layer: int, keys: torch.Tensor) -> None:
        fitters[layer].update(keys[real])

    last = max(fitters)
    with hooks() as attach:
        for layer in fitters:
            attach.pre(
                model.mlp_out(layer),
                lambda _m, a, k, layer=layer: update(layer, argument(a, k)),
            )
        attach.post(model.mlp_out(last), _stop)
        model.hf(**batch.inputs(), use_cache=False, logits_to_keep=1)


def _stop(_module: nn.Module, _args: Any, _kwargs: Any, _output: Any) -> None:
    raise Stop
