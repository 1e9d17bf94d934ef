"""Deltas on a checkpoint folder. No model is loaded: only the tensors that change are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from surgery.architecture import for_config
from surgery.checkpoint import Checkpoint, write_edited
from surgery.checkpoint.index import INDEX_NAME
from surgery.checkpoint.tensors import stream_tensors, torch_dtype
from surgery.checkpoint.writer import Content
from surgery.delta import SUFFIX, Change, Delta, load_delta, materialize, save_delta
from surgery.stack.card import model_card
from surgery.stack.conflicts import check
from surgery.stack.lineage import BASE_FILES, FOLDER, FORMAT, ORIGINALS, RECORD, Lineage

# What else changes with a tensor that the base does not have.
_FRAME = ("config.json", INDEX_NAME)


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
    files: Mapping[str, Content] | None = None,
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
    files: Mapping[str, Content] | None = None,
    audit: dict[str, Any] | None = None,
) -> Applied:
    """Write the base of `lineage` with exactly `stack` on it; an empty stack gives the base back."""
    checkpoint = lineage.checkpoint
    warnings = check(lineage, stack, force)
    changes: dict[str, list[Change]] = {}
    for delta in stack:
        for key, change in delta.tensors.items():
            changes.setdefault(key, []).append(change)
    head = _Head.of(lineage, stack)
    if head.follows in changes and head.stored:
        changes[head.key] = changes[head.follows]
    touched = sorted(changes)

    def patch(key: str) -> Callable[[], torch.Tensor]:
        stored = torch_dtype(checkpoint.tensors[key].dtype)
        return lambda: materialize(lineage.original(key), changes.get(key, []), stored)

    patched = {*touched, *lineage.originals} - set(head.removed)
    own: dict[str, Content] = dict(files or {})
    if stack:
        names = sorted({*own, "README.md", *(_FRAME if head.untied else ())})
        record = _record(lineage, stack, touched, names, audit)
        own["README.md"] = _card(lineage, stack, record)
        own |= _in_deltas(lineage, stack, touched, record)
    write_edited(
        checkpoint,
        out,
        {key: patch(key) for key in sorted(patched)},
        added={head.key: lineage.original(head.embedding)} if head.added else {},
        removed=head.removed,
        config_changes={"tie_word_embeddings": False} if head.splits else {},
        restored=_base_files(lineage, _FRAME) if head.joins else {},
        files={**_given_back(lineage), **own},
        link=link,
        overwrite=overwrite,
    )
    return Applied(out, touched, [delta.id for delta in stack], warnings)


# ---------------------------------------------------------------------- tied embeddings
@dataclass(frozen=True)
class _Head:
    """What becomes of an output head that is the input embedding in the base.

    untied: the result's head is a tensor of its own; it was one before the write if `was`.
    stored: the base holds the head as well, a second copy of the embedding.
    """

    key: str
    embedding: str
    tied: bool
    stored: bool
    was: bool
    untied: bool

    @classmethod
    def of(cls, lineage: Lineage, stack: Sequence[Delta]) -> _Head:
        tensors = lineage.checkpoint.tensors
        table = for_config(lineage.checkpoint.config)
        key = f"{table.lm_head}.weight"
        tied = lineage.base_tied
        return cls(
            key,
            table.stored_key(f"{table.embed}.weight", tensors) or "",
            tied,
            key in tensors and key not in lineage.record.get("added", []),
            tied and lineage.untied,
            tied and any(delta.untie for delta in stack),
        )

    @property
    def splits(self) -> bool:
        return self.untied and not self.was

    @property
    def joins(self) -> bool:
        return self.was and not self.untied

    @property
    def added(self) -> bool:
        return self.splits and not self.stored

    @property
    def removed(self) -> list[str]:
        return [self.key] if self.joins and not self.stored else []

    @property
    def follows(self) -> str | None:
        """The tensor that the head is a second copy of, and has to stay one."""
        return self.embedding if self.tied and not self.untied else None


# ---------------------------------------------------------------------- what lies beside the weights
def _base_files(lineage: Lineage, names: Collection[str]) -> dict[str, Path]:
    found = {name: lineage.base_file(name) for name in names}
    return {name: file for name, file in found.items() if file is not None}


def _given_back(lineage: Lineage) -> dict[str, Content]:
    """The base's own version (None where it has none) of every file that the edits so far replaced."""
    names = [name for name in lineage.record.get("files", []) if name not in _FRAME]
    return {name: lineage.base_file(name) for name in names}


def _record(
    lineage: Lineage,
    stack: Sequence[Delta],
    touched: list[str],
    files: list[str],
    audit: dict[str, Any] | None,
) -> dict[str, Any]:
    """The content of surgery.json.

    base_hashes: of the touched tensors. added: tensors the base does not have. files: those beside the
    weights that are not the base's own.
    """
    head = _Head.of(lineage, stack)
    return {
        "format": FORMAT,
        "base_id": lineage.base_id,
        "base": lineage.record.get("base") or lineage.checkpoint.path.name,
        "edits": [
            {
                "id": delta.id,
                "name": delta.name,
                "file": f"{FOLDER}/{number:02d}-{_slug(delta.name)}-{delta.id[:12]}{SUFFIX}",
                "stack": list(delta.stack),
                "kinds": [e["kind"] for e in (delta.metadata.get("spec") or {}).get("edits", [])],
                "tensors": len(delta.tensors),
            }
            for number, delta in enumerate(stack, start=1)
        ],
        "base_hashes": {key: lineage.original_hash(key) for key in touched},
        "added": [head.key] if head.untied and not head.stored else [],
        "files": files,
        "audit": audit,
    }


def _in_deltas(
    lineage: Lineage, stack: Sequence[Delta], touched: list[str], record: dict[str, Any]
) -> dict[str, Content]:
    """surgery.json, and all that lies in deltas/."""
    files: dict[str, Content] = {RECORD: json.dumps(record, indent=2, ensure_ascii=False) + "\n"}
    for entry, delta in zip(record["edits"], stack, strict=True):
        files[entry["file"]] = partial(save_delta, delta)
    refs = {key: lineage.checkpoint.tensors[key] for key in touched}
    files[f"{FOLDER}/{ORIGINALS}"] = lambda file: stream_tensors(file, refs, lineage.original)
    for name, file in _base_files(lineage, record["files"]).items():
        files[f"{BASE_FILES}/{name}"] = file
    return files


def _card(lineage: Lineage, stack: Sequence[Delta], record: dict[str, Any]) -> str:
    base = lineage.base_file("README.md")
    text = base.read_text(encoding="utf-8", errors="replace") if base is not None else ""
    return model_card(record, [delta.metadata for delta in stack], text)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())[:40].strip("-") or "edit"


__all__ = ["Applied", "apply", "rebuild"]
