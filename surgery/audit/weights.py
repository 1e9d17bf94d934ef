"""What an edit did to the weights, from files alone: no model is loaded and no pass is made.

Norms, rank, what it was declared to touch against what differs, whether a tensor was simply scaled or
zeroed, and how much of the change is left after rounding to 8 or 4 bits, as a quantised copy would.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from surgery.audit.report import TensorChange
from surgery.checkpoint import Checkpoint
from surgery.checkpoint.tensors import torch_dtype
from surgery.delta import Change, LowRank, materialize

GROUP = 128
# A change counts as a scaling of the tensor when this share of its energy lies along the tensor.
_ALONG = 0.99


def weight_changes(
    base: Checkpoint,
    change: Mapping[str, Change],
    declared: set[str] | None = None,
) -> list[TensorChange]:
    """One record a touched tensor, the largest relative change first.

    base: the folder the change is measured against. change: edited - base by stored key.
    declared: keys that were meant to be touched; None means all.
    """
    found = []
    for key, part in change.items():
        ref = base.tensors.get(key)
        if ref is None:
            found.append(TensorChange(key=key, shape=list(part.shape), dtype="?", declared=False))
            continue
        record = _measure(key, base.read(key), part, ref.dtype)
        record.declared = declared is None or key in declared
        found.append(record)
    return sorted(found, key=lambda record: -(record.norm or 0.0))


def _measure(key: str, weight: torch.Tensor, change: Change, dtype: str) -> TensorChange:
    asked = change.value()
    record = TensorChange(key=key, shape=list(asked.shape), dtype=dtype)
    if not torch.isfinite(asked).all():
        record.finite = False
        return record
    before = weight.float()
    stored = materialize(weight, [change], torch_dtype(dtype)).float()
    record.finite = bool(torch.isfinite(stored).all())
    real = stored - before
    size, length = float(asked.double().norm()), float(before.double().norm())
    record.norm = size / length if length else None
    record.rank = rank(change)
    record.largest = float(asked.abs().max())
    record.stored = _along(real, asked)
    inner = float((asked.double() * before.double()).sum())
    if length and size and inner**2 >= _ALONG * (size * length) ** 2:
        record.scale = 1 + inner / length**2
    if asked.dim() == 2 and size:
        for bits in (8, 4):
            rounded = round_to_nearest(stored, bits) - round_to_nearest(before, bits)
            setattr(record, f"kept_int{bits}", _along(rounded, asked))
    return record


def _along(left: torch.Tensor, asked: torch.Tensor) -> float | None:
    """<left, asked> / <asked, asked>: 1 when the change is all there, 0 when nothing of it is."""
    energy = float(asked.double().square().sum())
    return float((left.double() * asked.double()).sum()) / energy if energy else None


def round_to_nearest(weight: torch.Tensor, bits: int, group: int = GROUP) -> torch.Tensor:
    """Symmetric rounding to `bits` bits, a scale for each `group` numbers of a row: the plain way to
    quantise. Takes and returns (rows, columns) float32."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % group))
    blocks = padded.view(rows, -1, group)
    most = 2 ** (bits - 1) - 1
    scale = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-30) / most
    rounded = (blocks / scale).round().clamp(-most - 1, most) * scale
    return rounded.view(rows, -1)[:, :columns]


def rank(change: Change, tolerance: float = 1e-5) -> int | None:
    """Numerical rank: singular values above `tolerance` times the largest."""
    if isinstance(change, LowRank):
        left = torch.linalg.qr(change.B.double()).R
        right = torch.linalg.qr(change.A.double().T).R
        values = torch.linalg.svdvals(left @ right.T)
    else:
        value = change.value().double()
        if value.dim() != 2:
            return 1 if bool(value.any()) else 0
        small = value if value.shape[0] <= value.shape[1] else value.T
        if small.shape[0] > 4096:
            return None
        values = torch.linalg.eigvalsh(small @ small.T).clamp_min(0).sqrt().flip(0)
    if not len(values) or float(values[0]) == 0:
        return 0
    return int((values > tolerance * values[0]).sum())
