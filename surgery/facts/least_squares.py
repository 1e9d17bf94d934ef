"""One least-squares solver under all fact edits. Tensors in, tensors out.

Every method asks for a small dW with dW K = R (keys K (d_ff, n), residuals R (d_model, n)), and they
differ in what "small" is measured by, an inner product M on keys, and in how hard the equality is:

    minimise  tr(dW M dW^T) * softness + |dW K - R|^2
    dW = R (K^T M^-1 K + softness I)^-1 (M^-1 K)^T                                              (1)

              M^-1                            softness
    ROME      C^-1                            0               (n = 1; arXiv 2202.05262 eq. 2)
    EMMET     C^-1                            ~ 0             (arXiv 2403.14236)
    MEMIT     C^-1                            lambda          (arXiv 2210.07229 eq. 14)
    AlphaEdit P, the projector off what       L2              (arXiv 2410.02355 eq. 14)
              must be preserved

(1) is the push-through identity (lambda M + K K^T)^-1 K = M^-1 K (lambda I + K^T M^-1 K)^-1: the system
to solve has the size of the number of facts, not of the layer. Keys of earlier edits join with residual
zero: they are asked to keep their outputs. Everything is float64.
"""

from __future__ import annotations

import torch


def solve(
    keys: torch.Tensor,
    whitened: torch.Tensor,
    residuals: torch.Tensor,
    softness: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors B (d_model, n), A (n, d_ff) of the dW = B @ A in (1).

    keys: (d_ff, n). whitened: M^-1 keys, (d_ff, n). residuals: (d_model, n_new); when there are fewer
    of them than keys they belong to the last columns, and the keys before them keep their outputs.

    Raises:
        torch.linalg.LinAlgError: the keys are linearly dependent and softness is zero.
    """
    keys, whitened, residuals = keys.double(), whitened.double(), residuals.double()
    n, new = keys.shape[1], residuals.shape[1]
    gram = keys.T @ whitened
    gram = (gram + gram.T) / 2 + softness * torch.eye(n, dtype=torch.float64, device=keys.device)
    wanted = torch.cat([residuals.new_zeros(residuals.shape[0], n - new), residuals], dim=1)
    factor = torch.linalg.cholesky(gram)
    return torch.cholesky_solve(wanted.T, factor).T, whitened.T


def in_metric(second_moment: torch.Tensor, keys: torch.Tensor, ridge: float = 0.0) -> torch.Tensor:
    """C^-1 keys for a second moment C (d_ff, d_ff), plus `ridge` times its mean eigenvalue."""
    return torch.cholesky_solve(keys.double(), factor(second_moment, ridge))


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


def compress(
    B: torch.Tensor, A: torch.Tensor, tolerance: float = 1e-12
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product at its numerical rank: singular values below `tolerance` of the largest go."""
    q_b, r_b = torch.linalg.qr(B.double())
    q_a, r_a = torch.linalg.qr(A.double().T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T)
    rank = max(1, int((s > tolerance * s[0]).sum()))
    root = s[:rank].sqrt()
    return q_b @ u[:, :rank] * root, (q_a @ v[:rank].T * root).T
