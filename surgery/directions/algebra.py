"""Directions and what is done to matrices with them. Tensors in, tensors out; float64 inside.

r is a unit vector of the residual stream (d), R (k, d) several with orthonormal rows. A writer's
output y gets its component along them scaled by (1 - strength): y' = y - strength R^T R y.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from surgery.architecture import Layout


def unit(vector: torch.Tensor) -> torch.Tensor:
    vector = vector.double()
    return vector / vector.norm().clamp_min(1e-30)


def orthonormal(vectors: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Orthonormal rows (k, d) that span the given ones. Applied together they are one projection;
    applied one after the other, directions that are not orthogonal would not be."""
    stacked = torch.stack([v.double() for v in vectors])
    q, r = torch.linalg.qr(stacked.T)
    # QR leaves signs open; keep each direction pointing where it was given.
    return (q * r.diagonal().sign().where(r.diagonal() != 0, 1.0)).T


def without(vector: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The unit vector of what `vector` (d) has outside the span of orthonormal rows `others` (k, d)."""
    vector, others = vector.double(), others.double()
    return unit(vector - others.T @ (others @ vector))


def behind_norm(R: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Directions to take out *before* a norm y -> gain * y / rms(y) so that none of R is written after it.

    r . (gain * y) = (gain * r) . y, so the row to project away is gain * r, orthonormalised.
    """
    return orthonormal(R.double() * gain.double())


def ablation(
    weight: torch.Tensor, R: torch.Tensor, strength: float, layout: Layout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (B, A) of the change of a stored weight, dW = B @ A in the stored orientation.

    linear, W (d, in):            dW = -strength R^T (R W)
    conv1d, W (in, d), and embedding, E (V, d):
                                  dW = -strength (W R^T) R
    """
    weight, R = weight.double(), R.double()
    if layout == "linear":
        return -strength * R.T, R @ weight
    return -strength * (weight @ R.T), R


def ablation_keeping_columns(
    weight: torch.Tensor, R: torch.Tensor, strength: float, layout: Layout
) -> torch.Tensor:
    """The same change with the length of every column kept: of every vector the matrix writes for one
    of its inputs. That scales whole vectors of the stream, so what is projected out stays out. (Keeping
    row lengths, as is common, scales stream coordinates and brings up to half of it back.)"""
    axis = 0 if layout == "linear" else 1
    B, A = ablation(weight, R, strength, layout)
    changed = weight.double() + B @ A
    before = weight.double().norm(dim=axis, keepdim=True)
    after = changed.norm(dim=axis, keepdim=True).clamp_min(1e-30)
    return changed * (before / after) - weight.double()


def ablation_of_bias(bias: torch.Tensor, R: torch.Tensor, strength: float) -> torch.Tensor:
    """db = -strength R^T R b, for the bias (d) of a writer."""
    return -strength * (R.double().T @ (R.double() @ bias.double()))


def leak(before: torch.Tensor, after: torch.Tensor, R: torch.Tensor, layout: Layout) -> float:
    """|R W'| / |R W|: which share of the direction a writer still writes. 1 - strength if all is well."""
    R = R.double()

    def part(weight: torch.Tensor) -> torch.Tensor:
        weight = weight.double()
        return R @ weight if layout == "linear" else weight @ R.T

    return float(part(after).norm() / part(before).norm().clamp_min(1e-30))
