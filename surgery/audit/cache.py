"""The base's side of every audit, computed once.

Kept under the cache folder by what was asked and by everything that could change the answer: base,
edits, library versions, dtype, device, threads. Nothing here is needed: delete it at will.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoint import atomic_file, cache_folder
from surgery.model import Model

# Raised whenever what is computed changes its meaning.
_VERSION = 3


class BaseCache:
    """Results of one model side. `use=False` computes everything anew and keeps nothing."""

    def __init__(self, model: Model, use: bool = True) -> None:
        from surgery.stack import stack_ids

        self.use = use
        self.hits = 0
        content = json.dumps([_VERSION, model.checkpoint.id, stack_ids(model), _setting(model)])
        self.folder = cache_folder() / "audit" / hashlib.sha256(content.encode()).hexdigest()[:32]

    def json(self, name: str, asked: Any, compute: Callable[[], Any]) -> Any:
        """A JSON value. `asked` is everything that determines it beside the model."""
        file = self._file(name, asked, ".json")
        if self.use and file.exists():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
                self.hits += 1
                return found
            except (OSError, ValueError):
                pass
        value = compute()
        if self.use:
            self._write(file, json.dumps(value, ensure_ascii=False).encode())
        return value

    def tensors(
        self, name: str, asked: Any, compute: Callable[[], dict[str, torch.Tensor]], device: Any
    ) -> tuple[dict[str, torch.Tensor], bool]:
        """Tensors by name, and whether they came out of the cache."""
        from safetensors.torch import load_file, save

        file = self._file(name, asked, ".safetensors")
        if self.use and file.exists():
            try:
                found = load_file(str(file), device=str(device))
                self.hits += 1
                return found, True
            except Exception:  # a damaged cache entry is as good as none
                pass
        value = compute()
        if self.use:
            self._write(file, save({k: v.detach().cpu().contiguous() for k, v in value.items()}))
        return value, False

    def forget(self, name: str, asked: Any) -> None:
        """Drop what is kept, because it turned out not to be what this machine computes."""
        for suffix in (".json", ".safetensors"):
            self._file(name, asked, suffix).unlink(missing_ok=True)

    def _file(self, name: str, asked: Any, suffix: str) -> Path:
        text = json.dumps(asked, sort_keys=True, ensure_ascii=False)
        return self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}{suffix}"

    def _write(self, file: Path, content: bytes) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file, durable=False) as temporary:
                Path(temporary).write_bytes(content)
        except Exception:
            # A full or read-only disk costs time the next time, nothing now.
            pass


def _setting(model: Model) -> list[str]:
    """What else decides the last bits of a result."""
    import platform

    import transformers

    return [
        torch.__version__,
        transformers.__version__,
        str(model.dtype),
        str(model.device),
        str(torch.get_num_threads()),
        torch.backends.cpu.get_cpu_capability(),
        platform.machine(),
        os.environ.get("OMP_NUM_THREADS", ""),
    ]
