"""What a method hands back, and the small things all methods need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from surgery.delta import Change, Delta, LowRank
from surgery.directions import Direction
from surgery.errors import SurgeryError
from surgery.facts.requests import Requests
from surgery.facts.target import TargetSettings
from surgery.model import Model
from surgery.spec import AblateEdit, FactPart
from surgery.stack.lineage import Lineage
from surgery.stack.memory import stack_ids

P = TypeVar("P", bound=FactPart)


@dataclass(frozen=True)
class Solved:
    """Changes by tensor, the part of the spec with every choice filled in, and what the solve saw."""

    tensors: Mapping[str, Change]
    part: Any
    diagnostics: dict[str, Any] = field(default_factory=dict)
    untie: bool = False
    edits_head: bool = False


def filled(part: P, requests: Requests, settings: TargetSettings, **where: Any) -> P:
    """A part about facts with every choice written into it. where: its layer or layers."""
    return part.model_copy(
        update={
            "facts": requests.facts,
            "prefixes": list(requests.prefixes),
            "learning_rate": settings.learning_rate,
            "clamp": settings.clamp,
            "weight_decay": settings.weight_decay,
            **where,
        }
    )


def weight_key(model: Model, layer: int) -> str:
    """The key on disk of a layer's down projection."""
    return model.stored_key(f"{model.architecture.mlp_out_module(layer)}.weight")


def stored_factors(model: Model, B: torch.Tensor, A: torch.Tensor) -> LowRank:
    """Factors of a change of (out, in) as the checkpoint stores it; Conv1D stores the transpose."""
    B, A = B.float().cpu().contiguous(), A.float().cpu().contiguous()
    if model.architecture.layout == "conv1d":
        return LowRank(A=B.T.contiguous(), B=A.T.contiguous())
    return LowRank(A=A, B=B)


def as_delta(
    model: Model,
    tensors: Mapping[str, Change],
    metadata: Mapping[str, Any] | None = None,
    *,
    untie: bool = False,
    stack: Sequence[str] | None = None,
) -> Delta:
    """A delta for the model's base, solved on top of what is applied now (or on `stack`)."""
    lineage = Lineage.of(model.checkpoint)
    return Delta(
        dict(tensors),
        base_id=lineage.base_id,
        base_hashes={key: lineage.original_hash(key) for key in tensors},
        stack=tuple(stack if stack is not None else stack_ids(model)),
        untie=untie,
        metadata=dict(metadata or {}),
    )


def saved_direction(part: AblateEdit, model: Model) -> Direction | None:
    """The direction that a part with `spare` names, if it names one.

    Raises:
        SurgeryError: several, or one that does not fit the model.
    """
    if part.direction is None:
        return None
    files = [part.direction] if isinstance(part.direction, str) else part.direction
    if len(files) != 1:
        raise SurgeryError(f"sparing: {part.sparing} takes one direction, not {len(files)}")
    return Direction.load(files[0], model.hidden_size)
