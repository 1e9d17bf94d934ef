"""The shortest sufficient step: the closed problem against a general solver, and its edge cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from surgery.facts.margins import least_distance, margins, shortest_step
from surgery.facts.search import Adam, Search, Seen, Shortest, Terms
from surgery.facts.target import inverse_root

WIDTH = 12


def problem(seed: int, contexts: int):
    random = np.random.default_rng(seed)
    # Contexts of one fact pull much the same way.
    gradients = random.normal(size=(1, WIDTH)) + 0.5 * random.normal(size=(contexts, WIDTH))
    loss = random.uniform(1e-3, 9, contexts)
    wanted = random.uniform(0.01, 0.2, contexts)
    return loss, gradients, wanted, float(random.uniform(0, 2)), random.normal(size=WIDTH)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([0.0, 0.5, 20.0]), st.booleans())
def test_it_is_the_shortest_that_is_enough(seed, contexts, weight, has_metric):
    loss, gradients, wanted, kl, kl_gradient = problem(seed, contexts)
    metric, root = np.eye(WIDTH), None
    if has_metric:
        half = np.random.default_rng(seed).normal(size=(WIDTH, WIDTH))
        metric = half @ half.T / WIDTH + 0.1 * metric
        root = inverse_root(torch.from_numpy(metric))
        np.testing.assert_allclose(root @ metric @ root, np.eye(WIDTH), atol=1e-9)
    step = shortest_step(loss, gradients, wanted, kl, kl_gradient, weight, root)

    # Margins by their definition, from probabilities, and their gradients by differences.
    def log_odds(total):
        p = np.exp(-total)
        return np.log(p) - np.log1p(-p)

    np.testing.assert_allclose(margins(loss), log_odds(loss), rtol=1e-9, atol=1e-9)
    slope = (log_odds(loss + 1e-6) - log_odds(loss - 1e-6)) / 2e-6
    J, missing = slope[:, None] * gradients, log_odds(wanted) - log_odds(loss)
    if not (missing > 0).any():
        assert not step.any()
        return
    assert (J @ step >= missing - 1e-4 * np.abs(missing).max()).all()

    r, h = kl**0.5, kl_gradient / (2 * kl**0.5)

    def cost(s):
        return s @ metric @ s + weight * (r + h @ s) ** 2

    general = minimize(
        cost,
        step * 0,
        jac=lambda s: 2 * metric @ s + 2 * weight * (r + h @ s) * h,
        constraints={"type": "ineq", "fun": lambda s: J @ s - missing, "jac": lambda s: J},
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    if general.success:
        assert cost(step) <= cost(general.x) * (1 + 1e-4) + 1e-9


def test_nothing_is_asked_of_contexts_that_say_it_already():
    loss, gradients, wanted, kl, kl_gradient = problem(0, 4)
    assert not shortest_step(wanted / 2, gradients, wanted, kl, kl_gradient, 1.0).any()
    loss[1:] = wanted[1:] / 10
    step = shortest_step(loss, gradients[:1].repeat(4, 0), wanted, 0.0, kl_gradient, 1.0)
    alone = shortest_step(loss[:1], gradients[:1], wanted[:1], 0.0, kl_gradient, 1.0)
    np.testing.assert_allclose(step, alone, rtol=1e-9)


def test_contradictions_and_empty_gradients_give_something_finite():
    g = np.array([[1.0, 0.0], [-1.0, 0.0]])
    step = least_distance(g, np.array([1.0, 1.0]))
    assert np.isfinite(step).all() and np.abs(step).max() <= 1
    assert not least_distance(np.zeros((2, 3)), np.ones(2)).any()
    # Sums of log-likelihoods so small that e^-L rounds to one, and so large that it rounds to zero.
    loss = np.array([0.0, 1e-17, 800.0])
    step = shortest_step(loss, np.eye(3), np.full(3, 0.03), 0.0, np.zeros(3), 1.0)
    assert np.isfinite(step).all() and step[2] < 0 and not step[:2].any()


TERMS = Terms(
    kl_factor=0.0625, weight_decay=1e-3, stop_loss=0.05, clamp=4.0, aim=0.6, learning_rate=None
)


def logistic(change: np.ndarray, directions: np.ndarray, offset: np.ndarray) -> Seen:
    """Contexts whose margins really are linear: NLL = log(1 + e^-(a d + b))."""
    m = directions @ change + offset
    slope = -1 / (1 + np.exp(m))
    gradient = np.concatenate([slope[:, None] * directions, np.zeros((1, len(change)))])
    return Seen(change, np.logaddexp(0, -m), np.ones(len(m)), 0.0, gradient)


def length(search: Search) -> float:
    assert search.best is not None
    return float(np.linalg.norm(search.best.change))


def run(search: Search, evaluate, most=200) -> Search:
    seen = evaluate(np.zeros(WIDTH))
    for _ in range(most):
        search.see(seen)
        if search.done:
            break
        seen = evaluate(search.propose())
    return search


def test_linear_margins_need_one_step_within_the_radius_and_adam_many():
    random = np.random.default_rng(1)
    directions, offset = random.normal(size=(4, WIDTH)), -random.uniform(3, 8, 4)

    def evaluate(change):
        return logistic(change, directions, offset)

    # A start so long that the radius never matters.
    search = run(Shortest(TERMS, 1e3), evaluate)
    assert search.steps == 2 and search.loss < TERMS.stop_loss
    assert search.best is not None
    np.testing.assert_allclose(search.best.nll.max(), TERMS.aim * TERMS.stop_loss, rtol=1e-6)
    # With a short one it walks there, further each time.
    walked = run(Shortest(TERMS, 4.0), evaluate)
    assert walked.loss < TERMS.stop_loss and 3 < walked.steps < 9
    terms = Terms(**{**vars(TERMS), "learning_rate": 0.5})
    adam = run(Adam(terms, 4.0), evaluate)
    assert adam.loss < TERMS.stop_loss and adam.steps > walked.steps
    assert length(search) < length(adam)


def test_a_hopeless_fact_is_given_up_and_the_best_is_kept():
    def evaluate(change):
        gradient = np.ones((2, WIDTH))
        return Seen(change, np.array([3.0 + change @ change]), np.ones(1), 0.0, gradient)

    search = run(Shortest(TERMS, 1.0), evaluate)
    assert search.done and search.steps < 10
    assert search.loss == pytest.approx(3.0) and length(search) == 0


def test_the_clamp_holds():
    def evaluate(change):
        return logistic(change, np.eye(1, WIDTH), np.array([-50.0]))

    search = run(Shortest(TERMS, 2.0), evaluate)
    assert length(search) == pytest.approx(TERMS.clamp * 2.0)
