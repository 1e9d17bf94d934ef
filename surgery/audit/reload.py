"""The model as it comes back from a coarser copy: bf16, or weights rounded to 8 or 4 bits.

Two uses. On the base it is a noise band everybody accepts: damage below what an 8-bit reload does is
hard to call damage. On the edited model it says whether the edit survives being quantised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

from surgery.audit.weights import round_to_nearest
from surgery.model import Model

How = Literal["bfloat16", "int8", "int4"]


def matrices(model: Model) -> list[tuple[torch.nn.Parameter, bool]]:
    """The weights that quantised loading rounds: every projection inside the layers. Embeddings and
    the output head stay. The flag says that the input dimension comes first (Conv1D)."""
    found = []
    for module in model.layers.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and weight.dim() == 2:
            found.append((weight, type(module).__name__ == "Conv1D"))
    return found


@contextlib.contextmanager
def reloaded(model: Model, how: How) -> Iterator[Model]:
    """The model with its weights rounded, for the length of the block; exact restore on exit."""
    if how == "bfloat16":
        chosen = [(parameter, False) for parameter in model.hf.parameters()]
    else:
        chosen = matrices(model)
    kept = [parameter.detach().clone() for parameter, _ in chosen]
    try:
        with torch.no_grad():
            for parameter, transposed in chosen:
                parameter.copy_(_rounded(parameter, how, transposed))
        yield model
    finally:
        with torch.no_grad():
            for (parameter, _), value in zip(chosen, kept, strict=True):
                parameter.copy_(value)


def _rounded(weight: torch.Tensor, how: How, transposed: bool) -> torch.Tensor:
    if how == "bfloat16":
        return weight.to(torch.bfloat16).to(weight.dtype)
    bits = 8 if how == "int8" else 4
    # Groups run along the input dimension, as in the usual weight-only formats.
    rows = weight.T if transposed else weight
    rounded = round_to_nearest(rows.float(), bits)
    return (rounded.T if transposed else rounded).to(weight.dtype)
