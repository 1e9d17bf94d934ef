"""Second moments of MLP inputs, and of gradients: what a fact edit must not disturb."""

from surgery.statistics.collect import Statistics, collect
from surgery.statistics.moments import Moment, MomentFitter
from surgery.statistics.sensitivity import metric, sensitivity
from surgery.statistics.text import read_passages

__all__ = [
    "Moment",
    "MomentFitter",
    "Statistics",
    "collect",
    "metric",
    "read_passages",
    "sensitivity",
]
