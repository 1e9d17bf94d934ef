"""Directions and what is done to matrices with them. Tensors in, tensors out; float64 inside.

r is a unit vector of the residual stream (d), R (k, d) several with orthonormal rows. A writer's
output y gets its component along them scaled by (1 - strength): y' = y - strength R^T R y.

How much of r there is may be read by another vector than r itself: with readers A (k, d), A R^T = I,

    y' = y - strength R^T A y,

the oblique projection of which A = R is the orthogonal one. What is taken away is still along r; a reader
that is blind to what else the stream varies by takes nothing away where there was nothing (see `reader`).
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


def dual(vectors: torch.Tensor, readers: torch.Tensor) -> torch.Tensor:
    """Combinations A (k, d) of the readers (k, d) for which A V^T = I, with V (k, d) the vectors: each reads
    its own vector and none of the others.

    I = (X G), G = readers V^T, so A = G^-1 readers.
    """
    vectors, readers = vectors.double(), readers.double()
    return torch.linalg.solve(readers @ vectors.T, readers)


def without(vector: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The unit vector of what `vector` (d) has outside the span of orthonormal rows `others` (k, d)."""
    vector, others = vector.double(), others.double()
    return unit(vector - others.T @ (others @ vector))


def behind_norm(R: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Directions to take out *before* a norm y -> gain * y / rms(y) so that none of R is written after it.

    r . (gain * y) = (gain * r) . y, so the row to project away is gain * r, orthonormalised.
    """
    return orthonormal(R.double() * gain.double())


def behind_norm_read(
    R: torch.Tensor, readers: torch.Tensor, gain: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for directions with readers A: (rows, readers) to use before the norm.

    A (gain * y) = (A * gain) y, and what the norm turns into R is R / gain. Where the gain is next to
    nothing, next to nothing is written, and R / gain is cut off instead of growing without bound.
    """
    gain = gain.double()
    least = 1e-3 * gain.abs().max()
    safe = torch.where(gain.abs() < least, torch.where(gain < 0, -least, least), gain)
    reads = readers.double() * gain
    rows = R.double() / safe
    return rows, dual(rows, reads)


def ablation(
    weight: torch.Tensor,
    R: torch.Tensor,
    strength: float,
    layout: Layout,
    readers: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (B, A) of the change of a stored weight, dW = B @ A in the stored orientation; Q (k, d) are
    the readers, R itself if not given.

    linear, W (d, in):            dW = -strength R^T (Q W)
    conv1d, W (in, d), and embedding, E (V, d):
                                  dW = -strength (W Q^T) R
    """
    weight, R = weight.double(), R.double()
    Q = R if readers is None else readers.double()
    if layout == "linear":
        return -strength * R.T, Q @ weight
    return -strength * (weight @ Q.T), R


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


def ablation_of_bias(
    bias: torch.Tensor, R: torch.Tensor, strength: float, readers: torch.Tensor | None = None
) -> torch.Tensor:
    """db = -strength R^T Q b, for the bias (d) of a writer."""
    Q = R if readers is None else readers
    return -strength * (R.double().T @ (Q.double() @ bias.double()))


def leak(before: torch.Tensor, after: torch.Tensor, R: torch.Tensor, layout: Layout) -> float:
    """|R W'| / |R W|: which share of the direction a writer still writes. 1 - strength if all is well.
    With readers, those are the rows to give: what they read is what is taken away."""
    R = R.double()

    def part(weight: torch.Tensor) -> torch.Tensor:
        weight = weight.double()
        return R @ weight if layout == "linear" else weight @ R.T

    return float(part(after).norm() / part(before).norm().clamp_min(1e-30))
