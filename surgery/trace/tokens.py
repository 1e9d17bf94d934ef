"""What the model expects next, before and after an edit, and how much a text surprises it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from surgery.model import Model, pad
from surgery.trace.lens import prompt_ids


@dataclass(frozen=True)
class NextToken:
    """A candidate for the next token. rank counts from 1."""

    token: str
    id: int
    probability: float
    rank: int


@dataclass(frozen=True)
class NextTokenChange:
    """A candidate on both sides of an edit."""

    token: str
    id: int
    before: float
    after: float
    rank_before: int
    rank_after: int

    @property
    def change(self) -> float:
        return self.after - self.before

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "change": self.change}


@dataclass(frozen=True)
class Surprise:
    """tokens: a text's tokens. nats: -log p of each given those before it; None for one that nothing
    precedes."""

    tokens: list[str]
    nats: list[float | None]

    @property
    def mean(self) -> float:
        known = [n for n in self.nats if n is not None]
        return sum(known) / len(known) if known else float("nan")


@torch.no_grad()
def next_token_log_probs(model: Model, prompt: str) -> torch.Tensor:
    """Log-probability of every token of the vocabulary after the prompt, (vocabulary), float32."""
    batch = pad([prompt_ids(model, prompt)], model)
    logits = model.hf(**batch.inputs(), use_cache=False, logits_to_keep=1).logits
    return logits[0, -1].float().log_softmax(-1).cpu()


def next_tokens(model: Model, prompt: str, k: int = 10) -> list[NextToken]:
    """The k most likely next tokens, the likeliest first."""
    log_probs = next_token_log_probs(model, prompt)
    best = log_probs.topk(min(k, len(log_probs)))
    return [
        NextToken(model.tokenizer.decode([token]), token, p, rank)
        for rank, (token, p) in enumerate(
            zip(best.indices.tolist(), best.values.exp().tolist(), strict=True), start=1
        )
    ]


def next_tokens_compared(
    tokenizer: Any, before: torch.Tensor, after: torch.Tensor, k: int = 10
) -> list[NextTokenChange]:
    """The next-token table before and after: the top k of either side, the largest change first.

    before, after: `next_token_log_probs` of the same prompt, taken on either side of the edit.
    """
    k = min(k, len(after))
    shown = list(dict.fromkeys([*after.topk(k).indices.tolist(), *before.topk(k).indices.tolist()]))
    rows = [
        NextTokenChange(
            token=tokenizer.decode([token]),
            id=token,
            before=float(before[token].exp()),
            after=float(after[token].exp()),
            rank_before=int((before > before[token]).sum()) + 1,
            rank_after=int((after > after[token]).sum()) + 1,
        )
        for token in shown
    ]
    return sorted(rows, key=lambda row: -abs(row.change))


@torch.no_grad()
def surprise(model: Model, text: str) -> Surprise:
    """-log p of every token of a text, in nats."""
    ids = prompt_ids(model, text)
    logits = model.hf(**pad([ids], model).inputs(), use_cache=False).logits[0].float()
    target = torch.tensor(ids[1:], dtype=torch.long, device=logits.device)
    nll = -logits[:-1].log_softmax(-1).gather(1, target[:, None])[:, 0]
    return Surprise([model.tokenizer.decode([i]) for i in ids], [None, *nll.tolist()])
