"""What can go wrong when deltas meet: with their base, and with one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from surgery.architecture import for_config
from surgery.delta import Delta, LowRank
from surgery.errors import SurgeryError
from surgery.stack.lineage import Lineage


def check(lineage: Lineage, deltas: Sequence[Delta], force: bool = False) -> list[str]:
    """Refuse what cannot be right, and report in plain words what may not be.

    deltas: the whole stack as it is to be, oldest first.
    force: accept a base or an order the deltas were not solved for.

    Raises:
        SurgeryError: wrong base, a tensor that is missing or has another shape, an edit solved on top
            of one that is not there, an embedding edit that would silently change the output head.
    """
    present: list[str] = []
    for delta in deltas:
        _check_base(lineage, delta, force)
        missing = [one for one in delta.stack if one not in present]
        if missing and not force:
            raise SurgeryError(
                f"{delta.name} was solved on top of edit {missing[0][:12]}, which is not applied "
                "before it: apply that one first, or use --force"
            )
        if delta.id in present:
            raise SurgeryError(f"the edit {delta.id[:12]} ({delta.name}) is applied already")
        present.append(delta.id)
    _check_tie(lineage, deltas)
    return [
        warning
        for index, later in enumerate(deltas)
        for earlier in deltas[:index]
        if earlier.id not in later.stack
        for warning in between(earlier, later)
    ] + _same_facts(deltas)


def _check_base(lineage: Lineage, delta: Delta, force: bool) -> None:
    checkpoint = lineage.checkpoint
    if delta.base_id != lineage.base_id and not force:
        raise SurgeryError(
            f"{delta.name} was solved for the base {delta.base_id[:12]}, but {checkpoint.path} is "
            f"{lineage.base_id[:12]}: solve the spec again for this base, or use --force"
        )
    for key, change in delta.tensors.items():
        if key not in checkpoint.tensors:
            raise SurgeryError(f"{delta.name} changes {key}, which {checkpoint.path} does not hold")
        stored = checkpoint.tensors[key]
        if tuple(stored.shape) != change.shape:
            raise SurgeryError(
                f"{delta.name} has shape {change.shape} for {key}, the checkpoint has "
                f"{tuple(stored.shape)}"
            )
        expected = delta.base_hashes.get(key)
        if expected and expected != lineage.original_hash(key) and not force:
            raise SurgeryError(
                f"{key} of {checkpoint.path} is not the tensor {delta.name} was solved for: "
                "solve the spec again, or use --force"
            )


def _check_tie(lineage: Lineage, deltas: Sequence[Delta]) -> None:
    if not lineage.base_tied:
        return
    table = for_config(lineage.checkpoint.config)
    embedding = table.stored_key(f"{table.embed}.weight", lineage.checkpoint.tensors)
    both = [delta for delta in deltas if delta.metadata.get("edits_head")]
    split = [delta for delta in deltas if delta.untie]
    if both and split:
        raise SurgeryError(
            f"{both[0].name} edits embedding and output head as one tensor, {split[0].name} gives the "
            "head a tensor of its own: say embeddings: untie, or both, in the specs of both"
        )
    for delta in deltas:
        if embedding in delta.tensors and delta not in both and not split:
            raise SurgeryError(
                f"{delta.name} changes {embedding}, which is also the output head of this "
                "checkpoint: say embeddings: untie or embeddings: both in its spec"
            )


def between(earlier: Delta, later: Delta) -> list[str]:
    """Warnings about two deltas that were solved without knowing of each other."""
    found = []
    shared = sorted(set(earlier.tensors) & set(later.tensors))
    if shared:
        worst = max(overlap(earlier, later, key) for key in shared)
        found.append(
            f"{earlier.name} and {later.name} both change {_some(shared)} and were solved apart: "
            f"their keys overlap by {worst:.0%} at most"
        )
    if "ablate" in _kinds(earlier) and set(_kinds(later)) - {"ablate"}:
        found.append(
            f"{later.name} was solved before {earlier.name} removed its direction, and may write "
            "some of it back"
        )
    return found


def overlap(one: Delta, other: Delta, key: str) -> float:
    """Largest cosine between the input sides of two changes of a tensor: 0 apart, 1 the same key."""
    a, b = one.tensors[key], other.tensors[key]
    if not (isinstance(a, LowRank) and isinstance(b, LowRank)):
        return 1.0
    first = torch.linalg.qr(a.A.double().T).Q
    second = torch.linalg.qr(b.A.double().T).Q
    return float(torch.linalg.svdvals(first.T @ second).max().clamp(0, 1))


def _same_facts(deltas: Sequence[Delta]) -> list[str]:
    seen: dict[tuple[str, str], tuple[Delta, str]] = {}
    found = []
    for delta in deltas:
        for fact in _facts(delta):
            place = (
                fact["prompt"].replace("{}", fact["subject"]).casefold(),
                fact["subject"].casefold(),
            )
            earlier = seen.get(place)
            if earlier is not None and earlier[0] is not delta:
                found.append(
                    f"{delta.name} and {earlier[0].name} both edit {place[0]!r}: "
                    f"{earlier[1]!r} before, {fact['target']!r} now"
                )
            seen[place] = (delta, fact["target"])
    return found


def _facts(delta: Delta) -> list[dict[str, Any]]:
    spec = delta.metadata.get("spec") or {}
    return [
        fact
        for edit in spec.get("edits", [])
        if isinstance(edit.get("facts"), list)
        for fact in edit["facts"]
    ]


def _kinds(delta: Delta) -> list[str]:
    spec = delta.metadata.get("spec") or {}
    return [edit.get("kind", "") for edit in spec.get("edits", [])]


def _some(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"
