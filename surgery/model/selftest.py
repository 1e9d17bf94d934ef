"""Does the table describe this model? Run on every load: one forward pass over a handful of tokens.

If the residual stream is what the table says, the last layer's output is the first layer's input plus
what every listed writer added. A writer that is missing, or a norm that stands in between unlisted,
breaks the sum. Orientation and biases are checked against the modules themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from surgery.architecture import Writer
from surgery.errors import SurgeryError
from surgery.model.hooks import argument, first, hooks
from surgery.model.model import Model


def selftest(model: Model) -> None:
    """Raises SurgeryError naming the first part of the model that the table gets wrong."""
    try:
        for writer in model.writers():
            _check_shape(model, writer)
        assert model.head and model.final_norm and model.embedding
    except AttributeError as error:
        raise SurgeryError(
            f"the {model.architecture.name} table does not fit this model: {error}"
        ) from None
    if len(model.layers) != model.n_layers:
        raise SurgeryError(
            f"config.json says {model.n_layers} layers, the model has {len(model.layers)}"
        )
    _check_sum(model)


def _check_shape(model: Model, writer: Writer) -> None:
    module = model.module(writer.module)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    expected = {"linear": "Linear", "conv1d": "Conv1D", "embedding": "Embedding"}[writer.layout]
    if expected not in {base.__name__ for base in type(module).__mro__}:
        raise SurgeryError(
            f"{writer.module} is a {type(module).__name__}, the table says {writer.layout}"
        )
    if weight.shape[writer.residual_axis] != model.hidden_size:
        raise SurgeryError(
            f"{writer.weight} has shape {tuple(weight.shape)}: axis {writer.residual_axis} should "
            f"be the hidden size {model.hidden_size}"
        )
    if (getattr(module, "bias", None) is not None) != writer.bias:
        raise SurgeryError(f"{writer.module}: the table is wrong about its bias")


@torch.no_grad()
def _check_sum(model: Model) -> None:
    stream_in: list[torch.Tensor] = []
    stream_out: list[torch.Tensor] = []
    written: list[torch.Tensor] = []

    def enter(_m: nn.Module, args: Any, kwargs: Any) -> None:
        stream_in.append(argument(args, kwargs).float())

    def leave(_m: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        stream_out.append(first(output).float())

    def write(_m: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        written.append(first(output).float())

    layer_writers = [w for w in model.writers() if w.layer is not None]
    with hooks() as attach:
        attach.pre(model.layer(0), enter)
        attach.post(model.layer(model.n_layers - 1), leave)
        for writer in layer_writers:
            attach.post(model.module(writer.post_norm or writer.module), write)
        ids = torch.arange(1, 9, device=model.device) % model.embedding.num_embeddings
        model.hf(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], use_cache=False)

    total = stream_in[0] + torch.stack(written).sum(0)
    error = (total - stream_out[0]).norm() / stream_out[0].norm().clamp_min(1e-30)
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    if not error < tolerance:
        raise SurgeryError(
            f"the {model.architecture.name} table does not account for the residual stream of this "
            f"model (relative error {error:.1e}): a module that writes into it is missing from "
            "the table in surgery/architecture/, or a weight is not finite"
        )
