"""A loaded causal language model, its tokenizer, and the table that says what it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from surgery.architecture import Architecture, Writer
from surgery.checkpoint import Checkpoint
from surgery.errors import SurgeryError


@dataclass(eq=False)
class Model:
    """Everything that solving, auditing and tracing need of a model.

    `hf` and `tokenizer` are the plain transformers objects, for your own code. `edits` is the ordered
    list of deltas that are applied in memory right now, `off` the ids of the edits of its folder that
    are taken out in memory; `surgery.stack` keeps both true.
    """

    hf: Any
    tokenizer: Any
    architecture: Architecture
    checkpoint: Checkpoint
    edits: list[Any] = field(default_factory=list)
    off: frozenset[str] = frozenset()
    # Weights as loaded, of the parameters that an edit has touched: what `surgery.stack` restores.
    originals: dict[str, torch.Tensor] = field(default_factory=dict)

    # ------------------------------------------------------------------ what it is
    @property
    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        return self.checkpoint.config

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hf.parameters()).dtype

    @property
    def n_layers(self) -> int:
        return self.architecture.n_layers(self.config)

    @property
    def hidden_size(self) -> int:
        return self.architecture.hidden_size(self.config)

    @property
    def max_positions(self) -> int:
        """Longest text the model has positions for."""
        for field_name in ("max_position_embeddings", "n_positions"):
            if field_name in self.config:
                return int(self.config[field_name])
        return 2048

    @property
    def tied(self) -> bool:
        """Whether the input embedding and the output head are one tensor in memory right now."""
        return self.head.weight is self.embedding.weight

    # ------------------------------------------------------------------ its parts
    def module(self, path: str) -> nn.Module:
        return self.hf.get_submodule(path)

    @property
    def layers(self) -> nn.ModuleList:
        return self.module(self.architecture.layers)  # type: ignore[return-value]

    def layer(self, index: int) -> nn.Module:
        return self.module(self.architecture.layer(index))

    def mlp_out(self, layer: int) -> nn.Module:
        """The down projection of a layer; its input is the key, its output the value."""
        return self.module(self.architecture.mlp_out_module(layer))

    def attention_out(self, layer: int) -> nn.Module:
        return self.module(self.architecture.attention_out_module(layer))

    def mlp_post_norm(self, layer: int) -> nn.Module | None:
        name = self.architecture.mlp_post_norm
        return self.module(f"{self.architecture.layer(layer)}.{name}") if name else None

    @property
    def embedding(self) -> nn.Embedding:
        return self.module(self.architecture.embed)  # type: ignore[return-value]

    @property
    def final_norm(self) -> nn.Module:
        return self.module(self.architecture.final_norm)

    @property
    def head(self) -> nn.Linear:
        return self.module(self.architecture.lm_head)  # type: ignore[return-value]

    def writers(self) -> list[Writer]:
        return self.architecture.writers(self.config)

    def check_layer(self, layer: int, what: str = "layer") -> int:
        if not 0 <= layer < self.n_layers:
            raise SurgeryError(
                f"{what} {layer} is outside this model, which has layers 0 to {self.n_layers - 1}"
            )
        return layer

    # ------------------------------------------------------------------ names on disk
    def stored_key(self, parameter: str) -> str:
        """The key under which the checkpoint stores a parameter.

        Raises:
            SurgeryError: the checkpoint holds no such tensor.
        """
        key = self.architecture.stored_key(parameter, self.checkpoint.tensors)
        if key is None:
            raise SurgeryError(f"{self.checkpoint.path} stores no tensor for {parameter}")
        return key

    def parameter(self, key: str) -> nn.Parameter:
        """The parameter that the checkpoint stores under `key`.

        Raises:
            SurgeryError: the model has no such parameter, or it is not in memory (offloaded).
        """
        for name in (key, self.architecture.optional_prefix + key):
            try:
                found = self.hf.get_parameter(name)
            except AttributeError:
                continue
            if found.is_meta:
                raise SurgeryError(
                    f"{name} is offloaded: an edit of it would be lost; load the model whole"
                )
            return found
        raise SurgeryError(f"this model has no tensor named {key}")

    def mlp_out_weight(self, layer: int) -> torch.Tensor:
        """Weight of the down projection as a view (out=d, in=d_ff), whatever its layout on disk."""
        weight = self.mlp_out(layer).weight
        assert isinstance(weight, torch.Tensor)
        return weight if self.architecture.layout == "linear" else weight.T
