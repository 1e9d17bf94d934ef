"""Base and edited as two states of one model wherever that is exact, else as two models.

An edited folder made by surgery is its base plus deltas, so the base is loaded once and the deltas
are put on and taken off. That is only done when the folder holds what base and deltas give, byte for
byte: one that was changed afterwards is loaded by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgery.audit.head import Head, changes_head
from surgery.audit.report import Side
from surgery.checkpoint import Checkpoint, tensor_bytes
from surgery.checkpoint.tensors import torch_dtype
from surgery.delta import Change, Delta, Dense, combine, load_delta, materialize
from surgery.errors import SurgeryError
from surgery.model import Model, load
from surgery.stack import Lineage, applied

Edited = str | Path | Delta | Sequence[str | Path | Delta]


@dataclass
class Sides:
    """Everything an audit compares. `change` is edited - base by stored key."""

    model: Model
    deltas: list[Delta]
    change: dict[str, Change]
    base_side: Side
    edited_side: Side
    other: Model | None = None
    undeclared: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    force: bool = False
    base_head: Head | None = None

    def __post_init__(self) -> None:
        changed = changes_head(self.model, self.change)
        self.base_head = Head.of(self.model, copy=True) if changed else None

    @classmethod
    def of(
        cls, base: Any, edited: Edited, model: Model | None = None, force: bool = False
    ) -> Sides:
        """Work out what to compare with what.

        base: a folder or a loaded model (with whatever edits are applied to it). edited: a folder, a
        delta or its file, or several deltas in order. model: the base, loaded already. force: take
        deltas of another base too, and in an order they were not solved in.

        Raises:
            SurgeryError: no such folder or file, a delta of another base, models that cannot be
                compared because their vocabularies differ.
        """
        if isinstance(base, Model):
            model = base
        elif model is not None and Path(base).resolve() != model.checkpoint.path.resolve():
            raise SurgeryError(f"the loaded model is {model.checkpoint.path}, not {base}")
        if isinstance(edited, str | Path) and Path(edited).is_dir():
            target = Checkpoint.open(Path(edited))
            return cls._of_folder(model or load(str(base)), target, force)
        given = [edited] if isinstance(edited, str | Path | Delta) else list(edited)
        deltas = [one if isinstance(one, Delta) else load_delta(_file(one)) for one in given]
        model = model or load(str(base))
        paths = [str(one) for one in given if not isinstance(one, Delta)]
        side = Side(path=paths[0] if len(paths) == 1 else None, edits=_edits(deltas))
        change = combine([delta.tensors for delta in deltas])
        return cls(model, deltas, change, _base_side(model), side, force=force)

    @classmethod
    def _of_folder(cls, model: Model, target: Checkpoint, force: bool) -> Sides:
        there, here = Lineage.of(target), Lineage.of(model.checkpoint)
        side = Side(path=str(target.path), id=target.id)
        notes = []
        if there.edited and not model.edits and there.base_id == here.base_id:
            done = len(here.ids)
            if there.ids[:done] == here.ids:
                deltas = there.deltas[done:]
                stray = _stray(model.checkpoint, here, target, there.deltas)
                if not stray:
                    side.edits = _edits(deltas)
                    change = combine([delta.tensors for delta in deltas])
                    return cls(model, deltas, change, _base_side(model), side, force=force)
                notes.append(
                    f"{target.path.name} is not what its record says: {_some(sorted(stray))} "
                    "differs from base plus edits, so the folder was loaded as it is"
                )
        change = difference(model.checkpoint, target)
        other = load(target.path, device=model.device, dtype=model.dtype)
        if other.head.weight.shape[0] != model.head.weight.shape[0]:
            raise SurgeryError(
                f"{target.path} has a vocabulary of {other.head.weight.shape[0]}, "
                f"{model.checkpoint.path} one of {model.head.weight.shape[0]}: they cannot be compared"
            )
        declared = {key for delta in there.deltas for key in delta.tensors}
        side.edits = _edits(there.deltas)
        undeclared = set(change) - declared if there.edited else set()
        notes += _apart(model.checkpoint, target)
        return cls(model, [], change, _base_side(model), side, other, undeclared, notes)

    # ------------------------------------------------------------------ the states
    @contextlib.contextmanager
    def edited(self) -> Iterator[Model]:
        """The edited model, for the length of the block."""
        if self.other is not None:
            yield self.other
        else:
            with applied(self.model, self.deltas, force=self.force) as model:
                yield model

    @contextlib.contextmanager
    def with_delta(self, delta: Delta) -> Iterator[Model]:
        """The base with another delta on it (a control)."""
        with applied(self.model, delta, force=True) as model:
            yield model

    def as_delta(self) -> Delta:
        """The whole change as one delta, for controls of its size."""
        untie = any(delta.untie for delta in self.deltas)
        metadata = {"edits_head": any(delta.metadata.get("edits_head") for delta in self.deltas)}
        if self.other is not None:
            untie = self.model.tied and not self.other.tied
            metadata["edits_head"] = not untie
        present = {k: c for k, c in self.change.items() if k in self.model.checkpoint.tensors}
        base_id = Lineage.of(self.model.checkpoint).base_id
        return Delta(present, base_id=base_id, untie=untie, metadata=metadata)

    def head(self) -> Head:
        """The base's output head, whatever is applied right now."""
        return self.base_head or Head.of(self.model)


