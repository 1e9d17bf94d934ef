"""Deltas on a checkpoint folder. No model is loaded: only the tensors that change are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from surgery.architecture import for_config
from surgery.checkpoint import Checkpoint, read_header, tensor_bytes, write_edited
from surgery.checkpoint.tensors import torch_dtype
from surgery.delta import SUFFIX, Delta, load_delta, materialize, save_delta
from surgery.errors import SurgeryError
from surgery.export.card import model_card
from surgery.stack.conflicts import check
from surgery.stack.lineage import (
    BASE_CARD,
    BASE_CONFIG,
    FOLDER,
    FORMAT,
    ORIGINALS,
    RECORD,
    Lineage,
)


@dataclass(frozen=True)
class Applied:
    """What was written: the folder, the tensors that changed against the base, and warnings."""

    path: Path
    changed: list[str]
    edits: list[str]
    warnings: list[str]


def apply(
    deltas: Sequence[Delta | str | Path],
    base: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    force: bool = False,
    link: Literal["reflink", "copy", "hard"] = "reflink",
    files: Mapping[str, str | bytes | Path] | None = None,
    audit: dict[str, Any] | None = None,
) -> Applied:
    """Write `out` = `base` + `deltas`, a folder that plain transformers loads.

    base: a checkpoint, edited or not; edits it has stay below the new ones.
    files: more files for the folder (a report, the spec). audit: a summary for `surgery.json`.

    Raises:
        SurgeryError: see `surgery.stack.conflicts.check` and `surgery.checkpoint.write_edited`.
    """
    checkpoint = Checkpoint.open(Path(base))
    lineage = Lineage.of(checkpoint)
    new = [delta if isinstance(delta, Delta) else load_delta(delta) for delta in deltas]
    return rebuild(
        lineage,
        [*lineage.deltas, *new],
        Path(out),
        overwrite=overwrite,
        force=force,
        link=link,
        files=files,
        audit=audit,
    )


def rebuild(
    lineage: Lineage,
    stack: Sequence[Delta],
    out: Path,
    *,
    overwrite: bool = False,
    force: bool = False,
    link: Literal["reflink", "copy", "hard"] = "reflink",
    files: Mapping[str, str | bytes | Path] | None = None,
    audit: dict[str, Any] | None = None,
) -> Applied:
    """Write the base of `lineage` with exactly `stack` on it; an empty stack gives the base back."""
    checkpoint = lineage.checkpoint
    warnings = check(lineage, stack, force)
    touched = sorted({key for delta in stack for key in delta.tensors})
    _refuse_silent_tie(checkpoint, stack)

    def patch(key: str) -> Callable[[], torch.Tensor]:
        def value() -> torch.Tensor:
            changes = [delta.tensors[key] for delta in stack if key in delta.tensors]
            original = lineage.original(key)
            if not changes:
                return original
            stored = torch_dtype(checkpoint.tensors[key].dtype)
            return materialize(original, changes, stored)

        return value

    patches = {key: patch(key) for key in sorted({*touched, *lineage.originals})}
    added, removed, config = _head_changes(checkpoint, lineage, stack)
    content: dict[str, str | bytes | Path] = dict(files or {})
    content.update(_records(lineage, stack, touched, audit))
    write_edited(
        checkpoint,
        out,
        patches,
        added=added,
        removed=removed,
        config_changes=config,
        files=content,
        link=link,
        overwrite=overwrite,
    )
    return Applied(out, touched, [delta.id for delta in stack], warnings)


# ---------------------------------------------------------------------- tied embeddings
def _head_changes(
    checkpoint: Checkpoint, lineage: Lineage, stack: Sequence[Delta]
) -> tuple[dict[str, torch.Tensor], list[str], dict[str, Any]]:
    """Tensors to add, tensors to drop and config fields to change, for the wish to untie the head."""
    table = for_config(checkpoint.config)
    head = f"{table.lm_head}.weight"
    was = any(delta.untie for delta in lineage.deltas)
    now = any(delta.untie for delta in stack)
    if now and not was:
        if not checkpoint.tied_embeddings:
            return {}, [], {}
        embedding = table.stored_key(f"{table.embed}.weight", checkpoint.tensors)
        assert embedding is not None
        return {head: lineage.original(embedding)}, [], {"tie_word_embeddings": False}
    if was and not now and head in checkpoint.tensors:
        return {}, [head], {"tie_word_embeddings": True}
    return {}, [], {}


def _refuse_silent_tie(checkpoint: Checkpoint, stack: Sequence[Delta]) -> None:
    if not checkpoint.tied_embeddings or any(delta.untie for delta in stack):
        return
    table = for_config(checkpoint.config)
    embedding = table.stored_key(f"{table.embed}.weight", checkpoint.tensors)
    for delta in stack:
        if embedding in delta.tensors and not delta.metadata.get("edits_head"):
            raise SurgeryError(
                f"{delta.name} changes {embedding}, which is also the output head of this "
                "checkpoint: say embeddings: untie or embeddings: both in its spec"
            )


# ---------------------------------------------------------------------- what lies beside the weights
def _records(
    lineage: Lineage, stack: Sequence[Delta], touched: list[str], audit: dict[str, Any] | None
) -> dict[str, str | bytes]:
    """surgery.json, the deltas, the replaced tensors and the model card."""
    folder = lineage.checkpoint.path
    card = folder / (f"{FOLDER}/{BASE_CARD}" if lineage.edited else "README.md")
    base_card = card.read_text(encoding="utf-8") if card.exists() else ""
    if not stack:
        # Back at the base: its own card, or none.
        return {"README.md": base_card} if base_card else {}

    files: dict[str, str | bytes] = {}
    entries = []
    for number, delta in enumerate(stack, start=1):
        name = f"{FOLDER}/{number:02d}-{_slug(delta.name)}-{delta.id[:12]}{SUFFIX}"
        files[name] = _bytes_of(delta)
        entries.append(
            {
                "id": delta.id,
                "name": delta.name,
                "file": name,
                "stack": list(delta.stack),
                "kinds": [e["kind"] for e in (delta.metadata.get("spec") or {}).get("edits", [])],
                "tensors": len(delta.tensors),
            }
        )
    originals = {key: lineage.original(key) for key in touched}
    files[f"{FOLDER}/{ORIGINALS}"] = _safetensors(originals)
    if base_card:
        files[f"{FOLDER}/{BASE_CARD}"] = base_card
    record = {
        "format": FORMAT,
        "base_id": lineage.base_id,
        "base": lineage.record.get("base") or folder.name,
        "edits": entries,
        "base_hashes": {key: lineage.original_hash(key) for key in touched},
        "audit": audit if audit is not None else lineage.record.get("audit"),
    }
    files[RECORD] = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    files["README.md"] = model_card(record, [delta.metadata for delta in stack], base_card)
    return files


def _safetensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save(dict(tensors))


def _bytes_of(delta: Delta) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return save_delta(delta, Path(folder) / "delta").read_bytes()


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())[:40].strip("-") or "edit"


__all__ = ["BASE_CONFIG", "Applied", "apply", "read_header", "rebuild", "tensor_bytes"]
