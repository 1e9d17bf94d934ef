"""Where an edited folder comes from: `surgery.json`, the deltas beside it, and the tensors they replaced.

An edited folder is complete in itself. `deltas/` holds every delta of the stack in order, the original
bytes of each tensor they touch, and the base's own version of each other file that was replaced. So the
base can be given back exactly even when nobody kept it, and further edits are summed with the earlier
ones from the base instead of being rounded twice.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import Checkpoint, TensorRef, read_header
from surgery.delta import load_delta
from surgery.errors import SurgeryError

if TYPE_CHECKING:
    import torch

    from surgery.delta import Delta

RECORD = "surgery.json"
FOLDER = "deltas"
ORIGINALS = "originals.safetensors"
BASE_FILES = f"{FOLDER}/base"
FORMAT = "checkpoint/1"


@dataclass(frozen=True)
class Lineage:
    """The base a folder was made from, and the edits in it, oldest first.

    A folder that is not edited is its own base with no edits.
    """

    checkpoint: Checkpoint
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Lineage:
        """Read the lineage of a folder.

        Raises:
            SurgeryError: `surgery.json` is there but cannot be read.
        """
        return cls(checkpoint, read_record(checkpoint.path))

    @property
    def edited(self) -> bool:
        return bool(self.record)

    @cached_property
    def base_id(self) -> str:
        return self.record["base_id"] if self.edited else self.checkpoint.id

    @property
    def ids(self) -> list[str]:
        return [entry["id"] for entry in self.record.get("edits", [])]

    @cached_property
    def deltas(self) -> list[Delta]:
        """The deltas of the stack, in order, each checked against the id on record."""
        found = []
        for entry in self.record.get("edits", []):
            delta = load_delta(self.checkpoint.path / entry["file"])
            if delta.id != entry["id"]:
                raise SurgeryError(
                    f"{self.checkpoint.path / entry['file']} is not the delta {RECORD} says it is"
                )
            found.append(delta)
        return found

    @cached_property
    def originals(self) -> dict[str, TensorRef]:
        path = self.checkpoint.path / FOLDER / ORIGINALS
        return read_header(path)[0] if self.edited and path.exists() else {}

    def original(self, key: str) -> torch.Tensor:
        """A tensor of the base, in its stored dtype."""
        if key in self.originals:
            from safetensors import safe_open

            path = self.checkpoint.path / FOLDER / ORIGINALS
            with safe_open(str(path), framework="pt") as file:
                return file.get_tensor(key)
        return self.checkpoint.read(key)

    @property
    def untied(self) -> bool:
        """Whether an edit has given a tied output head a tensor of its own."""
        return any(delta.untie for delta in self.deltas)

    @property
    def base_tied(self) -> bool:
        """Whether the base's output head is its input embedding."""
        return self.untied or self.checkpoint.tied_embeddings

    def base_file(self, name: str) -> Path | None:
        """The base's own file of that name, where a copy of it lies now; None if the base has none."""
        kept = self.checkpoint.path / BASE_FILES / name
        if self.edited and kept.is_file():
            return kept
        file = self.checkpoint.path / name
        return file if name not in self.record.get("files", []) and file.is_file() else None

    def original_hash(self, key: str) -> str:
        """sha256 of the bytes of a tensor of the base."""
        if key in self.originals:
            hashes = self.record.get("base_hashes", {})
            if key in hashes:
                return hashes[key]
        return self.checkpoint.hash(key)


def read_record(folder: Path) -> dict[str, Any]:
    """`surgery.json` of a folder; empty for a folder that is not edited."""
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise SurgeryError(f"{path} has the format {record['format']!r}, not {FORMAT!r}")
        _ = record["base_id"] + "".join(e["id"] + e["name"] + e["file"] for e in record["edits"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SurgeryError(f"{path} is damaged: {error!r}") from None
    return record
