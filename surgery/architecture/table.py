"""What a model is made of, as plain data: which modules write into the residual stream, and how.

A table names modules relative to the model class transformers builds, states the orientation of every
matrix instead of guessing it from a shape, and says which norms stand between a matrix and the stream.
Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Component = Literal["attention", "mlp", "embedding", "positions"]
Layout = Literal["linear", "conv1d", "embedding"]


@dataclass(frozen=True)
class Writer:
    """A module whose output is added to the residual stream.

    layout says where the residual dimension d of its stored weight lies:
      linear     nn.Linear, weight (out=d, in): y = W x + b
      conv1d     GPT-2's Conv1D, weight (in, out=d): y = x W + b
      embedding  a table of rows, weight (V, d): y = W[token]

    post_norm names a norm between the module's output and the stream (Gemma-2 and 3): what is added is
    `(norm_offset + gamma) * y / rms(y)`, not y.
    """

    component: Component
    layer: int | None
    module: str
    layout: Layout
    bias: bool = False
    post_norm: str | None = None
    norm_offset: float = 0.0

    @property
    def weight(self) -> str:
        """Name of the weight among the model's parameters."""
        return f"{self.module}.weight"

    @property
    def residual_axis(self) -> int:
        """Axis of the stored weight that lies in the residual stream."""
        return 0 if self.layout == "linear" else 1

    @property
    def label(self) -> str:
        return self.component if self.layer is None else f"layer {self.layer} {self.component}"


@dataclass(frozen=True)
class Architecture:
    """One family of models. Module paths are dotted names inside the causal-LM class."""

    name: str
    model_types: tuple[str, ...]
    layers: str
    embed: str
    final_norm: str
    attention: str
    attention_out: str
    mlp: str
    mlp_out: str
    layout: Layout
    lm_head: str = "lm_head"
    positions: str | None = None
    attention_bias: str | bool = False  # True, False, or the config field that says so
    mlp_bias: str | bool = False
    attention_post_norm: str | None = None
    mlp_post_norm: str | None = None
    norm_offset: float = 0.0
    layers_field: str = "num_hidden_layers"
    hidden_field: str = "hidden_size"
    # Older checkpoints leave this prefix off their stored names ("h.0..." for "transformer.h.0...").
    optional_prefix: str = ""

    def n_layers(self, config: Mapping[str, Any]) -> int:
        return int(config[self.layers_field])

    def hidden_size(self, config: Mapping[str, Any]) -> int:
        return int(config[self.hidden_field])

    def layer(self, index: int) -> str:
        return f"{self.layers}.{index}"

    def mlp_out_module(self, layer: int) -> str:
        """The down projection, whose input is the key of a fact edit."""
        return f"{self.layers}.{layer}.{self.mlp_out}"

    def attention_out_module(self, layer: int) -> str:
        return f"{self.layers}.{layer}.{self.attention_out}"

    def writers(self, config: Mapping[str, Any]) -> list[Writer]:
        """Every residual writer of the model, embeddings first, then layer by layer."""
        found = [Writer("embedding", None, self.embed, "embedding")]
        parts: tuple[tuple[Component, str, str | bool, str | None], ...] = (
            ("attention", self.attention_out, self.attention_bias, self.attention_post_norm),
            ("mlp", self.mlp_out, self.mlp_bias, self.mlp_post_norm),
        )
        if self.positions is not None:
            found.append(Writer("positions", None, self.positions, "embedding"))
        for index in range(self.n_layers(config)):
            prefix = self.layer(index)
            for component, module, bias, norm in parts:
                found.append(
                    Writer(
                        component,
                        index,
                        f"{prefix}.{module}",
                        self.layout,
                        bias=_flag(bias, config),
                        post_norm=f"{prefix}.{norm}" if norm else None,
                        norm_offset=self.norm_offset,
                    )
                )
        return found

    def stored_key(self, parameter: str, stored: Iterable[str] | Mapping[str, Any]) -> str | None:
        """The key under which a checkpoint stores a parameter, or None (a tied head has none)."""
        if parameter in stored:
            return parameter
        if self.optional_prefix and parameter.startswith(self.optional_prefix):
            shorter = parameter.removeprefix(self.optional_prefix)
            if shorter in stored:
                return shorter
        return None


def _flag(value: str | bool, config: Mapping[str, Any]) -> bool:
    return bool(config.get(value, False)) if isinstance(value, str) else value
