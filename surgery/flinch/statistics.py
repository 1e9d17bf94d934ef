"""Rates with their intervals, and the number that sums up a repair."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """count of n, with a 95 % interval (Wilson, 1927): honest near 0 and 1, where these rates live."""

    count: int
    n: int

    @property
    def value(self) -> float:
        """The share; 0 of 0 is 0."""
        return self.count / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        return wilson(self.count, self.n)

    def data(self) -> dict[str, float | int]:
        """For a report."""
        low, high = self.interval
        return {"count": self.count, "n": self.n, "rate": self.value, "low": low, "high": high}


def wilson(count: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Interval of a share; (0, 1) where nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    p = count / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (0.0 if count == 0 else centre - half), (1.0 if count == n else centre + half)


def selectivity(
    false_before: float, false_after: float, true_before: float, true_after: float
) -> float | None:
    """Share of the false refusals that went, minus the share of the true ones that went with them.

    1: all false alarms gone and every true refusal kept. 0: both went alike, as when refusal is simply
    removed. Negative: the wrong ones went. None: there was nothing to repair.
    """
    if false_before == 0:
        return None
    gone = (false_before - false_after) / false_before
    lost = (true_before - true_after) / true_before if true_before else 0.0
    return gone - lost
