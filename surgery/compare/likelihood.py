"""Token by token: how likely a model finds a text after a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from surgery.facts.rows import joined
from surgery.model import Model, by_length, check_length, continuation_ids, pad
from surgery.model.run import is_templated


@dataclass(frozen=True)
class TokenScores:
    """Tokens of a text (as text) and the log-probability of each, in nats, under teacher forcing."""

    tokens: list[str]
    log_probs: list[float]

    @property
    def total(self) -> float:
        return sum(self.log_probs)

    @property
    def mean(self) -> float:
        return self.total / len(self.log_probs)

    @property
    def least(self) -> int:
        """Index of the token the model finds least likely."""
        return min(range(len(self.log_probs)), key=self.log_probs.__getitem__)


@torch.no_grad()
def token_log_probs(
    model: Model, pairs: Sequence[tuple[str, str]], batch_tokens: int = 4096
) -> list[TokenScores]:
    """Score every (prompt, text). The text gets the space before it that writing puts there, except
    behind a chat template. An empty text scores as the end of the answer."""
    split = [_ids(model, prompt, text) for prompt, text in pairs]
    check_length(model, [head + tail for head, tail in split])
    found: list[TokenScores | None] = [None] * len(pairs)
    for index in by_length([len(p) + len(t) for p, t in split], batch_tokens):
        batch = pad([split[i][0] + split[i][1] for i in index], model)
        # Logits are kept only from the first text that begins: prompts are long, answers short.
        begin = min(len(split[i][0]) for i in index) - 1
        keep = batch.ids.shape[1] - begin
        logits = model.hf(**batch.inputs(), use_cache=False, logits_to_keep=keep).logits
        for row, i in enumerate(index):
            prompt, text = split[i]
            at = slice(len(prompt) - 1 - begin, len(prompt) - 1 - begin + len(text))
            target = torch.tensor(text, device=logits.device)
            log_probs = logits[row, at].float().log_softmax(-1).gather(1, target[:, None])[:, 0]
            found[i] = TokenScores(
                [model.tokenizer.decode([token]) for token in text], log_probs.tolist()
            )
    return [scores for scores in found if scores is not None]


def _ids(model: Model, prompt: str, text: str) -> tuple[list[int], list[int]]:
    if not text.strip():
        eos = model.tokenizer.eos_token_id
        return continuation_ids(model, prompt, " ")[0], [eos if eos is not None else 0]
    templated = is_templated(model, prompt)
    return continuation_ids(model, prompt, text.strip() if templated else joined(prompt, text))
