"""How far a model is from doing the thing, read from the first token of its answer.

Published refusal metrics list token ids by hand, one list per model family, and break on the next
family. Here the tokens come from the model itself: those it is more likely to begin with on positive
prompts than on negative ones. So the same measure serves language, sentiment or formality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

# The opening tokens are the fewest that make up this share of what sets the two sets apart.
_COVER = 0.9
_MOST_TOKENS = 200
# Below this total variation the first token hardly tells the sets apart.
_WEAK = 0.15


@dataclass(frozen=True)
class Opening:
    """tokens: ids with which an answer to a positive prompt begins. distance: total variation between
    the mean first-token distributions of the two sets, 0 to 1. positive, negative: the mean score of
    each, in nats."""

    tokens: torch.Tensor
    distance: float
    positive: float
    negative: float

    @classmethod
    def of(cls, positive: torch.Tensor, negative: torch.Tensor) -> Opening:
        """From first-token logits (prompts, vocabulary) on both sets."""
        plus = positive.double().softmax(-1).mean(0)
        minus = negative.double().softmax(-1).mean(0)
        excess = (plus - minus).clamp_min(0)
        values, order = excess.sort(descending=True)
        covered = (values.cumsum(0) < _COVER * values.sum()).sum()
        tokens = order[: min(int(covered) + 1, _MOST_TOKENS)].clone()
        found = cls(tokens, float(excess.sum()), 0.0, 0.0)
        return cls(
            tokens,
            found.distance,
            float(found.score(positive).mean()),
            float(found.score(negative).mean()),
        )

    @property
    def weak(self) -> bool:
        """Whether the first token says too little about the behaviour to choose by it."""
        return self.distance < _WEAK

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """log(P / (1 - P)) with P the probability of an opening token; (prompts,), float64."""
        logprobs = logits.double().log_softmax(-1)
        inside = logprobs[..., self.tokens].logsumexp(-1)
        rest = torch.ones(logprobs.shape[-1], dtype=torch.bool, device=logprobs.device)
        rest[self.tokens] = False
        return inside - logprobs[..., rest].logsumexp(-1)

    def probability(self, logits: torch.Tensor) -> torch.Tensor:
        """Of beginning with an opening token; (prompts,), float64."""
        return self.score(logits).sigmoid()

    def shows(self, logits: torch.Tensor) -> torch.Tensor:
        """Whether each prompt's answer is more likely to begin that way than not; (prompts,) bool."""
        return self.score(logits) > 0

    def share(self, logits: torch.Tensor) -> float:
        """Where the mean score lies between the negatives' (0) and the positives' (1)."""
        gap = self.positive - self.negative
        return (float(self.score(logits).mean()) - self.negative) / gap if gap else 0.0

    def words(self, tokenizer: Any, most: int = 6) -> list[str]:
        """The opening tokens as text, the weightiest first."""
        return [tokenizer.decode([int(t)]) for t in self.tokens[:most]]
