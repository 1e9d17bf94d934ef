"""Rows of a like length as one batch: what the model says with a change d in place, and nothing twice.

d is added to the output of one layer at the subject's last token, so everything that does not depend on
it is computed once:

- no token before the subject's last one sees d: their keys and values above the layer are kept;
- no layer up to the edited one sees d: the forward pass starts above it;
- the answer's last token predicts nothing that is asked for: it is not run;
- logits are taken only where a loss reads them, through the model's own head.

Every row has a d of its own, so one backward pass gives the gradient of each row by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from surgery.facts.rows import Row
from surgery.model import Model, pad
from surgery.model.hooks import argument, first, hooks, with_argument

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
    mask: torch.Tensor  # (rows, past + tail)
    positions: torch.Tensor  # (rows, tail)
    hidden: torch.Tensor  # (rows, tail, d) output of the edited layer without d
    value: torch.Tensor  # (rows, d) output of its down projection at the subject
    past: list[tuple[torch.Tensor, torch.Tensor]]  # keys and values before the subject, by layer
    answer: torch.Tensor  # (rows, tail) the token to predict at each column, -1 where none
    kept: torch.Tensor | None = None  # (essence rows, vocabulary) log p_0 of the token after them

    # ------------------------------------------------------------------ what is computed once
    @classmethod
    @torch.no_grad()
    def prepare(cls, model: Model, rows: Sequence[Row], layer: int, site: Site) -> Bucket:
        batch = pad([row.ids for row in rows], model)
        seen: dict[str, torch.Tensor] = {}
        with hooks() as attach:
            attach.post(model.layer(layer), lambda _m, a, k, o: seen.update(hidden=first(o)))
            attach.post(model.mlp_out(layer), lambda _m, a, k, o: seen.update(value=first(o)))
            from transformers import DynamicCache

            cache = DynamicCache()
            model.hf(**batch.inputs(), past_key_values=cache, use_cache=True, logits_to_keep=1)

        device = model.device
        line = torch.arange(len(rows), device=device)
        subject = torch.tensor([row.subject for row in rows], device=device)
        tails = [tail_length(row) for row in rows]
        tail = max(tails)
        # One column more than the longest past, so that no row ever attends to nothing at all.
        width = max(int(subject.max()), 1)
        columns = (subject[:, None] + torch.arange(tail, device=device)).clamp(
            max=batch.ids.shape[1] - 1
        )
        real = torch.arange(tail, device=device) < torch.tensor(tails, device=device)[:, None]
        # The past of every row ends where its tail begins: models with a sliding window count columns.
        behind = subject[:, None] - width + torch.arange(width, device=device)
        before = behind >= 0
        kept: list[Any] = list(cache.layers)
        past = [(_past(e.keys, behind), _past(e.values, behind)) for e in kept]
        answer = torch.full((len(rows), tail), -1, device=device)
        for index, row in enumerate(rows):
            for position in range(row.answer, len(row.ids)):
                answer[index, position - 1 - row.subject] = row.ids[position]
        return cls(
            model=model,
            layer=layer,
            site=site,
            ids=batch.ids[line[:, None], columns],
            mask=torch.cat([before, real], dim=1).long(),
            positions=columns,
            hidden=seen["hidden"][line[:, None], columns],
            value=seen["value"][line, subject].float(),
            past=past,
            answer=answer,
        )._with_kept()

    @property
    def start(self) -> torch.Tensor:
        """(rows, d_model) v_0: what d is added to."""
        return self.value if self.site == "value" else self.hidden[:, 0].float()

    @property
    def essence(self) -> torch.Tensor:
        """(rows,) whether a row is an essence row."""
        return (self.answer < 0).all(1)

    def _with_kept(self) -> Bucket:
        """Remember what the essence rows predict before anything is changed."""
        logits, row, _ = self._logits(torch.zeros_like(self.value))
        return replace(self, kept=logits[self.essence[row]].log_softmax(-1))

    def keep(self, rows: torch.Tensor) -> Bucket:
        """Some of the rows only (a mask)."""
        assert self.kept is not None
        return replace(
            self,
            ids=self.ids[rows],
            mask=self.mask[rows],
            positions=self.positions[rows],
            hidden=self.hidden[rows],
            value=self.value[rows],
            past=[(k[rows], v[rows]) for k, v in self.past],
            answer=self.answer[rows],
            kept=self.kept[rows[self.essence]],
        )

    # ------------------------------------------------------------------ what depends on d
    def losses(self, change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each row (rows,) with `change` (rows, d_model) in place, and its gradient by the
        row's change: the answer's summed negative log-likelihood, or for essence rows KL(p_0 || p)."""
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
        (gradient,) = torch.autograd.grad(loss.sum(), own)
        return loss.detach(), gradient

    def _logits(self, change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (wanted, vocabulary) float32 with `change` (rows, d_model) in place, and the row and
        column each belongs to: where an answer token is predicted, and column 0 of essence rows."""
        wanted = self.answer >= 0
        wanted[:, 0] |= self.essence
        row, column = wanted.nonzero(as_tuple=True)

        at_subject = self._subject_state(change)
        hidden = torch.cat([at_subject.to(self.hidden.dtype)[:, None], self.hidden[:, 1:]], dim=1)
        from transformers import DynamicCache

        # A fresh cache over detached tensors every time: a used one keeps the old graph alive.
        cache = DynamicCache()
        for layer, (k, v) in enumerate(self.past):
            cache.update(k, v, layer)
        model, above = self.model, self.layer + 1
        entry = model.layer(above) if above < model.n_layers else model.final_norm
        with _skipped(model, above), hooks() as attach, torch.enable_grad():
            attach.pre(entry, lambda _m, a, k: with_argument(a, k, hidden))
            attach.pre(
                model.head, lambda _m, a, k: with_argument(a, k, argument(a, k)[row, column][None])
            )
            output = model.hf(
                input_ids=self.ids,
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=cache,
                use_cache=True,
            )
        return output.logits[0].float(), row, column

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


def _past(tensor: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Some columns (rows, past) of keys or values (rows, heads, tokens, head_dim); zeros for those < 0."""
    index = columns.clamp(min=0)[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
    return tensor.gather(2, index).masked_fill((columns < 0)[:, None, :, None], 0).detach()


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
