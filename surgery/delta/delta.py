"""Delta: the weight changes of a solved edit, as factors.

A delta knows the tensors it changes by their key on disk, and in the orientation they are stored in:
for a stored matrix of shape (rows, columns) the change is `B @ A` with B (rows, r) and A (r, columns).
For an nn.Linear that is LoRA's (out, r) and (r, in). Biases, embeddings that are replaced, and changes
of full rank are `Dense`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from surgery.errors import SurgeryError


@dataclass(frozen=True)
class LowRank:
    """The change `B @ A`; A (r, columns) and B (rows, r), both float32."""

    A: torch.Tensor
    B: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.B.shape[0], self.A.shape[1])

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def value(self) -> torch.Tensor:
        return self.B @ self.A

    def scaled(self, by: float) -> LowRank:
        return LowRank(self.A, self.B * by)

    def norm(self) -> float:
        """Frobenius norm, from the Gram matrices: tr(B^T B A A^T)."""
        gram = (self.B.double().T @ self.B.double()) * (self.A.double() @ self.A.double().T)
        return float(gram.sum().clamp_min(0).sqrt())


@dataclass(frozen=True)
class Dense:
    """The change itself, float32, in the stored shape."""

    change: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.change.shape)

    @property
    def rank(self) -> int:
        return min(self.shape) if len(self.shape) > 1 else 1

    def value(self) -> torch.Tensor:
        return self.change

    def scaled(self, by: float) -> Dense:
        return Dense(self.change * by)

    def norm(self) -> float:
        return float(self.change.double().norm())


Change = LowRank | Dense


@dataclass(frozen=True)
class Delta:
    """Changes by tensor, the base they were solved for, and how they came about.

    base_id: id of the checkpoint. base_hashes: sha256 of each touched tensor of it.
    stack: ids of the deltas that were applied to the base while this one was solved.
    untie: the tied output head keeps the base's embedding while the embedding is edited.
    metadata: the spec as solved, seed, versions, diagnostics; never part of the id.
    """

    tensors: Mapping[str, Change]
    base_id: str
    base_hashes: Mapping[str, str] = field(default_factory=dict)
    stack: tuple[str, ...] = ()
    untie: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, change in self.tensors.items():
            parts = (change.A, change.B) if isinstance(change, LowRank) else (change.change,)
            for part in parts:
                if part.dtype != torch.float32:
                    raise SurgeryError(f"delta of {key} is {part.dtype}: factors are float32")
                if not torch.isfinite(part).all():
                    raise SurgeryError(f"delta of {key} is not finite: it would break the model")
            if isinstance(change, LowRank):
                a, b = change.A, change.B
                if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
                    raise SurgeryError(
                        f"delta of {key}: factors A {tuple(a.shape)} and B {tuple(b.shape)} "
                        "do not fit together"
                    )

    @cached_property
    def id(self) -> str:
        """sha256 of the factors, the base and what they were solved on top of. Nobody writes into a
        delta's tensors, so it is made once."""
        digest = hashlib.sha256()
        head = [self.base_id, list(self.stack), self.untie]
        digest.update(json.dumps(head).encode())
        for key in sorted(self.tensors):
            change = self.tensors[key]
            parts = (
                (("A", change.A), ("B", change.B))
                if isinstance(change, LowRank)
                else (("dense", change.change),)
            )
            for name, part in parts:
                digest.update(json.dumps([key, name, list(part.shape)]).encode())
                digest.update(part.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """What people call it: the spec's name, or its kinds."""
        spec = self.metadata.get("spec") or {}
        kinds = "+".join(edit.get("kind", "?") for edit in spec.get("edits", []))
        return spec.get("name") or kinds or "delta"

    def scaled(self, by: float) -> Delta:
        return self.replace({key: change.scaled(by) for key, change in self.tensors.items()})

    def replace(self, tensors: Mapping[str, Change], **changes: Any) -> Delta:
        fields = {
            "base_id": self.base_id,
            "base_hashes": {k: v for k, v in self.base_hashes.items() if k in tensors},
            "stack": self.stack,
            "untie": self.untie,
            "metadata": self.metadata,
        }
        return Delta(tensors, **{**fields, **changes})

    def norms(self) -> dict[str, float]:
        """Frobenius norm of every change."""
        return {key: change.norm() for key, change in self.tensors.items()}


def add(changes: Sequence[Change]) -> Change:
    """The sum of changes of one tensor: factors are concatenated, so nothing is rounded."""
    if len(changes) == 1:
        return changes[0]
    if all(isinstance(change, LowRank) for change in changes):
        low: list[LowRank] = list(changes)  # type: ignore[arg-type]
        total = LowRank(torch.cat([c.A for c in low]), torch.cat([c.B for c in low], dim=1))
        if total.rank < min(total.shape):
            return total
    return Dense(torch.stack([change.value() for change in changes]).sum(0))


def combine(deltas: Iterable[Mapping[str, Change]]) -> dict[str, Change]:
    """Changes of several edits, summed tensor by tensor."""
    collected: dict[str, list[Change]] = {}
    for tensors in deltas:
        for key, change in tensors.items():
            collected.setdefault(key, []).append(change)
    return {key: add(changes) for key, changes in collected.items()}


def materialize(base: torch.Tensor, changes: Sequence[Change], stored: torch.dtype) -> torch.Tensor:
    """base + changes, summed in float32 and rounded once, to the dtype the checkpoint stores."""
    total = base.to(torch.float32)
    for change in changes:
        if change.shape != tuple(base.shape):
            raise SurgeryError(
                f"a change of shape {change.shape} does not fit a tensor of shape {tuple(base.shape)}"
            )
        total = total + change.value().to(base.device)
    return total.to(stored)
