"""Rows of a like length as one batch: what the model says with a change d in place, and nothing twice.

d is added to the output of one layer at the subject's last token, so everything that does not depend on
it is computed once:

- no token before the subject's last one sees d: their keys and values are kept (past.py);
- no layer up to the edited one sees d: the forward pass starts above it;
- the answer's last token predicts nothing that is asked for: it is not run;
- logits are taken only where a loss reads them, through the model's own head.

Every row has a d of its own, so one backward pass gives the gradient of each row by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from surgery.facts.past import Past
from surgery.facts.rows import Row
from surgery.model import Model, pad
from surgery.model.hooks import Stop, argument, first, hooks, with_argument

Site = Literal["stream", "value"]


@dataclass(frozen=True)
class Bucket:
    """Everything about some rows that does not depend on d.

    The tail of a row begins at the subject's last token, so d is always added in column 0. An essence row
    has no answer: it is there for what follows its subject, which should stay what it is.
    """

    model: Model
    layer: int
    site: Site
    ids: torch.Tensor  # (rows, tail) tokens from the subject on
    mask: torch.Tensor  # (rows, tail)
    positions: torch.Tensor  # (rows, tail)
    hidden: torch.Tensor  # (rows, tail, d) output of the edited layer without d
    value: torch.Tensor  # (rows, d) output of its down projection at the subject
    past: Past  # keys and values before the subject
    answer: torch.Tensor  # (rows, tail) the token to predict at each column, -1 where none
    kept: torch.Tensor | None = None  # (essence rows, vocabulary) log p_0 of the token after them

    # ------------------------------------------------------------------ what is computed once
    @classmethod
    @torch.no_grad()
    def prepare(
        cls, model: Model, rows: Sequence[Row], past: Past, layer: int, site: Site
    ) -> Bucket:
        device = model.device
        tails = [tail_length(row) for row in rows]
        batch = pad([row.ids[row.subject :][:n] for row, n in zip(rows, tails, strict=True)], model)
        subject = torch.tensor([row.subject for row in rows], device=device)
        answer = torch.full_like(batch.ids, -1)
        for index, row in enumerate(rows):
            for position in range(row.answer, len(row.ids)):
                answer[index, position - 1 - row.subject] = row.ids[position]
        empty = torch.empty(0, device=device)
        bucket = cls(
            model=model,
            layer=layer,
            site=site,
            ids=batch.ids,
            mask=batch.mask,
            positions=subject[:, None] + torch.arange(max(tails), device=device),
            hidden=empty,
            value=empty,
            past=past,
            answer=answer,
        )
        return bucket._with_hidden()._with_kept()

    def _with_hidden(self) -> Bucket:
        """Remember the edited layer's output and value, from one pass that goes no further."""
        seen: dict[str, torch.Tensor] = {}

        def leave(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
            seen["hidden"] = first(output)
            raise Stop

        with hooks() as attach:
            attach.post(
                self.model.mlp_out(self.layer), lambda _m, a, k, o: seen.update(value=first(o))
            )
            attach.post(self.model.layer(self.layer), leave)
            self._forward()
        return replace(self, hidden=seen["hidden"], value=seen["value"][:, 0].float())

    def _with_kept(self) -> Bucket:
        """Remember what the essence rows predict before anything is changed."""
        if not self.essence.any():
            return replace(self, kept=self.value.new_empty(0, len(self.model.head.weight)))
        rows = self._rows(self.essence)
        return replace(self, kept=rows._logits(torch.zeros_like(rows.value))[0].log_softmax(-1))

    def keep(self, rows: torch.Tensor) -> Bucket:
        """Some of the rows only (a mask)."""
        assert self.kept is not None
        return replace(self._rows(rows), kept=self.kept[rows[self.essence]])

    def _rows(self, rows: torch.Tensor) -> Bucket:
        names = ("ids", "mask", "positions", "hidden", "value", "past", "answer")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @property
    def start(self) -> torch.Tensor:
        """(rows, d_model) v_0: what d is added to."""
        return self.value if self.site == "value" else self.hidden[:, 0].float()

    @property
    def essence(self) -> torch.Tensor:
        """(rows,) whether a row is an essence row."""
        return (self.answer < 0).all(1)

    # ------------------------------------------------------------------ what depends on d
    def losses(self, change: torch.Tensor) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
        """The loss of each row (rows,) with `change` (rows, d_model) in place: the answer's summed negative
        log-likelihood, or for essence rows KL(p_0 || p). And what gives its gradient by the row's change,
        to be asked once or never."""
        assert self.kept is not None
        own = change.detach().requires_grad_(True)
        logits, row, column = self._logits(own)
        of_answer = ~self.essence[row]
        tokens = self.answer[row[of_answer], column[of_answer]]
        nll = nn.functional.cross_entropy(logits[of_answer], tokens, reduction="none")
        after = logits[~of_answer].log_softmax(-1)
        kl = (self.kept.exp() * (self.kept - after)).sum(-1)
        loss = torch.zeros(len(own), device=own.device)
        loss = loss.index_add(0, row[of_answer], nll).index_add(0, row[~of_answer], kl)
        return loss.detach(), lambda: torch.autograd.grad(loss.sum(), own)[0]

    def _logits(self, change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (wanted, vocabulary) float32 with `change` (rows, d_model) in place, and the row and
        column each belongs to: where an answer token is predicted, and column 0 of essence rows."""
        wanted = self.answer >= 0
        wanted[:, 0] |= self.essence
        row, column = wanted.nonzero(as_tuple=True)

        at_subject = self._subject_state(change)
        hidden = torch.cat([at_subject.to(self.hidden.dtype)[:, None], self.hidden[:, 1:]], dim=1)
        model, above = self.model, self.layer + 1
        entry = model.layer(above) if above < model.n_layers else model.final_norm
        with _skipped(model, above), hooks() as attach, torch.enable_grad():
            attach.pre(entry, lambda _m, a, k: with_argument(a, k, hidden))
            attach.pre(
                model.head, lambda _m, a, k: with_argument(a, k, argument(a, k)[row, column][None])
            )
            output = self._forward()
        return output.logits[0].float(), row, column

    def _forward(self) -> Any:
        """The model over the tails."""
        return self.model.hf(
            input_ids=self.ids,
            attention_mask=torch.cat([self.past.real.long(), self.mask], dim=1),
            position_ids=self.positions,
            past_key_values=self.past.cache(),
            use_cache=True,
        )

    def _subject_state(self, change: torch.Tensor) -> torch.Tensor:
        """The layer's output at the subject with the change in place."""
        state = self.hidden[:, 0].float()
        norm = self.model.mlp_post_norm(self.layer)
        if self.site == "stream" or norm is None:
            return state + change
        # h + N(m) becomes h + N(m + d); the gradient goes through the post-norm N.
        with torch.enable_grad():
            dtype = self.hidden.dtype
            before = norm(self.value.to(dtype)).float()
            return state - before + norm((self.value + change).to(dtype)).float()


def tail_length(row: Row) -> int:
    """Tokens of a row that have to be run again and again: from the subject's last one to the last one
    that something is predicted from. An essence row, which has no answer, is read at its subject."""
    return len(row.ids) - 1 - row.subject if row.answer < len(row.ids) else 1


class _Passed(nn.Module):
    """Stands in for a layer that is not to be run."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name in ("attention_type", "layer_type", "layer_idx"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


@contextlib.contextmanager
def _skipped(model: Model, below: int) -> Iterator[None]:
    """The model without its first `below` layers, for the length of the block."""
    layers = model.layers
    real = [layers[index] for index in range(below)]
    try:
        for index, layer in enumerate(real):
            layers[index] = _Passed(layer)
        yield
    finally:
        for index, layer in enumerate(real):
            layers[index] = layer
