"""Deltas on a loaded model: put on, taken off, always rebuilt from the base's own weights."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import nn

from surgery.checkpoint.tensors import torch_dtype
from surgery.delta import Delta, materialize
from surgery.model import Model
from surgery.stack.conflicts import check
from surgery.stack.lineage import Lineage


@contextlib.contextmanager
def applied(model: Model, deltas: Delta | Sequence[Delta], force: bool = False) -> Iterator[Model]:
    """The model with deltas on top of whatever is applied, for the length of the block.

    On exit the weights are what they were before, bit for bit, whatever happened inside.
    """
    before = list(model.edits)
    more = [deltas] if isinstance(deltas, Delta) else list(deltas)
    set_edits(model, [*before, *more], force=force)
    try:
        yield model
    finally:
        set_edits(model, before, force=True)


def set_edits(
    model: Model,
    deltas: Sequence[Delta],
    force: bool = False,
    off: Collection[str] | None = None,
) -> list[str]:
    """Make the model exactly its checkpoint + `deltas`. Returns warnings about how they go together.

    off: ids of edits of an edited folder that are taken out in memory; by default those that are now.

    Every touched tensor is computed anew from the base, summed in float32 and rounded once to the
    dtype the checkpoint stores, so memory and disk agree. Should anything fail, the model is left
    as it was.

    Raises:
        SurgeryError: see `surgery.stack.conflicts.check`.
    """
    lineage = Lineage.of(model.checkpoint)
    previous, previously_off = list(model.edits), model.off
    now_off = model.off if off is None else frozenset(off)
    below = [delta for delta in lineage.deltas if delta.id not in now_off]
    warnings = check(lineage, [*below, *deltas], force) if deltas or now_off else []
    try:
        _write(model, lineage, deltas, now_off)
    except BaseException:
        _write(model, lineage, previous, previously_off)
        raise
    model.edits[:], model.off = deltas, now_off
    return warnings


@torch.no_grad()
def _write(model: Model, lineage: Lineage, deltas: Sequence[Delta], off: Collection[str]) -> None:
    below = [delta for delta in lineage.deltas if delta.id not in off]
    gone = [delta for delta in lineage.deltas if delta.id in off]
    _set_tie(model, untie=any(delta.untie for delta in deltas))
    wanted = {key for delta in [*gone, *deltas] for key in delta.tensors}
    for key in sorted(wanted | set(model.originals)):
        parameter = model.parameter(key)
        if key not in wanted:
            parameter.copy_(model.originals.pop(key))
            continue
        if key not in model.originals:
            model.originals[key] = parameter.detach().clone()
        changes = [delta.tensors[key] for delta in [*below, *deltas] if key in delta.tensors]
        stored = torch_dtype(model.checkpoint.tensors[key].dtype)
        parameter.copy_(materialize(_base(model, lineage, key, stored), changes, stored))


def _base(model: Model, lineage: Lineage, key: str, stored: torch.dtype) -> torch.Tensor:
    """The base's tensor. Memory is good enough unless the model was loaded at lower precision."""
    loaded = model.originals[key]
    exact = loaded.dtype in (stored, torch.float32) and key not in lineage.originals
    return loaded if exact else lineage.original(key).to(loaded.device)


def _set_tie(model: Model, untie: bool) -> None:
    """Split a tied output head from the embedding, or tie it again."""
    should_tie = bool(getattr(model.hf.config, "tie_word_embeddings", False))
    if untie and model.tied:
        key = model.stored_key(f"{model.architecture.embed}.weight")
        loaded = model.originals.get(key, model.embedding.weight)
        model.head.weight = nn.Parameter(loaded.detach().clone(), False)
    elif not untie and should_tie and not model.tied:
        model.head.weight = model.embedding.weight


def stack(model: Model) -> list[Delta]:
    """Every edit in the model, oldest first: those of its folder, then those applied in memory."""
    below = Lineage.of(model.checkpoint).deltas
    return [*(delta for delta in below if delta.id not in model.off), *model.edits]


def stack_ids(model: Model) -> list[str]:
    """Ids of every edit in the model, oldest first."""
    below = Lineage.of(model.checkpoint).ids
    return [*(one for one in below if one not in model.off), *(delta.id for delta in model.edits)]


@contextlib.contextmanager
def bare(model: Model) -> Iterator[Model]:
    """The base: the model without any edit, of its folder or in memory, for the length of the block."""
    below = Lineage.of(model.checkpoint).ids
    before, off = list(model.edits), model.off
    if not before and off.issuperset(below):
        yield model
        return
    set_edits(model, [], off=below)
    try:
        yield model
    finally:
        set_edits(model, before, force=True, off=off)
