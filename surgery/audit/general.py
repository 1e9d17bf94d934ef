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

from surgery.audit.head import Head, hidden_at
from surgery.model import Model, by_length, tokenize
from surgery.model.hooks import first

# Tokens of a batch of texts. The identity control reads one batch again, so it is not to be large.
_BATCH = 512
# Rows of logits that are compared at once: 16 of 50,000 are 3 MB.
_ROWS = 16


@dataclass(frozen=True)
class Passage:
    """A text of some kind ("code", "languages"), as token ids."""

    kind: str
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class TextStates:
    """What a model makes of the passages, at every token that has a next one (tokens in all, in order).

    hidden: final hidden states (tokens, d). nll: of the next token, float32; empty if it was not
    asked for. norms: Euclidean length of each layer's output (layers, tokens), float32.
    """

    hidden: torch.Tensor
    nll: torch.Tensor
    norms: torch.Tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"hidden": self.hidden, "nll": self.nll, "norms": self.norms}

    def of(self, texts: Sequence[Passage], chosen: Sequence[int]) -> TextStates:
        """Those of some passages only (numbers in ascending order)."""
        mine = torch.isin(owners(texts), torch.tensor(chosen))
        hidden = self.hidden[mine.to(self.hidden.device)]
        return TextStates(
            hidden, self.nll[mine] if len(self.nll) else self.nll, self.norms[:, mine]
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
    return sorted(next(by_length([len(passage.ids) for passage in texts], _BATCH)))


@torch.no_grad()
def text_states(
    model: Model, texts: Sequence[Passage], label: str = "reading texts", nll: bool = True
) -> TextStates:
    """One pass over the passages. nll=False leaves out the logits, which `divergences` makes anyway."""
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

    hidden = torch.cat(hidden_at(model, rows, wanted, _BATCH, label, watch, collect))
    if not nll:
        return TextStates(hidden, torch.empty(0), torch.cat(norms, dim=1))
    target, head = _targets(texts, hidden), Head.of(model)
    found = torch.empty(len(target))
    for piece in head.pieces(len(target)):
        log_p = head.logits(hidden[piece]).log_softmax(-1)
        found[piece] = -log_p.gather(-1, target[piece, None])[:, 0].cpu()
    return TextStates(hidden, found, torch.cat(norms, dim=1))


def _targets(texts: Sequence[Passage], hidden: torch.Tensor) -> torch.Tensor:
    tokens = [token for passage in texts for token in passage.ids[1:]]
    return torch.tensor(tokens, device=hidden.device)


@dataclass(frozen=True)
class Divergence:
    """A model against the base, per token: KL(base || it) in nats, whether the likeliest next token
    is the same, and its own NLL of the token that does come next (empty if not asked for)."""

    kl: torch.Tensor
    agree: torch.Tensor
    nll: torch.Tensor


def divergences(
    texts: Sequence[Passage],
    base: TextStates,
    base_head: Head,
    others: Sequence[tuple[TextStates, Head]],
) -> tuple[torch.Tensor, list[Divergence]]:
    """NLL of the base, and every other side against it. Everybody's logits are made once."""
    return _compare(base, base_head, others, _targets(texts, base.hidden))


def divergence(
    base: TextStates, base_head: Head, edited: TextStates, edited_head: Head
) -> Divergence:
    """One side against the base, without NLL."""
    return _compare(base, base_head, [(edited, edited_head)], None)[1][0]


@torch.no_grad()
def _compare(
    base: TextStates,
    base_head: Head,
    others: Sequence[tuple[TextStates, Head]],
    target: torch.Tensor | None,
) -> tuple[torch.Tensor, list[Divergence]]:
    count = len(base.hidden)
    read = count if target is not None else 0
    base_nll = torch.empty(read)
    found = [
        Divergence(torch.empty(count), torch.empty(count, dtype=torch.bool), torch.empty(read))
        for _ in others
    ]
    for piece in base_head.pieces(count):
        ours = base_head.logits(base.hidden[piece])
        theirs = [head.logits(states.hidden[piece]) for states, head in others]
        # The products want many rows at once, everything after them few: those stay in the CPU's cache.
        for begin in range(0, len(ours), _ROWS):
            few = slice(begin, begin + _ROWS)
            rows = slice(piece.start + begin, min(piece.start + begin + _ROWS, piece.stop))
            log_p = ours[few].log_softmax(-1)
            p, best = log_p.exp(), log_p.argmax(-1)
            impossible = p == 0
            token = target[rows, None] if target is not None else None
            if token is not None:
                base_nll[rows] = -log_p.gather(-1, token)[:, 0].cpu()
            for logits, gap in zip(theirs, found, strict=True):
                log_q = logits[few].log_softmax(-1)
                gap.agree[rows] = (log_q.argmax(-1) == best).cpu()
                if token is not None:
                    gap.nll[rows] = -log_q.gather(-1, token)[:, 0].cpu()
                terms = p * log_q.neg_().add_(log_p)
                # 0 log 0 = 0: a token the base rules out costs nothing. NaN otherwise stays NaN.
                terms.masked_fill_(impossible, 0.0)
                # Rounding can leave a sum of a few 1e-8 below zero, which no KL is.
                gap.kl[rows] = terms.sum(-1).clamp_min_(0).cpu()
    return base_nll, found


def perplexity(nll: torch.Tensor) -> float:
    """exp of the mean NLL over tokens; infinite where it does not fit a float."""
    mean = float(nll.double().mean())
    return math.exp(mean) if not mean > 700 else math.inf


def norm_ratios(base: TextStates, edited: TextStates) -> list[float]:
    """For each layer, the mean over tokens of |edited output| / |base output|."""
    return (edited.norms / base.norms.clamp_min(1e-30)).double().mean(1).tolist()
