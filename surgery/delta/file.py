"""The delta file: one safetensors file, all metadata as one JSON string under the key `surgery`.

One metadata key, because safetensors writes several in no fixed order and the same delta would not
give the same bytes twice. Reading checks everything a hostile or damaged file could get wrong; nothing
is unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surgery.checkpoint import read_header
from surgery.errors import SurgeryError

METADATA_KEY = "surgery"
FORMAT = "delta/1"
SUFFIX = ".delta.safetensors"


def save_delta(delta: Any, path: str | Path) -> Path:
    """Write a delta; the file appears whole or not at all. Returns the path."""
    from safetensors.torch import save

    from surgery.checkpoint import atomic_file
    from surgery.delta.delta import LowRank

    tensors = {}
    for key in sorted(delta.tensors):
        change = delta.tensors[key]
        if isinstance(change, LowRank):
            tensors[f"{key}.lora_A"] = change.A.detach().cpu().contiguous().clone()
            tensors[f"{key}.lora_B"] = change.B.detach().cpu().contiguous().clone()
        else:
            tensors[f"{key}.dense"] = change.change.detach().cpu().contiguous().clone()
    head = {
        "format": FORMAT,
        "id": delta.id,
        "base_id": delta.base_id,
        "base_hashes": dict(delta.base_hashes),
        "stack": list(delta.stack),
        "untie": delta.untie,
        **delta.metadata,
    }
    text = json.dumps(head, sort_keys=True, ensure_ascii=False)
    path = Path(path)
    with atomic_file(path) as temporary:
        Path(temporary).write_bytes(save(tensors, metadata={METADATA_KEY: text}))
    return path


def read_delta_header(path: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Metadata of a delta file, and for each tensor it changes its shape, form and rank.

    Needs neither torch nor the model.
    """
    path = Path(path)
    entries, metadata = read_header(path)
    text = metadata.get(METADATA_KEY)
    if text is None:
        raise SurgeryError(f"{path} is not a delta: it has no {METADATA_KEY!r} metadata")
    try:
        head = json.loads(text)
    except (ValueError, RecursionError):
        raise SurgeryError(f"{path}: the delta's metadata is not JSON") from None
    if not isinstance(head, dict) or not isinstance(head.get("base_id"), str):
        raise SurgeryError(f"{path}: the delta's metadata does not name its base")
    if head.get("format") != FORMAT:
        raise SurgeryError(
            f"{path} has the format {head.get('format')!r}; this version reads {FORMAT!r}"
        )
    for name, kind in (("base_hashes", dict), ("stack", list), ("spec", dict)):
        if not isinstance(head.get(name) or kind(), kind):
            raise SurgeryError(
                f"{path}: the delta's metadata is damaged: {name} is {head[name]!r:.60}"
            )

    tensors: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        key, _, part = name.rpartition(".")
        if part not in ("lora_A", "lora_B", "dense") or not key:
            raise SurgeryError(f"{path}: {name} is neither lora_A, lora_B nor dense of a tensor")
        if entry.dtype != "F32":
            raise SurgeryError(f"{path}: {name} is {entry.dtype}; deltas are float32")
        tensors.setdefault(key, {})[part] = tuple(entry.shape)
    shapes = {key: _shape(path, key, parts) for key, parts in sorted(tensors.items())}
    return head, shapes


def _shape(path: Path, key: str, parts: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    if set(parts) == {"dense"}:
        return {"form": "dense", "shape": parts["dense"]}
    if set(parts) == {"lora_A", "lora_B"}:
        a, b = parts["lora_A"], parts["lora_B"]
        if len(a) == 2 and len(b) == 2 and a[0] == b[1] and a[0] > 0:
            return {"form": "low rank", "shape": (b[0], a[1]), "rank": a[0]}
        raise SurgeryError(f"{path}: the factors of {key} have shapes {b} and {a}: they do not fit")
    raise SurgeryError(f"{path}: {key} needs lora_A and lora_B, or dense; it has {sorted(parts)}")


def load_delta(path: str | Path) -> Any:
    """Read a delta file.

    Raises:
        SurgeryError: not a delta, damaged, wrong shapes, values that are not finite, or contents that
            do not give the id it states.
    """
    from safetensors.torch import load_file

    from surgery.delta.delta import Change, Delta, Dense, LowRank

    path = Path(path)
    head, shapes = read_delta_header(path)
    stored = load_file(str(path))
    tensors: dict[str, Change] = {}
    for key, shape in shapes.items():
        if shape["form"] == "dense":
            tensors[key] = Dense(stored[f"{key}.dense"])
        else:
            tensors[key] = LowRank(stored[f"{key}.lora_A"], stored[f"{key}.lora_B"])
    known = {"format", "id", "base_id", "base_hashes", "stack", "untie"}
    try:
        delta = Delta(
            tensors,
            base_id=head["base_id"],
            base_hashes=dict(head.get("base_hashes") or {}),
            stack=tuple(head.get("stack") or ()),
            untie=bool(head.get("untie", False)),
            metadata={k: v for k, v in head.items() if k not in known},
        )
    except SurgeryError as error:
        raise SurgeryError(f"{path}: {error}") from None
    if head.get("id") not in (None, delta.id):
        raise SurgeryError(
            f"{path} was changed after it was written: its contents do not give its id"
        )
    return delta
