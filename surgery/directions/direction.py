"""A saved direction: the unit vector, both means, and how it was found. One safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoint import atomic_file, read_header
from surgery.errors import SurgeryError

METADATA_KEY = "surgery"
FORMAT = "direction/1"


@dataclass(frozen=True)
class Direction:
    """vector: unit, (d). positive, negative: mean of the stream over each prompt set, (d). reader: what
    tells how much of the vector there is, (d), reader . vector = 1; None: the vector itself. All float32.

    layer: the block whose input was read. position: token from the prompt's end. base_id: the
    checkpoint. metadata: prompt hashes, capture site, how it was chosen.
    """

    vector: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor
    layer: int
    position: int
    base_id: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    reader: torch.Tensor | None = None

    @property
    def layers(self) -> list[int] | None:
        """The layers it is best taken out of, where a selection found that out."""
        found = self.metadata.get("layers")
        return [int(layer) for layer in found] if isinstance(found, list) else None

    def save(self, path: str | Path) -> Path:
        from safetensors.torch import save

        head = {
            "format": FORMAT,
            "layer": self.layer,
            "position": self.position,
            "site": "input of the layer",
            "base_id": self.base_id,
            **self.metadata,
        }
        tensors = {
            name: getattr(self, name).detach().float().cpu().contiguous().clone()
            for name in ("vector", "positive", "negative", "reader")
            if getattr(self, name) is not None
        }
        text = json.dumps(head, sort_keys=True, ensure_ascii=False)
        path = Path(path)
        with atomic_file(path) as temporary:
            Path(temporary).write_bytes(save(tensors, metadata={METADATA_KEY: text}))
        return path

    @classmethod
    def load(cls, path: str | Path, width: int | None = None) -> Direction:
        """Raises SurgeryError for anything that is not a whole, finite direction file, or, with `width`,
        not one of a stream that wide."""
        from safetensors.torch import load_file

        path = Path(path)
        if not path.exists():
            raise SurgeryError(f"no direction {path}")
        entries, metadata = read_header(path)
        try:
            head = json.loads(metadata[METADATA_KEY])
            if head["format"] != FORMAT:
                raise SurgeryError(f"{path} has the format {head['format']!r}, not {FORMAT!r}")
            layer, position, base_id = head["layer"], head["position"], head["base_id"]
        except (KeyError, ValueError, TypeError):
            raise SurgeryError(f"{path} is not a direction file") from None
        if set(entries) - {"reader"} != {"vector", "positive", "negative"}:
            raise SurgeryError(f"{path} is not a direction file: it holds {sorted(entries)}")
        tensors = load_file(str(path))
        for name, value in tensors.items():
            if value.dim() != 1 or not torch.isfinite(value).all():
                raise SurgeryError(f"{path}: {name} is not a finite vector")
        if width is not None and tensors["vector"].numel() != width:
            raise SurgeryError(
                f"{path} has {tensors['vector'].numel()} numbers, the stream has {width}"
            )
        known = {"format", "layer", "position", "base_id", "site"}
        rest = {k: v for k, v in head.items() if k not in known}
        return cls(layer=layer, position=position, base_id=base_id, metadata=rest, **tensors)


def prompts_hash(prompts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()
