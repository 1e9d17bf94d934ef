"""Where second moments are kept: by content, so that a wrong one cannot be picked up.

The key is the hash of the base checkpoint's id and of the very token ids that were run, in order; each
layer is one safetensors file below it. A pass that was cut short leaves its sums and goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoint import atomic_file, cache_folder
from surgery.statistics.moments import Moment


def content_key(base_id: str, rows: list[list[int]]) -> str:
    digest = hashlib.sha256(base_id.encode())
    for row in rows:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Store:
    """The moments of one base over one text."""

    key: str

    @property
    def folder(self) -> Path:
        return cache_folder() / "moments" / self.key

    def _path(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:03d}.safetensors"

    def has(self, layer: int) -> bool:
        return self._path(layer).exists()

    def load(self, layer: int) -> Moment:
        from safetensors import safe_open

        with safe_open(str(self._path(layer)), framework="pt") as file:
            record = json.loads(file.metadata()["surgery"])
            return Moment(file.get_tensor("mean"), record["tokens"])

    def save(self, layer: int, moment: Moment, record: dict[str, Any]) -> None:
        from safetensors.torch import save

        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**record, "layer": layer, "tokens": moment.count}, sort_keys=True)
        content = save({"mean": moment.mean.float().cpu().contiguous()}, metadata={"surgery": text})
        with atomic_file(self._path(layer)) as temporary:
            Path(temporary).write_bytes(content)

    def save_keys(self, layer: int, keys: torch.Tensor, record: dict[str, Any]) -> None:
        """Keep single keys (n, d_ff) instead of their moment, where each is wanted by itself."""
        self.save(layer, Moment(keys, keys.shape[0]), record)

    # ------------------------------------------------------------------ a pass cut short
    def _partial(self, layers: list[int]) -> Path:
        name = hashlib.sha256(json.dumps(layers).encode()).hexdigest()[:12]
        return self.folder / f"partial-{name}.safetensors"

    def save_partial(self, layers: list[int], sums: list[torch.Tensor], count: int) -> None:
        from safetensors.torch import save

        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"sum.{n}": s.cpu().contiguous() for n, s in zip(layers, sums, strict=True)}
        text = json.dumps({"count": count})
        with atomic_file(self._partial(layers)) as temporary:
            Path(temporary).write_bytes(save(tensors, metadata={"surgery": text}))

    def load_partial(self, layers: list[int]) -> tuple[list[torch.Tensor], int] | None:
        """Sums by layer and tokens seen, of a pass that did not end."""
        from safetensors import SafetensorError, safe_open

        path = self._partial(layers)
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                record = json.loads(file.metadata()["surgery"])
                sums = [file.get_tensor(f"sum.{n}") for n in layers]
        except (SafetensorError, KeyError, ValueError, OSError):
            return None
        return sums, int(record["count"])

    def drop_partial(self, layers: list[int]) -> None:
        self._partial(layers).unlink(missing_ok=True)
