"""Where one fact's d goes next. Two searches, numpy in float64; neither knows models nor batches.

`Shortest` is ours: each step is the shortest that would be enough if margins were linear (margins.py),
within a radius that grows while that holds. `Adam` is the papers', here for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from surgery.facts.margins import shortest_step

# The radius a step may have at first and at most, in lengths of v_0, and what a good step makes of it.
RADIUS, LONGEST, GROW = 0.35, 2.0, 2.0
# After a step that led up, the next goes this share of it: at least, and at most.
BACK = (0.1, 0.5)
# What one nat of KL weighs against a step of length |v_0|, at a kl_factor of one.
KL_WEIGHT = 32.0
# A fact whose loss has not fallen by a tenth in this many steps is as good as it gets.
PATIENCE, GAIN = 5, 0.9


@dataclass(frozen=True)
class Terms:
    """Weights of the loss, and how far d may go.

    aim: share of `stop_loss` a step makes for. clamp: longest d, in lengths of v_0. learning_rate: share
    of |v_0| / sqrt(d_model), for Adam.
    """

    kl_factor: float
    weight_decay: float
    stop_loss: float
    clamp: float
    aim: float
    learning_rate: float | None


@dataclass(frozen=True)
class Seen:
    """What an evaluation at `change` (d_model,) gave: per context the answer's summed negative
    log-likelihood `nll` and `tokens`, the essence row's `kl`, and their gradients (contexts + 1, d_model),
    which only a search that goes on has a use for."""

    change: np.ndarray
    nll: np.ndarray
    tokens: np.ndarray
    kl: float
    gradient: np.ndarray

    @property
    def mean_nll(self) -> float:
        return float((self.nll / self.tokens).mean())


class Search:
    """One fact's search. `see` what came of a d, until `done`; `propose` the next; `best` is the result."""

    def __init__(self, terms: Terms, start_length: float) -> None:
        self.terms, self.length = terms, start_length
        self.best: Seen | None = None
        self.loss = np.inf
        self.steps = 0

    def objective(self, seen: Seen) -> float:
        decay = self.terms.weight_decay * float(np.linalg.norm(seen.change)) / self.length**2
        return seen.mean_nll + self.terms.kl_factor * seen.kl + decay

    def slope(self, seen: Seen) -> np.ndarray:
        """Gradient of the objective, (d_model,)."""
        weights = 1 / (seen.tokens * len(seen.tokens))
        gradient = weights @ seen.gradient[:-1] + self.terms.kl_factor * seen.gradient[-1]
        size = float(np.linalg.norm(seen.change))
        # The derivative of |d| at zero is taken to be zero.
        decay = seen.change / size if size else seen.change
        return gradient + self.terms.weight_decay / self.length**2 * decay

    @property
    def done(self) -> bool:
        return self.loss < self.terms.stop_loss

    def enough(self, seen: Seen) -> bool:
        """Whether the search ends here, as far as the losses tell."""
        return self.objective(seen) < self.terms.stop_loss

    def see(self, seen: Seen) -> None:
        raise NotImplementedError

    def propose(self) -> np.ndarray:
        raise NotImplementedError

    def clamped(self, change: np.ndarray) -> np.ndarray:
        longest = self.terms.clamp * self.length
        return change * min(1.0, longest / max(float(np.linalg.norm(change)), 1e-30))


class Shortest(Search):
    """The shortest sufficient step, from the best d so far, within a radius.

    root: M^(-1/2) of the metric M that says what is short, (d_model, d_model); None: the identity.
    """

    def __init__(self, terms: Terms, start_length: float, root: np.ndarray | None = None) -> None:
        super().__init__(terms, start_length)
        self.root = root
        self.radius = RADIUS * start_length
        self.history: list[float] = []

    def see(self, seen: Seen) -> None:
        self.steps += 1
        loss = self.objective(seen)
        if self.best is None or loss < self.loss:
            if self.best is not None:
                self.radius = min(GROW * self.radius, LONGEST * self.length)
            self.best, self.loss = seen, loss
        else:
            # Least of the parabola through both losses, with the slope at the better one.
            step = seen.change - self.best.change
            slope = float(self.slope(self.best) @ step)
            share = -slope / (2 * max(loss - self.loss - slope, 1e-30))
            self.radius = float(np.linalg.norm(step)) * min(max(share, BACK[0]), BACK[1])
        self.history.append(self.loss)

    @property
    def done(self) -> bool:
        stuck = len(self.history) > PATIENCE and self.loss > GAIN * self.history[-1 - PATIENCE]
        return super().done or stuck

    def propose(self) -> np.ndarray:
        at = self.best
        assert at is not None
        step = shortest_step(
            at.nll,
            at.gradient[:-1],
            self.terms.aim * self.terms.stop_loss * at.tokens,
            at.kl,
            at.gradient[-1],
            KL_WEIGHT * self.terms.kl_factor * self.length**2,
            self.root,
        )
        size = float(np.linalg.norm(step))
        return self.clamped(at.change + step * min(1.0, self.radius / max(size, 1e-30)))


class Adam(Search):
    """Kingma and Ba, arXiv 1412.6980, with its usual decay rates."""

    def __init__(self, terms: Terms, start_length: float) -> None:
        super().__init__(terms, start_length)
        self.first: np.ndarray | float = 0.0
        self.second: np.ndarray | float = 0.0

    def see(self, seen: Seen) -> None:
        self.steps += 1
        self.best, self.loss = seen, self.objective(seen)

    def propose(self) -> np.ndarray:
        at, terms = self.best, self.terms
        assert at is not None and terms.learning_rate is not None
        gradient = self.slope(at)
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first = self.first / (1 - 0.9**self.steps)
        second = self.second / (1 - 0.999**self.steps)
        rate = terms.learning_rate * self.length / len(gradient) ** 0.5
        return self.clamped(at.change - rate * first / (np.sqrt(second) + 1e-8))
