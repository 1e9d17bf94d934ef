"""Residual stream at the end of prompts: every layer, the last few positions, means in float64.

Layer l means the *input* of block l ("resid_pre", HF's `hidden_states[l]`), the site a direction is
named by throughout. The last hidden state of a model is behind its final norm and is never used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from surgery.model import Model, by_length, chat, pad, tokenize
from surgery.model.hooks import argument, hooks
from surgery.model.run import is_templated
from surgery.progress import meter


@dataclass(frozen=True)
class Activations:
    """stream: (prompts, positions, layers, d) float32 on the CPU; positions count from the prompt's end,
    so index -1 is the token after which the answer begins."""

    stream: torch.Tensor

    def mean(self) -> torch.Tensor:
        """(positions, layers, d) float64."""
        return self.stream.double().mean(0)


def frame(model: Model, prompts: Sequence[str], use_chat: bool | None) -> list[str]:
    """Prompts in the chat template (by default whenever the model has one)."""
    return [chat(model, p) for p in prompts] if use_chat in (None, True) else list(prompts)


@torch.no_grad()
def activations(
    model: Model,
    prompts: Sequence[str],
    positions: int = 1,
    use_chat: bool | None = None,
    batch_tokens: int = 4096,
) -> Activations:
    """The stream into every layer at the last `positions` tokens of each prompt."""
    texts = frame(model, prompts, use_chat)
    rows = [tokenize(model, text, not is_templated(model, text)) for text in texts]
    layers = model.n_layers
    found = torch.zeros(len(rows), positions, layers, model.hidden_size)
    with meter("reading activations", len(rows)) as progress:
        for index in by_length([len(row) for row in rows], batch_tokens):
            batch = pad([rows[i] for i in index], model, side="left")

            def keep(layer: int, args: Any, kwargs: Any, index: list[int] = index) -> None:
                hidden = argument(args, kwargs)[:, -positions:].float().cpu()
                found[index, positions - hidden.shape[1] :, layer] = hidden

            with hooks() as attach:
                for layer in range(layers):
                    attach.pre(model.layer(layer), lambda _m, a, k, layer=layer: keep(layer, a, k))
                model.hf(**batch.inputs(), use_cache=False, logits_to_keep=1)
            progress.advance(len(index))
    return Activations(found)
