"""Residual stream at the end of prompts: every layer, the last few positions, means in float64.

Layer l means the *input* of block l ("resid_pre", HF's `hidden_states[l]`), the site a direction is
named by throughout. The last hidden state of a model is behind its final norm and is never used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from surgery.model import Model, by_length, chat, pad, tokenize
from surgery.model.hooks import Attach, Stop, argument, hooks
from surgery.model.run import is_templated
from surgery.progress import meter
from surgery.training.prefix import inputs_after, shared_prefix


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


def activations(
    model: Model,
    prompts: Sequence[str],
    positions: int = 1,
    use_chat: bool | None = None,
    batch_tokens: int = 4096,
) -> Activations:
    """The stream into every layer at the last `positions` tokens of each prompt."""
    found = torch.zeros(len(prompts), positions, model.n_layers, model.hidden_size)

    def watch(attach: Attach, store: Store) -> None:
        for layer in range(model.n_layers):
            attach.pre(
                model.layer(layer),
                lambda _m, a, k, layer=layer: store(found, layer, argument(a, k)),
            )
        # Nothing above the last block's input is wanted.
        attach.pre(model.layer(model.n_layers - 1), _stop)

    run_to_end(model, frame(model, prompts, use_chat), positions, watch, batch_tokens)
    return Activations(found)


Store = Callable[[torch.Tensor, int, torch.Tensor], None]


@torch.no_grad()
def run_to_end(
    model: Model,
    texts: Sequence[str],
    positions: int,
    watch: Callable[[Attach, Store], None],
    batch_tokens: int = 4096,
) -> None:
    """Run texts through the model while `watch` has its hooks in it.

    `watch(attach, store)` adds hooks that call `store(into, slot, hidden)`: it puts a batch's hidden
    values (rows, tokens, width) at the last `positions` tokens into `into[rows, :, slot]`, where `into`
    is (texts, positions, slots, width) float32. Where a text is shorter, the missing tokens stay zero.
    """
    rows = [tokenize(model, text, not is_templated(model, text)) for text in texts]
    shared = shared_prefix(rows, keep=positions)
    with meter("reading activations", len(rows)) as progress:
        for index in by_length([len(row) - shared for row in rows], batch_tokens):
            batch = pad([rows[i][shared:] for i in index], model, side="left")
            inputs = inputs_after(model, rows[0][:shared], batch)

            def store(
                into: torch.Tensor, slot: int, hidden: torch.Tensor, index: list[int] = index
            ) -> None:
                last = hidden[:, -positions:].float().cpu()
                into[index, positions - last.shape[1] :, slot] = last

            with hooks() as attach:
                watch(attach, store)
                model.hf(**inputs, logits_to_keep=1)
            progress.advance(len(index))


def _stop(_m: Any, _a: Any, _k: Any) -> None:
    raise Stop
