"""Trying a direction out on prompts it was not made from: what is left of the behaviour, and what it cost.

The behaviour is measured by how answers begin, on a scale of the model's own (see `metric`). The cost is
measured as the flinch test measures it: KL on the first tokens of harmless answers, and perplexity of
ordinary text, which has nothing to do with either prompt set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from surgery.directions.capture import frame
from surgery.directions.intervene import ablating, adding
from surgery.directions.metric import Opening
from surgery.measure.damage import Reference, ordinary_texts
from surgery.model import Model, tokenize
from surgery.model.run import is_templated
from surgery.training.prefix import shared_prefix
from surgery.training.supervised import Example, answer_logits

# Ordinary passages a trial reads, and characters of each: some 1,500 tokens in all.
_PASSAGES, _CHARACTERS = 12, 600


@dataclass(frozen=True)
class Effect:
    """left: how much of the behaviour is left, as the mean probability that a positive prompt's answer
    begins with it, where 1 is what it was and 0 is that of the negatives. bypass: how much is gone on the
    scale of the log-odds, which also tells a little gone from none (1: positives behave like negatives).
    kl: of the first answer tokens of negatives, nats. perplexity: its rise on ordinary text, 0.01 is one
    percent."""

    left: float
    bypass: float
    kl: float
    perplexity: float

    def data(self) -> dict[str, float]:
        """For files and `--json`."""
        return asdict(self)


class Trial:
    """A model, held-out prompts of both sets, and what it does with them while nothing is changed."""

    def __init__(
        self, model: Model, positive: Sequence[str], negative: Sequence[str], use_chat: bool | None
    ) -> None:
        self.model = model
        self._plus = prompt_rows(model, positive, use_chat)
        self._minus = prompt_rows(model, negative, use_chat)
        plus, minus = first_logits(model, self._plus), first_logits(model, self._minus)
        self.opening = Opening.of(plus, minus)
        # Mean probability of beginning with the behaviour: of negatives, of positives.
        self._off, self._on = (float(self.opening.probability(x).mean()) for x in (minus, plus))
        texts = ordinary_texts(model)
        step = max(1, len(texts) // _PASSAGES)
        self.reference = Reference(
            model,
            frame(model, negative, use_chat),
            texts=[t[:_CHARACTERS] for t in texts[::step]],
            framed=True,
        )

    def removed(
        self, R: torch.Tensor, layers: Sequence[int], readers: torch.Tensor | None = None
    ) -> Effect:
        """Rows R (k, d) taken out of what attention and MLP of these layers write, as `ablating` does."""
        with ablating(self.model, R.float(), dict.fromkeys(layers, 1.0), readers=readers):
            logits = first_logits(self.model, self._plus)
            damage = self.reference.damage(self.model)
        still = float(self.opening.probability(logits).mean()) - self._off
        left = max(0.0, still) / max(self._on - self._off, 1e-6)
        bypass = 1 - self.opening.share(logits)
        return Effect(left, bypass, damage.kl, damage.perplexity_rise)

    def added(self, gap: torch.Tensor, layer: int) -> float:
        """How much of the behaviour comes on when the gap (d) is added to a layer's input on negatives."""
        with adding(self.model, gap.float(), layer):
            return self.opening.share(first_logits(self.model, self._minus))


def prompt_rows(model: Model, prompts: Sequence[str], use_chat: bool | None) -> list[Example]:
    """Prompts as token ids, with a stand-in answer so that the logits after them are asked for."""
    texts = frame(model, prompts, use_chat)
    return [Example(tuple(tokenize(model, t, not is_templated(model, t))), (0,)) for t in texts]


@torch.no_grad()
def first_logits(model: Model, rows: Sequence[Example], batch: int = 32) -> torch.Tensor:
    """Logits of each answer's first token, (prompts, vocabulary) float32 on the CPU."""
    shared = shared_prefix([row.prompt for row in rows])
    pieces = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    return torch.cat([answer_logits(model, piece, shared)[0].float().cpu() for piece in pieces])
