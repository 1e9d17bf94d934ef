"""Hidden states before the output head, and the head itself, apart.

Logits over the whole vocabulary cost a matrix product and a lot of memory for every position. So a
forward pass stops at the head, the positions somebody asked for are kept, and logits are made from
them in pieces. Kept hidden states are a few kilobytes a token, which is what makes an exact and cheap
cache of the base's side possible: its logits come back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgery.errors import SurgeryError
from surgery.model import Model, by_length, pad
from surgery.model.hooks import argument, hooks
from surgery.progress import meter

# Floats of logits made at once: 16 million are 64 MB.
_PIECE = 16_000_000
# Tokens of a batch, padding included.
BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Head:
    """The map from hidden states (n, d) to logits (n, vocabulary), detached from its model.

    The weight is a copy only where an edit is about to change it.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    softcap: float | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, model: Model, copy: bool = False) -> Head:
        """The head as it is now; `copy` keeps it when the model's own is changed afterwards.

        Raises:
            SurgeryError: the model makes its logits in a way this class does not know.
        """
        config = model.hf.config
        text = getattr(config, "text_config", None) or config
        scale = float(getattr(text, "logit_scale", None) or 1.0)
        scale /= float(getattr(text, "logits_scaling", None) or 1.0)
        weight, bias = model.head.weight.detach(), getattr(model.head, "bias", None)
        head = cls(
            weight.clone() if copy else weight,
            bias.detach() if bias is not None else None,
            getattr(text, "final_logit_softcapping", None),
            scale,
        )
        head._verify(model)
        return head

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (n, vocabulary) in float32."""
        logits = nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()

    def pieces(self, count: int) -> Iterator[slice]:
        """Slices of `count` positions, each small enough to make logits of at once."""
        size = max(1, _PIECE // self.weight.shape[0])
        for begin in range(0, count, size):
            yield slice(begin, min(begin + size, count))

    @torch.no_grad()
    def _verify(self, model: Model) -> None:
        kept: list[torch.Tensor] = []
        ids = torch.arange(1, 5, device=model.device)[None] % self.weight.shape[0]
        with hooks() as attach:
            attach.pre(model.head, lambda _m, a, k: kept.append(argument(a, k)))
            expected = model.hf(input_ids=ids, use_cache=False).logits[0].float()
        found = self.logits(kept[0][0])
        # Half precision may round the same product otherwise in another shape.
        slack = 1e-3 if self.weight.dtype.itemsize > 2 else 2e-2
        close = torch.allclose(found, expected, rtol=slack, atol=slack, equal_nan=True)
        if not close:
            raise SurgeryError(
                f"the logits of this {model.architecture.name} model are not its output head's: "
                "add what it does to them in surgery/audit/head.py"
            )


def changes_head(model: Model, keys: Collection[str]) -> bool:
    """Whether a change of these tensors, by their keys on disk, may change the output head."""
    table = model.architecture
    names = (f"{table.lm_head}.weight", f"{table.embed}.weight")
    return any(table.stored_key(name, model.checkpoint.tensors) in keys for name in names)


@torch.no_grad()
def hidden_of(
    model: Model, inputs: dict[str, torch.Tensor], during: Callable[[Any], None] | None = None
) -> torch.Tensor:
    """Final hidden states (rows, tokens, d) of one batch, with next to no work in the output head.

    `during(attach)` may add hooks for the length of the pass.
    """
    kept: list[torch.Tensor] = []

    def keep(_m: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[torch.Tensor], dict[str, Any]]:
        hidden = argument(args, kwargs)
        kept.append(hidden)
        return (hidden[:1, :1],), {}

    with hooks() as attach:
        attach.pre(model.head, keep)
        if during is not None:
            during(attach)
        model.hf(**inputs, use_cache=False)
    return kept[0]


@torch.no_grad()
def hidden_at(
    model: Model,
    rows: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]],
    batch_tokens: int = BATCH_TOKENS,
    label: str = "measuring",
    during: Callable[[Any], None] | None = None,
    after: Callable[[list[int], torch.Tensor], None] | None = None,
) -> list[torch.Tensor]:
    """Final hidden states of chosen positions: for row i a tensor (len(wanted[i]), d).

    Rows are padded on the right and batched by length alone, so the same rows give the same batches,
    and the same weights the same bits. `during(attach)` may add hooks, `after(indices, mask)` is
    called when a batch is through.
    """
    found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    with meter(label, len(rows)) as progress:
        for index in by_length([len(row) for row in rows], batch_tokens):
            batch = pad([rows[i] for i in index], model)
            hidden = hidden_of(model, batch.inputs(), during)
            for line, i in enumerate(index):
                found[i] = hidden[line, list(wanted[i])].clone()
            if after is not None:
                after(index, batch.mask)
            progress.advance(len(index))
    return found