def difference(base: Checkpoint, edited: Checkpoint) -> dict[str, Change]:
    """edited - base for every tensor that differs; by hash, so only those are read.

    Tensors that only one side has, or has in another shape, are left out: there is nothing to subtract.
    """
    found: dict[str, Change] = {}
    for key, ref in edited.tensors.items():
        mine = base.tensors.get(key)
        if mine is None or mine.shape != ref.shape:
            continue
        if mine.dtype != ref.dtype or base.hash(key) != edited.hash(key):
            value = edited.read(key).float() - base.read(key).float()
            if bool((value != 0).any()):
                found[key] = Dense(value)
    return found


def _apart(base: Checkpoint, edited: Checkpoint) -> list[str]:
    """A note on the tensors that `difference` leaves out."""
    keys = sorted(
        key
        for key in base.tensors.keys() | edited.tensors.keys()
        if key not in base.tensors
        or key not in edited.tensors
        or base.tensors[key].shape != edited.tensors[key].shape
    )
    if not keys:
        return []
    return [
        f"{_some(keys)} is on one side only or of another shape: what became of it is measured in what "
        "the models say, not among the weights"
    ]


def _stray(
    base: Checkpoint, here: Lineage, target: Checkpoint, deltas: Sequence[Delta]
) -> set[str]:
    """Tensors of an edited folder that are not what base plus deltas make them."""
    touched = {key for delta in deltas for key in delta.tensors}
    stray = set()
    for key in target.tensors:
        if key in touched:
            changes = [delta.tensors[key] for delta in deltas if key in delta.tensors]
            stored = torch_dtype(target.tensors[key].dtype)
            if key in base.tensors:
                made = materialize(here.original(key), changes, stored)
                if bytes(tensor_bytes(made)) != target.read_bytes(key):
                    stray.add(key)
        elif key in base.tensors and here.original_hash(key) != target.hash(key):
            stray.add(key)
    return stray


def _file(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise SurgeryError(f"no edited folder or delta {path}")
    return Path(path)


def _edits(deltas: Sequence[Delta]) -> list[dict[str, Any]]:
    return [
        {
            "id": delta.id,
            "name": delta.name,
            "kinds": [e.get("kind") for e in (delta.metadata.get("spec") or {}).get("edits", [])],
            "tensors": len(delta.tensors),
        }
        for delta in deltas
    ]


def _base_side(model: Model) -> Side:
    lineage = Lineage.of(model.checkpoint)
    edits = [*lineage.record.get("edits", []), *_edits(model.edits)]
    return Side(path=str(model.checkpoint.path), id=model.checkpoint.id, edits=edits)


def _some(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} (and {len(keys) - 1} more)"
