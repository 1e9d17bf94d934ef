"""Intervals for shares and their differences that stay honest at 0, at 1 and for few items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

Interval = tuple[float, float]


def wilson(share: float, n: float, level: float = 0.95) -> Interval:
    """Score interval of a share of n items (Wilson, 1927). Shares of parts of items are fine: their
    variance is at most that of yes and no, so the interval is at worst too wide."""
    if n <= 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(max(0.0, share * (1 - share)) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def difference(a: float, n: float, b: float, m: float, level: float = 0.95) -> Interval:
    """Interval of a - b, shares of n and of m items, from their score intervals (Newcombe, 1998,
    method 10). Pairing is not used, which makes it wider where the items are the same."""
    low_a, high_a = wilson(a, n, level)
    low_b, high_b = wilson(b, m, level)
    below = math.hypot(a - low_a, high_b - b)
    above = math.hypot(high_a - a, b - low_b)
    return a - b - below, a - b + above


def of_items(values: Sequence[float], parts: int, level: float = 0.95) -> Interval:
    """Interval of the mean of one value an item, each in [-1, 1] and itself the mean of `parts` answers.

    Student's t over items: the answers about one item are not independent, the items are. The variance
    is at least that of independent answers at the share that one more item of the other kind would give,
    so that items that all agree do not make the interval vanish.
    """
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return -1.0, 1.0
    mean = sum(values) / n
    share = (n * min(abs(mean), 1.0) + 1) / (n + 2)
    spread = sum((v - mean) ** 2 for v in values) / (n - 1)
    spread = max(spread, share * (1 - share) / parts)
    half = float(t.ppf((1 + level) / 2, n - 1)) * math.sqrt(spread / n)
    return mean - half, mean + half
