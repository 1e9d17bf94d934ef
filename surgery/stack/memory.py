"""Deltas on a loaded model: put on, taken off, always rebuilt from the base's own weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from surgery.checkpoint.tensors import torch_dtype
from surgery.delta import Delta, materialize
from surgery.model import Model
from surgery.stack.conflicts import check
from surgery.stack.lineage import Lineage


@contextlib.contextmanager
def applied(
    model: Model, deltas: Delta | Sequence[Delta], force: bool = False
) -> Iterator[Model]:
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


def set_edits(model: Model, deltas: Sequence[Delta], force: bool = False) -> list[str]:
    """Make the model exactly checkpoint + `deltas`. Returns warnings about how they go together.

    Every touched tensor is computed anew from the base, summed in float32 and rounded once to the
    dtype the checkpoint stores, so memory and disk agree. Should anything fail, the model is left
    as it was.

    Raises:
        SurgeryError: see `surgery.stack.conflicts.check`.
    """
    lineage = Lineage.of(model.checkpoint)
    warnings = check(lineage, [*lineage.deltas, *deltas], force) if deltas else []
    previous = list(model.edits)
    try:
        _write(model, lineage, deltas)
    except BaseException:
        _write(model, lineage, previous)
        raise
    model.edits[:] = deltas
    return warnings


@torch.no_grad()
def _write(model: Model, lineage: Lineage, deltas: Sequence[Delta]) -> None:
    _set_tie(model, untie=any(delta.untie for delta in deltas))
    wanted = {key for delta in deltas for key in delta.tensors}
    for key in sorted(wanted | set(model.originals)):
        parameter = model.parameter(key)
        if key not in wanted:
            parameter.copy_(model.originals.pop(key))
            continue
        if key not in model.originals:
            model.originals[key] = parameter.detach().clone()
        changes = [d.tensors[key] for d in [*lineage.deltas, *deltas] if key in d.tensors]
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
        model.head.weight = nn.Parameter(model.embedding.weight.detach().clone(), False)
    elif not untie and should_tie and not model.tied:
        model.head.weight = model.embedding.weight


def stack_ids(model: Model) -> list[str]:
    """Ids of every edit in the model: those of its folder, then those applied in memory."""
    return [*Lineage.of(model.checkpoint).ids, *(delta.id for delta in model.edits)]


@contextlib.contextmanager
def bare(model: Model) -> Iterator[Model]:
    """The model without the edits applied in memory, for the length of the block."""
    before = list(model.edits)
    if not before:
        yield model
        return
    set_edits(model, [])
    try:
        yield model
    finally:
        set_edits(model, before, force=True)
