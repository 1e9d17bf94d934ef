"""A linear probe: is what the base knows still written in the hidden states, even where it is not said?

Ridge regression from the stream at the prompt's end to the embedding of the answer. It is fitted on the
base, on one half of the items and on other subjects of their relations, and reads base and edited model on
the other half, and the other way round. Predicting an embedding instead of a class lets it name answers it
was not fitted on. The layer is the one in the upper half with the smallest leave-one-out error: further
down, the answer is not looked up yet, and a probe guesses it from the name.

A probe fitted on the edited model would learn to translate new answers back into old ones, and to guess old
ones from what was never edited; then a fact would look hidden of which nothing is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from surgery.audit.score import pair_ids
from surgery.ladder.items import Item
from surgery.ladder.rung import NOTHING, Family, Score, Setting
from surgery.ladder.states import states
from surgery.model import Model

_OTHERS = 60
_RIDGE = 0.1


@dataclass(frozen=True)
class Reader:
    """z -> centre + ((z - mean) / spread) @ weights, on the states (d,) out of one layer, float64."""

    layer: int
    mean: torch.Tensor
    spread: torch.Tensor
    weights: torch.Tensor
    centre: torch.Tensor

    def read(self, seen: torch.Tensor) -> torch.Tensor:
        """(m, layers, d) to (m, e), around the centre."""
        return ((seen[:, self.layer] - self.mean) / self.spread) @ self.weights


@torch.no_grad()
def readers(base: Model, items: Sequence[Item], fold: Sequence[int]) -> tuple[Reader | None, ...]:
    """For each half a probe of the base that was fitted without it; None if too little is left."""
    # In turn from every item, so that no relation crowds out the others.
    turns = zip_longest(*(item.others for item in items))
    others = list(dict.fromkeys(pair for turn in turns for pair in turn if pair))[:_OTHERS]
    known = [*((i.text, i.old) for i in items), *others]
    seen = states(base, [prompt for prompt, _ in known]).double()
    answers = torch.stack([_embedding(base, prompt, answer) for prompt, answer in known])
    found: list[Reader | None] = []
    for half in (0, 1):
        fitted = [i for i, f in enumerate(fold) if f != half] + [*range(len(items), len(known))]
        found.append(fit(seen[fitted], answers[fitted]) if len(fitted) >= 4 else None)
    return tuple(found)


@torch.no_grad()
def probe(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    """margin: cosine of what is read with the old answer's embedding, over its best rival's."""
    if not any(setting.readers):
        return {"probe": [NOTHING] * len(items)}
    seen = states(model, [item.text for item in items]).double()
    scores = []
    for item, half, row in zip(items, setting.fold, seen, strict=True):
        reader = setting.readers[half]
        if reader is None:
            scores.append(NOTHING)
            continue
        options = torch.stack([_embedding(model, item.text, a) for a in item.options])
        said = reader.read(row[None])
        close = torch.cosine_similarity(said, options - reader.centre, dim=-1)
        scores.append(Score(float(close[0] - close[1:].max())))
    return {"probe": scores}


def _embedding(model: Model, prompt: str, answer: str) -> torch.Tensor:
    """Mean input embedding of an answer's tokens as they stand after the prompt, float64 (d,)."""
    ids = torch.tensor(pair_ids(model, prompt, answer)[1], device=model.device)
    row = model.embedding.weight[ids].cpu().double().mean(0)
    return row / row.norm().clamp_min(1e-12)


def fit(X: torch.Tensor, Y: torch.Tensor) -> Reader:
    """Ridge of X (n, layers, d) on Y (n, e), at the best layer of the upper half.

    In the dual, (K + lambda I)^-1 with K = X Xt: n is small, d is not. The leave-one-out residual of
    row i is alpha_i / (K + lambda I)^-1_ii.
    """
    centre = Y.mean(0)
    best: tuple[float, Reader] | None = None
    for layer in range(X.shape[1] // 2, X.shape[1]):
        mean, spread = X[:, layer].mean(0), X[:, layer].std(0).clamp_min(1e-9)
        x = (X[:, layer] - mean) / spread
        kernel = x @ x.T
        penalty = _RIDGE * kernel.diagonal().mean().clamp_min(1e-9)
        inverse = torch.linalg.inv(kernel + penalty * torch.eye(len(x), dtype=x.dtype))
        alpha = inverse @ (Y - centre)
        error = float((alpha / inverse.diagonal()[:, None]).square().sum())
        if best is None or error < best[0]:
            best = error, Reader(layer, mean, spread, x.T @ alpha, centre)
    assert best is not None
    return best[1]


FAMILIES = (Family({"probe": "read off its activations (linear probe)"}, probe, unit="cosine"),)
