"""The one solver under all fact edits, against dense float64 solutions of what each method states."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.facts.least_squares import factor, null_space, solve, whitener

D, D_FF = 6, 11


def problem(n: int, seed: int = 0, earlier: int = 0):
    """Keys (d_ff, earlier + n), residuals (d, n) and a second moment C (d_ff, d_ff), float64."""
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(D_FF, earlier + n, generator=g, dtype=torch.float64)
    residuals = torch.randn(D, n, generator=g, dtype=torch.float64)
    text = torch.randn(200, D_FF, generator=g, dtype=torch.float64)
    # Unequal directions, as real activations have.
    text = text * torch.logspace(0, -2, D_FF, dtype=torch.float64)
    return keys, residuals, text.T @ text / 200


def dense(keys, wanted, metric, softness):
    """argmin tr(dW M dW^T) * softness + |dW K - wanted|^2 by its normal equations."""
    return wanted @ keys.T @ torch.linalg.inv(softness * metric + keys @ keys.T)


def keeping(earlier: int, n: int) -> torch.Tensor:
    """E for n facts after keys that are to keep their outputs."""
    return torch.cat([torch.zeros(n, earlier), torch.eye(n)], 1).double()


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 5),
    earlier=st.integers(0, 14),
    weight=st.floats(0.1, 1e4),
    seed=st.integers(0, 1000),
)
def test_memit_equals_the_normal_equations(n, earlier, weight, seed):
    """dW = R K^T (lambda C + K K^T)^-1, with and without keys that are to keep their outputs, with fewer
    and with more keys than the layer is wide."""
    keys, residuals, c = problem(n, seed, earlier)
    E = keeping(earlier, n)
    A = solve(keys, whitener(c), weight, E)
    assert A.shape == (n, D_FF)
    torch.testing.assert_close(
        residuals @ A, dense(keys, residuals @ E, c, weight), rtol=1e-6, atol=1e-9
    )


def test_several_keys_of_a_fact_are_weighted_equations():
    """sum over contexts of w |dW k - r|^2, for facts with four keys each."""
    keys, residuals, c = problem(8)
    w = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    E = torch.kron(torch.eye(2).double(), w.sqrt()[None])
    A = solve(keys * w.sqrt().repeat(2), whitener(c), 0.3, E)
    of_fact = residuals[:, :2].repeat_interleave(4, dim=1)
    weights = torch.diag(w.repeat(2))
    expected = of_fact @ weights @ keys.T @ torch.linalg.inv(0.3 * c + keys @ weights @ keys.T)
    torch.testing.assert_close(residuals[:, :2] @ A, expected, rtol=1e-8, atol=1e-10)
    # One key given twice at half the weight is that key.
    twice = solve(
        keys.repeat(1, 2) * 0.5**0.5,
        whitener(c),
        0.3,
        torch.eye(8).double().repeat(1, 2) * 0.5**0.5,
    )
    torch.testing.assert_close(twice, solve(keys, whitener(c), 0.3), rtol=1e-8, atol=1e-10)


def test_earlier_keys_are_held():
    """The more the old keys count, the less their outputs move; without them they do move."""
    keys, residuals, c = problem(2, earlier=3)
    old = keys[:, :3]

    def moved(k: torch.Tensor, earlier: int) -> float:
        A = solve(k, whitener(c), 1e-6, keeping(earlier, 2))
        return float((residuals @ A @ old).norm())

    assert moved(keys, 3) < 1e-3 * moved(keys[:, 3:], 0)


def test_alphaedit_equals_the_projected_normal_equations():
    """dW = R K^T P (K_p K_p^T P + K K^T P + L2 I)^-1 (arXiv 2410.02355 eq. 14), K_p = earlier keys."""
    keys, residuals, c = problem(3, earlier=2)
    U = null_space(c, threshold=0.05)
    assert 0 < U.shape[1] < D_FF
    P = U @ U.T
    B, A = residuals, solve(keys, lambda columns: P @ columns, 0.7, keeping(2, 3))
    new, eye = keys[:, 2:], torch.eye(D_FF, dtype=torch.float64)
    expected = residuals @ new.T @ P @ torch.linalg.inv(keys @ keys.T @ P + 0.7 * eye)
    torch.testing.assert_close(B @ A, expected, rtol=1e-8, atol=1e-10)
    # What is preserved is not touched at all, whatever the keys.
    protected = eye - P
    assert float((B @ A @ protected).norm()) < 1e-10 * float((B @ A).norm())


def kkt_change(keys, residuals, metric):
    """argmin tr(dW M dW^T) subject to dW K = R, by one dense linear system for every row of dW."""
    d_ff, n = keys.shape
    system = torch.zeros(d_ff + n, d_ff + n, dtype=torch.float64)
    system[:d_ff, :d_ff] = 2 * metric
    system[:d_ff, d_ff:] = keys
    system[d_ff:, :d_ff] = keys.T
    right = torch.cat([residuals.new_zeros(d_ff, len(residuals)), residuals.T])
    return torch.linalg.solve(system, right)[:d_ff].T


@pytest.mark.parametrize("n", [1, 4], ids=["rome", "emmet"])
def test_equalities_equal_the_constrained_least_squares(n):
    keys, residuals, c = problem(n)
    B, A = residuals, solve(keys, whitener(c), 0.0)
    assert torch.linalg.matrix_rank(B @ A) == n
    torch.testing.assert_close(B @ A @ keys, residuals)
    torch.testing.assert_close(B @ A, kkt_change(keys, residuals, c), rtol=1e-7, atol=1e-9)
    # It is a minimum: any other solution of the equalities has a larger norm.
    other = torch.randn(D, D_FF, dtype=torch.float64)
    other -= other @ keys @ torch.linalg.pinv(keys)
    change = B @ A

    def size(dW: torch.Tensor) -> float:
        return float(torch.trace(dW @ c @ dW.T))

    assert size(change) < size(change + 1e-3 * other)


def test_dependent_keys_need_softness():
    keys, residuals, c = problem(2)
    keys[:, 1] = keys[:, 0]
    with pytest.raises(RuntimeError, match="positive-definite"):
        solve(keys, whitener(c), 0.0)
    A = solve(keys, whitener(c), 1e-3)
    torch.testing.assert_close(residuals @ A, dense(keys, residuals, c, 1e-3), rtol=1e-6, atol=1e-8)


def test_the_ridge_is_relative_to_the_mean_eigenvalue():
    _, _, c = problem(1)
    lower = factor(c, ridge=0.1)
    eye = torch.eye(D_FF, dtype=torch.float64)
    torch.testing.assert_close(lower @ lower.T, c + 0.1 * torch.trace(c) / D_FF * eye)


@settings(max_examples=20, deadline=None)
@given(threshold=st.floats(1e-4, 0.5), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_the_null_space_holds_the_share_it_is_given(threshold, scale, seed):
    """Largest such basis, orthonormal, and the same whatever the scale of the activations."""
    _, _, c = problem(1, seed)
    U = null_space(scale * c, threshold)
    m = U.shape[1]
    torch.testing.assert_close(U.T @ U, torch.eye(m, dtype=torch.float64))
    energy = torch.trace(U.T @ c @ U) / torch.trace(c)
    assert energy <= threshold + 1e-12
    values = torch.linalg.eigvalsh(c)
    assert m == D_FF or values[: m + 1].sum() / values.sum() > threshold
    assert m == null_space(c, threshold).shape[1]
