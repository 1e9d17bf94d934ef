"""Places in a model that can be read and replaced, named for what they are, not for one family's modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from surgery.model import Model

Kind = Literal["embedding", "stream_in", "attention", "mlp", "stream"]

# Within a layer, in the order in which they are computed.
_ORDER = {"embedding": 0, "stream_in": 1, "attention": 2, "mlp": 3, "stream": 4}


@dataclass(frozen=True)
class Site:
    """A place where hidden states (rows, tokens, d) pass.

    embedding   output of the token embedding (layer is None)
    stream_in   residual stream into block `layer`
    attention   what the attention of the block adds to the stream, behind any post-norm
    mlp         what its MLP adds, behind any post-norm
    stream      residual stream out of the block
    """

    kind: Kind
    layer: int | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Sorts sites by when they are computed."""
        return (-1 if self.layer is None else self.layer, _ORDER[self.kind])

    @property
    def is_input(self) -> bool:
        return self.kind == "stream_in"

    def path(self, model: Model) -> str:
        """The module whose output (for stream_in: input) passes here, by its dotted name."""
        table = model.architecture
        if self.layer is None:
            return table.embed
        layer = table.layer(model.check_layer(self.layer))
        if self.kind == "attention":
            return f"{layer}.{table.attention_post_norm or table.attention}"
        if self.kind == "mlp":
            return f"{layer}.{table.mlp_post_norm or table.mlp}"
        return layer


def every(kind: Kind, model: Model) -> list[Site]:
    """The site of this kind in every layer."""
    return [Site(kind, layer) for layer in range(model.n_layers)]
