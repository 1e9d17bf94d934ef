"""Directions of the residual stream: capture, difference of means, algebra, files."""

from surgery.directions.capture import Activations, activations
from surgery.directions.direction import Direction
from surgery.directions.find import difference_of_means

__all__ = ["Activations", "Direction", "activations", "difference_of_means"]
