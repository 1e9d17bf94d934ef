"""Second moments of MLP inputs: what a fact edit must not disturb."""

from surgery.statistics.collect import Statistics, collect
from surgery.statistics.moments import Moment, MomentFitter
from surgery.statistics.text import read_passages

__all__ = ["Moment", "MomentFitter", "Statistics", "collect", "read_passages"]
