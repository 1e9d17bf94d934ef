"""The rungs in the order in which they are climbed: from asking to attacking."""

from __future__ import annotations

from surgery.ladder.rung import Family
from surgery.ladder.rungs import (
    direction,
    lens,
    probe,
    pushback,
    questions,
    relearning,
    rounding,
)

FAMILIES: tuple[Family, ...] = (
    *questions.FAMILIES,
    *pushback.FAMILIES,
    *lens.FAMILIES,
    *probe.FAMILIES,
    *direction.FAMILIES,
    *rounding.FAMILIES,
    *relearning.FAMILIES,
)
