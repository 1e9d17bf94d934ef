"""A linear probe: can the old answer be read off the hidden states, even where the model does not say it?

Ridge regression from the stream at the prompt's end to the embedding of the answer, fitted on one half
of the items (and on other subjects of their relations), tested on the other half, and the other way
round. Predicting an embedding instead of a class lets it name answers it was not trained on. The
layer is the one with the smallest leave-one-out error on the half it was fitted to.

Where every new answer stands for one old answer alone, a probe can learn to translate one into the
other without anything of the old being left; relearning can, too, and made-up subjects, which have no
new answer, do not show it. Facts whose new answers were drawn at random are safe from that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from surgery.audit.score import pair_ids
from surgery.ladder.items import Item
from surgery.ladder.rung import NOTHING, Family, Score, Setting
from surgery.ladder.states import states
from surgery.model import Model

_OTHERS = 60
_RIDGE = 0.1


@torch.no_grad()
def probe(model: Model, items: Sequence[Item], setting: Setting) -> dict[str, list[Score]]:
    others = list(dict.fromkeys(pair for item in items for pair in item.others))[:_OTHERS]
    texts = [item.text for item in items] + [prompt for prompt, _ in others]
    seen = states(model, texts).double()
    known = [*((i.text, i.old) for i in items), *others]
    answers = torch.stack([_embedding(model, prompt, answer) for prompt, answer in known])
    scores = [NOTHING] * len(items)
    for fold in (0, 1):
        tested = [i for i, f in enumerate(setting.fold) if f == fold]
        fitted = [i for i, f in enumerate(setting.fold) if f != fold]
        fitted += range(len(items), len(texts))
        if not tested or len(fitted) < 4:
            continue
        predicted = _predict(seen[fitted], answers[fitted], seen[tested])
        for index, guess in zip(tested, predicted, strict=True):
            item = items[index]
            rows = torch.stack([_embedding(model, item.text, a) for a in item.answers])
            close = torch.cosine_similarity(guess[None], rows - answers[fitted].mean(0), dim=-1)
            scores[index] = Score(float(close[0] - close[1:].max()))
    return {"probe": scores}


def _embedding(model: Model, prompt: str, answer: str) -> torch.Tensor:
    """Mean input embedding of an answer's tokens as they stand after the prompt, float64 (d,)."""
    ids = torch.tensor(pair_ids(model, prompt, answer)[1], device=model.device)
    row = model.embedding.weight[ids].double().mean(0).cpu()
    return row / row.norm().clamp_min(1e-12)


def _predict(X: torch.Tensor, Y: torch.Tensor, Z: torch.Tensor) -> torch.Tensor:
    """Fit X (n, layers, d) to Y (n, e); predict for Z (m, layers, d), (m, e) around Y's mean.

    In the dual, (K + lambda I)^-1 with K = X Xt: n is small, d is not. The leave-one-out residual of
    row i is alpha_i / (K + lambda I)^-1_ii.
    """
    target = Y - Y.mean(0)
    best: tuple[float, torch.Tensor] | None = None
    for layer in range(X.shape[1]):
        mean, spread = X[:, layer].mean(0), X[:, layer].std(0).clamp_min(1e-9)
        x, z = (X[:, layer] - mean) / spread, (Z[:, layer] - mean) / spread
        kernel = x @ x.T
        penalty = _RIDGE * kernel.diagonal().mean().clamp_min(1e-9)
        inverse = torch.linalg.inv(kernel + penalty * torch.eye(len(x), dtype=x.dtype))
        alpha = inverse @ target
        error = float((alpha / inverse.diagonal()[:, None]).square().sum())
        if best is None or error < best[0]:
            best = error, z @ x.T @ alpha
    assert best is not None
    return best[1]


FAMILIES = (Family({"probe": "linear probe, fitted on the other half"}, probe, unit="cosine"),)
