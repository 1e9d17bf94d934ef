"""The hooks that weight edits are measured against: ablate what writers write, or add to the stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from surgery.architecture import Writer
from surgery.model import Model
from surgery.model.hooks import Attach, argument, first, hooks, with_first


@contextlib.contextmanager
def ablating(
    model: Model,
    R: torch.Tensor,
    strength: float | Mapping[int, float] = 1.0,
    writers: Sequence[Writer] | None = None,
    readers: torch.Tensor | None = None,
) -> Iterator[None]:
    """Take (strength times) the component along orthonormal rows R (k, d) out of every writer's output,
    for the length of the block. Behind a post-norm, the normed output is what counts and what is cut.

    strength: one number, or by layer. writers: the attention and MLP outputs of all layers if not given.
    readers: (k, d), what reads the component; R itself if not given.
    """
    if writers is None:
        writers = [w for w in model.writers() if w.layer is not None]
    rows = R.to(model.device, torch.float32)
    reads = rows if readers is None else readers.to(model.device, torch.float32)
    with hooks() as attach:
        for writer in writers:
            amount = _amount(strength, writer.layer)
            if amount:
                _cut(attach, model.module(writer.post_norm or writer.module), rows, reads, amount)
        yield


def _amount(strength: float | Mapping[int, float], layer: int | None) -> float:
    if isinstance(strength, Mapping):
        return 0.0 if layer is None else strength.get(layer, 0.0)
    return float(strength)


def _cut(
    attach: Attach, module: Any, rows: torch.Tensor, reads: torch.Tensor, amount: float
) -> None:
    def cut(_m: Any, _a: Any, _k: Any, output: Any) -> Any:
        hidden = first(output)
        change = (hidden.float() @ reads.T) @ rows
        return with_first(output, hidden - (amount * change).to(hidden.dtype))

    attach.post(module, cut)


@contextlib.contextmanager
def adding(model: Model, vector: torch.Tensor, layer: int) -> Iterator[None]:
    """Add a vector (d) to the stream into a layer, at every position, for the length of the block."""
    shift = vector.to(model.device)

    def add(_m: Any, args: Any, kwargs: Any) -> Any:
        hidden = argument(args, kwargs)
        moved = hidden + shift.to(hidden.dtype)
        return ((moved, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": moved})

    with hooks() as attach:
        attach.pre(model.layer(layer), add)
        yield
