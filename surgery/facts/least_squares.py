"""One least-squares solver under all fact edits. Tensors in, tensors out.

Every method asks for a small dW with dW K = R (keys K (d_ff, n), residuals R (d_model, n)), and they
differ in what "small" is measured by, an inner product M on keys, and in how hard the equality is:

    minimise  tr(dW M dW^T) * softness + |dW K - R E|^2
    dW = R A,   A = E (K^T M^-1 K + softness I)^-1 (M^-1 K)^T                                   (1)

              M^-1                            softness
    ROME      C^-1                            0               (n = 1; arXiv 2202.05262 eq. 2)
    EMMET     C^-1                            ~ 0             (arXiv 2403.14236)
    MEMIT     C^-1                            lambda          (arXiv 2210.07229 eq. 14)
    AlphaEdit P, the projector off what       L2              (arXiv 2410.02355 eq. 14)
              must be preserved

E (facts, n) says which of the keys are asked for which residual: the identity when every fact has one
key; a row of weights when it has several; and nothing for keys of earlier edits, which are so asked to
keep their outputs. A change has the rank of its new facts, however many keys there are.

(1) is the push-through identity (lambda M + K K^T)^-1 K = M^-1 K (lambda I + K^T M^-1 K)^-1: the system
to solve has the size of the number of keys, not of the layer. With more keys than the layer is wide it
is the other way round. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# M^-1 applied to columns: (d_ff, n) -> (d_ff, n).
Whiten = Callable[[torch.Tensor], torch.Tensor]


def solve(
    keys: torch.Tensor,
    whiten: Whiten,
    softness: float,
    asked: torch.Tensor | None = None,
) -> torch.Tensor:
    """A (facts, d_ff) of the dW = R @ A in (1).

    keys: (d_ff, n). whiten: M^-1 applied to columns (d_ff, m). asked: E (facts, n); None: a key a fact.

    Raises:
        torch.linalg.LinAlgError: the keys are linearly dependent and softness is zero.
    """
    keys = keys.double()
    width, n = keys.shape
    asked = torch.eye(n, dtype=keys.dtype, device=keys.device) if asked is None else asked.double()
    if n <= width:
        whitened = whiten(keys).double()
        gram = keys.T @ whitened
        gram = (gram + gram.T) / 2 + softness * torch.eye(n, dtype=keys.dtype, device=keys.device)
        factor = torch.linalg.cholesky(gram)
        return torch.cholesky_solve(asked.T, factor).T @ whitened.T
    # (softness I + M^-1 K K^T)^-1 M^-1 K E^T, which is as wide as the layer.
    both = whiten(torch.cat([keys @ keys.T, keys @ asked.T], dim=1)).double()
    eye = torch.eye(width, dtype=keys.dtype, device=keys.device)
    return torch.linalg.solve(softness * eye + both[:, :width], both[:, width:]).T


def whitener(second_moment: torch.Tensor, ridge: float = 0.0) -> Whiten:
    """C^-1 for a second moment C (d_ff, d_ff), plus `ridge` times its mean eigenvalue: factored once."""
    lower = factor(second_moment, ridge)
    return lambda keys: torch.cholesky_solve(keys.double(), lower)


def factor(second_moment: torch.Tensor, ridge: float = 0.0) -> torch.Tensor:
    """Lower Cholesky factor of C + ridge * tr(C)/d I, float64."""
    c = second_moment.double()
    level = ridge * c.diagonal().mean()
    eye = torch.eye(c.shape[0], dtype=torch.float64, device=c.device)
    return torch.linalg.cholesky(c + level * eye)


def null_space(second_moment: torch.Tensor, threshold: float) -> torch.Tensor:
    """Orthonormal basis U (d_ff, m) of the directions that hold the smallest `threshold` share of the
    energy tr(C): what is written there is hardly ever read. The projector is P = U U^T.

    Relative to the spectrum, so it means the same for every model (an absolute threshold, as in the
    AlphaEdit code, depends on the scale of the activations).
    """
    values, vectors = torch.linalg.eigh(second_moment.double())
    energy = values.clamp_min(0).cumsum(0)
    kept = int((energy <= threshold * energy[-1]).sum())
    return vectors[:, :kept]
