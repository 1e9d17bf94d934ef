"""Facts side by side: the losses of all as a function of each one's own change d.

Rows are independent of each other, so they are run in buckets of like length, whatever fact they are of:
answers are of one token here and of eight there, and in one batch most of the work would be padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from surgery.facts.bucket import Bucket, Site, tail_length
from surgery.facts.partition import partition
from surgery.facts.past import read_past
from surgery.facts.rows import Row
from surgery.model import Model


@dataclass(frozen=True)
class Losses:
    """What a batch of facts loses with a change in place.

    nll: (facts, contexts) summed negative log-likelihood of the answer, nats; tokens: (facts, contexts) how
    many it has; kl: (facts,) KL(p_0 || p) of the essence rows, nats; gradient: gives (facts, contexts + 1,
    d_model), of each context's nll and, last, of the kl, by the change in that row alone. It is to be asked
    at most once, and not at all where the losses are low enough: a backward pass costs as much as a forward.
    """

    nll: torch.Tensor
    tokens: torch.Tensor
    kl: torch.Tensor
    gradient: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """Some facts, ready to be evaluated. start: (facts, d_model) v_0, at the bare prompts.

    Rows are numbered by fact: its contexts, then its essence row. `places[b]` are the numbers of the rows
    in bucket b, `tokens` (facts, contexts) how many the answer has.
    """

    buckets: list[Bucket]
    places: list[torch.Tensor]
    start: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def prepare(
        cls,
        model: Model,
        rewriting: Sequence[Sequence[Row]],
        essence: Sequence[Row],
        layer: int,
        site: Site,
    ) -> Problem:
        rows = [row for r, e in zip(rewriting, essence, strict=True) for row in (*r, e)]
        each = len(rewriting[0]) + 1
        device = model.device
        groups = partition([tail_length(row) for row in rows])
        places = [torch.tensor(group, device=device) for group in groups]
        past = read_past(model, [row.ids[: row.subject] for row in rows])
        buckets = [
            Bucket.prepare(model, [rows[i] for i in group], past[place], layer, site)
            for group, place in zip(groups, places, strict=True)
        ]
        start = torch.empty(len(rows), model.hidden_size, device=device)
        for place, bucket in zip(places, buckets, strict=True):
            start[place] = bucket.start
        tokens = torch.tensor(
            [[len(r.ids) - r.answer for r in c] for c in rewriting], device=device
        )
        return cls(buckets, places, start[::each].contiguous(), tokens)

    @property
    def rows_each(self) -> int:
        return self.tokens.shape[1] + 1

    def keep(self, facts: torch.Tensor) -> Problem:
        """The same problem for some of its facts only (a mask over the facts present)."""
        rows = facts.repeat_interleave(self.rows_each)
        number = rows.cumsum(0) - 1
        left = [
            (bucket.keep(rows[place]), number[place[rows[place]]])
            for bucket, place in zip(self.buckets, self.places, strict=True)
            if rows[place].any()
        ]
        return replace(
            self,
            buckets=[bucket for bucket, _ in left],
            places=[place for _, place in left],
            start=self.start[facts],
            tokens=self.tokens[facts],
        )

    def losses(self, change: torch.Tensor) -> Losses:
        """The losses with `change` (facts, d_model) in place."""
        own = change.detach().repeat_interleave(self.rows_each, 0)
        loss = torch.zeros(len(own), device=own.device)
        back: list[tuple[torch.Tensor, Callable[[], torch.Tensor]]] = []
        for bucket, place in zip(self.buckets, self.places, strict=True):
            loss[place], of_rows = bucket.losses(own[place])
            back.append((place, of_rows))

        def gradient() -> torch.Tensor:
            found = torch.zeros_like(own)
            for place, of_rows in back:
                found[place] = of_rows()
            return found.unflatten(0, (-1, self.rows_each))

        by_fact = loss.unflatten(0, (-1, self.rows_each))
        return Losses(by_fact[:, :-1], self.tokens, by_fact[:, -1], gradient)
