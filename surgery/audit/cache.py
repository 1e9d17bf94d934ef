"""What a side of an audit gave, measurement by measurement.

Kept under the cache folder by what was asked and by everything that could change the answer: base,
edits, library versions, dtype, device, threads. The base's side stays for every later audit. What edited
models and shams give stays until the audit is done, so that one which was killed goes on where it was.
Nothing here is needed: delete it at will.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import torch

from surgery.checkpoint import atomic_file, cache_folder
from surgery.model import Model

# Raised whenever what is computed changes its meaning.
_VERSION = 4
# How much is asked before what came of it is written down.
_AT_ONCE = 32

Value = TypeVar("Value")


class SideCache:
    """Results of a model as it is now. `use=False` computes everything anew and keeps nothing.

    unfinished: they are for one audit only, see `Unfinished`.
    """

    def __init__(self, model: Model, use: bool = True, unfinished: bool = False) -> None:
        from surgery.stack import stack_ids

        self.use = use
        self.hits = 0
        content = json.dumps([_VERSION, model.checkpoint.id, stack_ids(model), _setting(model)])
        name = hashlib.sha256(content.encode()).hexdigest()[:32]
        self.folder = cache_folder() / "audit" / ("unfinished" if unfinished else "") / name

    def json(self, name: str, asked: Any, compute: Callable[[], Value], keep: bool = True) -> Value:
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
        if self.use and keep:
            self._write(file, json.dumps(value, ensure_ascii=False).encode())
        return value

    def part(self, name: str) -> SideCache:
        """The same for a variant of the model: what is asked of one says nothing about the other."""
        other = copy(self)
        other.folder = self.folder / name
        return other

    def one_by_one(
        self,
        name: str,
        asked: Sequence[str],
        compute: Callable[[list[str]], Sequence[Any]],
        again: Any = None,
    ) -> dict[str, Any]:
        """JSON values of questions, each kept by itself; `compute` is called for those not known yet,
        some at a time. again: what else determines the answers."""
        distinct = list(dict.fromkeys(asked))
        known = {}
        for question in distinct if self.use else ():
            value = self.json(name, [again, question], lambda: None, keep=False)
            if value is not None:
                known[question] = value
        missing = [question for question in distinct if question not in known]
        for begin in range(0, len(missing), _AT_ONCE):
            some = missing[begin : begin + _AT_ONCE]
            for question, value in zip(some, compute(some), strict=True):
                known[question] = self.json(name, [again, question], lambda value=value: value)
        return {question: known[question] for question in distinct}

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


class Unfinished:
    """What an audit measures of edited models, kept only until the audit is done."""

    def __init__(self, use: bool = True) -> None:
        self.use = use
        self._folders: set[Path] = set()

    def of(self, model: Model) -> SideCache:
        """For the model with the edits it has now."""
        side = SideCache(model, self.use, unfinished=True)
        self._folders.add(side.folder)
        return side

    def clear(self) -> None:
        """The audit is done."""
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)


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
