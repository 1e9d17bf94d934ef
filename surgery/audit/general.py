"""Damage on text that has nothing to do with the edit: KL, agreement, perplexity, hidden norms.

Everything is per token and exact over the whole vocabulary, in nats. KL is KL(base || edited) =
sum_v p(v) (log p(v) - log q(v)): when both sides' logits are equal bit for bit, every term is exactly
zero, so an identity edit measures exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from surgery.audit.head import BATCH_TOKENS, Head, hidden_at
from surgery.model import Model, by_length, tokenize
from surgery.model.hooks import first


@dataclass(frozen=True)
class Passage:
    """A text of some kind ("code", "languages"), as token ids."""

    kind: str
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class TextStates:
    """What a model makes of the passages, at every token that has a next one (tokens in all, in order).

    hidden: final hidden states (tokens, d). nll: of the next token, float32. norms: Euclidean length
    of each layer's output (layers, tokens), float32.
    """

    hidden: torch.Tensor
    nll: torch.Tensor
    norms: torch.Tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"hidden": self.hidden, "nll": self.nll, "norms": self.norms}

    def of(self, texts: Sequence[Passage], chosen: Sequence[int]) -> TextStates:
        """Those of some passages only (numbers in ascending order)."""
        mine = torch.isin(owners(texts), torch.tensor(chosen))
        return TextStates(
            self.hidden[mine.to(self.hidden.device)], self.nll[mine], self.norms[:, mine]
        )


def passages(model: Model, kind: str, texts: Sequence[str], tokens: int) -> list[Passage]:
    """The texts cut to at most `tokens` tokens; those with fewer than two say nothing."""
    found = [Passage(kind, text, tuple(tokenize(model, text)[:tokens])) for text in texts]
    return [passage for passage in found if len(passage.ids) > 1]


def owners(texts: Sequence[Passage]) -> torch.Tensor:
    """For every token of `TextStates`, the number of its passage."""
    lengths = torch.tensor([len(passage.ids) - 1 for passage in texts])
    return torch.repeat_interleave(torch.arange(len(texts)), lengths)


def first_batch(texts: Sequence[Passage]) -> list[int]:
    """The passages that are read together in the first batch. Read alone, they make the same batch,
    so the same weights give the same bits."""
    return sorted(next(by_length([len(passage.ids) for passage in texts], BATCH_TOKENS)))


@torch.no_grad()
def text_states(model: Model, texts: Sequence[Passage], label: str = "reading texts") -> TextStates:
    """One pass over the passages."""
    rows = [list(passage.ids) for passage in texts]
    wanted = [list(range(len(row) - 1)) for row in rows]
    norms: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    seen: dict[int, torch.Tensor] = {}

    def watch(attach: Any) -> None:
        seen.clear()
        for layer in range(model.n_layers):

            def keep(_m: Any, _a: Any, _k: Any, output: Any, layer: int = layer) -> None:
                seen[layer] = first(output).float().norm(dim=-1)

            attach.post(model.layer(layer), keep)

    def collect(index: list[int], _mask: torch.Tensor) -> None:
        lengths = torch.stack([seen[layer] for layer in range(model.n_layers)])
        for line, i in enumerate(index):
            norms[i] = lengths[:, line, : len(wanted[i])].cpu()

    hidden = torch.cat(hidden_at(model, rows, wanted, label=label, during=watch, after=collect))
    target = torch.tensor([token for row in rows for token in row[1:]], device=hidden.device)
    head = Head.of(model)
    nll = torch.empty(len(target))
    for piece in head.pieces(len(target)):
        logits = head.logits(hidden[piece])
        picked = logits.gather(-1, target[piece, None])[:, 0]
        nll[piece] = (logits.logsumexp(-1) - picked).cpu()
    return TextStates(hidden, nll, torch.cat(norms, dim=1))


@dataclass(frozen=True)
class Divergence:
    """Base against edited, per token: KL(base || edited) in nats, and whether the likeliest next
    token is the same."""

    kl: torch.Tensor
    agree: torch.Tensor


@torch.no_grad()
def divergence(
    base: TextStates, base_head: Head, edited: TextStates, edited_head: Head
) -> Divergence:
    """Exact over the vocabulary, from the final hidden states of both sides."""
    count = len(base.nll)
    kl, agree = torch.empty(count), torch.empty(count, dtype=torch.bool)
    for piece in base_head.pieces(count):
        p = base_head.logits(base.hidden[piece]).log_softmax(-1)
        q = edited_head.logits(edited.hidden[piece]).log_softmax(-1)
        terms = p.exp() * (p - q)
        # 0 log 0 = 0: a token the base rules out costs nothing.
        terms = terms.masked_fill(p == -math.inf, 0.0)
        kl[piece] = terms.sum(-1).cpu()
        agree[piece] = (p.argmax(-1) == q.argmax(-1)).cpu()
    # Rounding can leave a sum of a few 1e-8 below zero, which no KL is. NaN stays NaN.
    return Divergence(kl.clamp_min(0), agree)


def perplexity(nll: torch.Tensor) -> float:
    """exp of the mean NLL over tokens; infinite where it does not fit a float."""
    mean = float(nll.double().mean())
    return math.exp(mean) if not mean > 700 else math.inf


def norm_ratios(base: TextStates, edited: TextStates) -> list[float]:
    """For each layer, the mean over tokens of |edited output| / |base output|."""
    return (edited.norms / base.norms.clamp_min(1e-30)).double().mean(1).tolist()
