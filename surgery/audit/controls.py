"""Controls: what a number is worth. The identity edit costs nothing; a sham edit says what any change
of that size costs."""

from __future__ import annotations

import hashlib

import torch

from surgery.delta import Change, Delta, Dense, LowRank, combine


def identity(base_id: str) -> Delta:
    """The edit that changes nothing."""
    return Delta({}, base_id=base_id, metadata={"spec": {"name": "identity", "edits": []}})


def sham(deltas: Delta | list[Delta], seed: int = 0) -> Delta:
    """A random edit of the same tensors, with the same rank and Frobenius norm in each.

    Several deltas are taken as the one edit they add up to. Factors are Gaussian, so the change has
    no preferred direction. It is drawn per tensor from the seed and the tensor's name: adding a
    tensor to an edit leaves the sham of the others alone.
    """
    stack = [deltas] if isinstance(deltas, Delta) else deltas
    tensors: dict[str, Change] = {}
    for key, change in combine([delta.tensors for delta in stack]).items():
        digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        tensors[key] = _random_like(change, generator)
    return Delta(
        tensors,
        base_id=stack[0].base_id if stack else "",
        stack=stack[0].stack if stack else (),
        untie=any(delta.untie for delta in stack),
        metadata={
            "spec": {"name": f"sham {seed}", "edits": []},
            "edits_head": any(delta.metadata.get("edits_head") for delta in stack),
            "sham_of": [delta.id for delta in stack],
        },
    )


def _random_like(change: Change, generator: torch.Generator) -> Change:
    norm = change.norm()
    if isinstance(change, LowRank):
        made: Change = LowRank(
            torch.randn(change.A.shape, generator=generator),
            torch.randn(change.B.shape, generator=generator),
        )
    else:
        made = Dense(torch.randn(change.shape, generator=generator))
    return made.scaled(norm / made.norm())
