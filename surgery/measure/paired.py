"""Paired statistics: base and edited on the same items.

Two accuracies that differ by two points may hide forty items lost and forty gained, and comparing
them unpaired throws the pairing away. Sources: McNemar (1947), exact form; Holm (1979); the percentile
bootstrap over items (Efron, 1979).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Items that the bootstrap draws at once: 4 million are 32 MB an array.
_AT_ONCE = 4_000_000


def flips(base: Sequence[bool], edited: Sequence[bool]) -> tuple[int, int]:
    """(lost, gained): right before and wrong after, wrong before and right after."""
    pairs = list(zip(base, edited, strict=True))
    return sum(b and not e for b, e in pairs), sum(e and not b for b, e in pairs)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p: under no effect each changed item is lost or gained with equal odds."""
    changed = lost + gained
    term = tail = 1  # binomial coefficients of `changed`, and their sum up to the smaller count
    for k in range(min(lost, gained)):
        term = term * (changed - k) // (k + 1)
        tail += term
    # Integers until the end: 0.5 ** changed underflows long before the quotient does.
    return min(1.0, 2 * tail / 2**changed)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for testing all of them: the step-down procedure of Holm."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [1.0] * len(p_values)
    running = 0.0
    for place, index in enumerate(order):
        running = max(running, (len(p_values) - place) * p_values[index])
        corrected[index] = min(1.0, running)
    return corrected


def bootstrap(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile interval of the (weighted) mean over items. None for fewer than two items.

    Give per-item differences for a paired interval, and one value a cluster (a passage with its token
    count as weight) where items are not independent.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) < 2 or not np.isfinite(data).all():
        return None
    weight = np.ones_like(data) if weights is None else np.asarray(weights, dtype=np.float64)
    rng, means = np.random.default_rng(seed), []
    rows = max(1, _AT_ONCE // len(data))
    for begin in range(0, draws, rows):
        drawn = rng.integers(0, len(data), size=(min(rows, draws - begin), len(data)))
        means.append((data[drawn] * weight[drawn]).sum(1) / weight[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
