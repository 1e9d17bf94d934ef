"""Intervals for shares and their differences that stay honest at 0, at 1 and for few items."""

from __future__ import annotations

import math
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
