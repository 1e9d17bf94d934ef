"""The shortest step that lifts every context's margin to where its answer is said. Pure maths.

A context whose answer has summed negative log-likelihood L (nats) gives the whole answer probability
p = e^-L, and its margin is the log-odds

    m = log(p / (1 - p)) = -log(e^L - 1),        dm = -dL / (1 - e^-L).

Far from the answer L is about -m, close to it L falls off exponentially while m goes on in nearly a
straight line. So a model of m that is linear in the change d is good over long steps, where Adam, which
sees only the gradient of L, needs many. With J the gradients of the margins (one row a context) and m*
the margins wanted, the step is the shortest that reaches them all,

    minimise s^T M s + nu (r + h s)^2    subject to    m + J s >= m*,                             (1)

where r = sqrt(KL) of the row that should keep its prediction and h is its gradient, and M says what a
length is: the identity, or how much a change is noticed elsewhere (`statistics.sensitivity`). That is
Gauss-Newton with an inequality for each context: those that already say the answer ask for nothing. In
coordinates y = N^(1/2) s + c, with N = M + nu h h^T, (1) is the problem of least distance of Lawson and
Hanson (Solving Least Squares Problems, ch. 23), one non-negative least squares in as many unknowns as
contexts.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

# Below this KL (nats) its square root has no gradient to speak of.
NO_KL = 1e-7


def margins(loss: np.ndarray) -> np.ndarray:
    """Log-odds of answers with summed negative log-likelihood `loss` (nats): -log(e^L - 1)."""
    return -loss - np.log(-np.expm1(-loss))


def shortest_step(
    loss: np.ndarray,
    gradients: np.ndarray,
    wanted: np.ndarray,
    kl: float,
    kl_gradient: np.ndarray,
    kl_weight: float,
    root: np.ndarray | None = None,
) -> np.ndarray:
    """The step (d_model,) of (1), all float64.

    loss: (contexts,) summed negative log-likelihood of the answer in each; gradients: (contexts,
    d_model) of it; wanted: (contexts,) the same sums to be reached, above zero. kl, kl_gradient
    (d_model,): of the row to be kept; kl_weight: nu, in units of squared length per nat. root: M^(-1/2),
    symmetric (d_model, d_model); None: M is the identity.
    """
    if root is not None:
        # s = M^(-1/2) y: the same question for y, with every gradient seen through the root.
        J, h = gradients @ root, kl_gradient @ root
        return root @ shortest_step(loss, J, wanted, kl, h, kl_weight)
    loss = np.maximum(loss, 1e-12)
    J = gradients / np.expm1(-loss)[:, None]  # expm1(-L) = -(1 - e^-L)
    missing = margins(wanted) - margins(loss)
    if not (missing > 0).any():
        return np.zeros(gradients.shape[1])
    if kl <= NO_KL:
        return least_distance(J, missing)
    r = np.sqrt(kl)
    h = kl_gradient / (2 * r)
    size = h @ h
    if size == 0:
        return least_distance(J, missing)
    # N^(-1/2) = I - b h h^T, and the minimum of (1) without constraints is s_0 = -nu r h / (1 + nu |h|^2).
    b = (1 - 1 / np.sqrt(1 + kl_weight * size)) / size
    free = -kl_weight * r / (1 + kl_weight * size) * h
    scaled = J - b * np.outer(J @ h, h)
    y = least_distance(scaled, missing - J @ free)
    return free + y - b * h * (h @ y)


def least_distance(G: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The shortest y with G y >= g; for constraints that contradict each other, a compromise.

    G: (n, d), g: (n,). Lawson and Hanson's LDP: with u >= 0 minimising |[G^T; g^T] u - e|, e the last unit
    vector, and residual q, the answer is -q[:d] / q[d]; q = 0 says that there is none.
    """
    # One common scale for each constraint changes neither the question nor the answer, but the rounding.
    scale = np.linalg.norm(G, axis=1)
    known = scale > 0
    if not known.any():
        return np.zeros(G.shape[1])
    G, g = G[known] / scale[known, None], g[known] / scale[known]
    length = np.abs(g).max()
    if length == 0:
        return np.zeros(G.shape[1])
    E = np.concatenate([G.T, g[None] / length])
    e = np.zeros(len(E))
    e[-1] = 1
    u, _ = nnls(E, e)
    q = E @ u - e
    if -q[-1] < 1e-9:
        # No y satisfies them all: the one that comes nearest, in the sense of least squares.
        return np.linalg.lstsq(G, np.maximum(g, 0), rcond=1e-6)[0]
    return -q[:-1] / q[-1] * length
