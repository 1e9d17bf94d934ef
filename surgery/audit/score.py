"""How likely a model finds an answer: the one scoring function that every task of the audit uses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from surgery.audit.forest import fits, hidden_in_rows
from surgery.audit.head import Head, hidden_at
from surgery.facts.rows import joined
from surgery.model import Model, continuation_ids


@dataclass(frozen=True)
class AnswerScore:
    """Log-probability (nats) of an answer after its prompt under teacher forcing.

    greedy: every token of it is the most likely one, so greedy decoding would say it.
    """

    mean_logprob: float
    total: float
    greedy: bool
    tokens: int

    @property
    def probability(self) -> float:
        """exp(-mean token NLL): the geometric mean over the answer's tokens."""
        return math.exp(self.mean_logprob)


def pair_ids(
    model: Model, prompt: str, answer: str, join: bool = True
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of the answer after it, split where generation would split them.

    join puts the space before the answer that writing puts there. See `continuation_ids` for an empty
    prompt.
    """
    return continuation_ids(model, prompt, joined(prompt, answer) if join and prompt else answer)


def answer_logprobs(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    join: bool = True,
    label: str = "scoring answers",
) -> list[AnswerScore]:
    """Score every (prompt, answer). See `pair_ids` for how they are put together."""
    return score_ids(model, [pair_ids(model, p, a, join) for p, a in pairs], label)


@torch.no_grad()
def score_ids(
    model: Model, pairs: Sequence[tuple[list[int], list[int]]], label: str = "scoring answers"
) -> list[AnswerScore]:
    """Score answers given as token ids.

    The last token of an answer is only predicted, never read, and what several rows begin with is read
    once: all one-token answers to a prompt cost the prompt.
    """
    if not pairs:
        return []
    rows = [tuple(prompt + answer[:-1]) for prompt, answer in pairs]
    spans = [range(len(p) - 1, len(p) - 1 + len(a)) for p, a in pairs]
    if fits(model, rows):
        hidden, places = hidden_in_rows(model, rows, spans, label)
    else:
        hidden = torch.cat(hidden_at(model, rows, spans, label=label))
        count = itertools.count()
        places = [[next(count) for _ in span] for span in spans]
    position = [place for row in places for place in row]
    target = [token for _, answer in pairs for token in answer]
    logprob, best = _read(Head.of(model), hidden, position, target)
    scores: list[AnswerScore] = []
    begin = 0
    for _, answer in pairs:
        span = slice(begin, begin + len(answer))
        total = float(logprob[span].double().sum())
        scores.append(AnswerScore(total / len(answer), total, bool(best[span].all()), len(answer)))
        begin += len(answer)
    return scores


def _read(
    head: Head, hidden: torch.Tensor, position: list[int], target: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target at its position, and whether it is the most likely token."""
    where = torch.tensor(position, device=hidden.device)
    token = torch.tensor(target, device=hidden.device)
    logprob = torch.empty(len(position), device=hidden.device)
    best = torch.empty(len(position), dtype=torch.bool, device=hidden.device)
    # Several answers may read the same position: group by it, so that its logits are made once.
    order = torch.argsort(where, stable=True)
    distinct, line = torch.unique(where, return_inverse=True)
    for piece in head.pieces(len(distinct)):
        logits = head.logits(hidden[distinct[piece]])
        normal, top = logits.logsumexp(-1), logits.argmax(-1)
        mine = order[(line[order] >= piece.start) & (line[order] < piece.stop)]
        local = line[mine] - piece.start
        logprob[mine] = logits[local, token[mine]] - normal[local]
        best[mine] = top[local] == token[mine]
    return logprob.cpu(), best.cpu()
