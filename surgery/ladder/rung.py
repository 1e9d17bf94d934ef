"""What a rung is: a way of asking a model for old answers, and what came of it for each item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from surgery.ladder.items import Item

if TYPE_CHECKING:
    import torch

    from surgery.ladder.rungs.probe import Reader
    from surgery.model import Model


@dataclass(frozen=True)
class Score:
    """margin: how far the old answer is ahead of the best of its rivals (nats of mean token
    log-probability, or what the rung says); None where the rung has nothing to ask. rank: for the lens,
    the best rank of the old answer's first token (1 is the likeliest)."""

    margin: float | None
    rank: int | None = None

    @property
    def knows(self) -> bool | None:
        """The old answer is preferred to the new one and to every alternative."""
        return None if self.margin is None else self.margin > 0


NOTHING = Score(None)


@dataclass(frozen=True)
class Setting:
    """What all models are tested with alike.

    fold: for each item which half it is in; a subject is never in both. directions: unit vectors (d,)
    along which the edited model's activations moved away from the base's; empty if they did not.
    readers: probes fitted on the base, one for each half. steps: after how many steps of relearning to look.
    """

    fold: tuple[int, ...] = ()
    directions: tuple[torch.Tensor, ...] = ()
    readers: tuple[Reader | None, ...] = ()
    steps: tuple[int, ...] = (5, 20, 100)
    seed: int = 0
    quick: bool = False


# The scores of one or more rungs by name, each in the order of the items. The model comes back as it was.
Climb = Callable[["Model", Sequence[Item], Setting], dict[str, list[Score]]]


@dataclass(frozen=True)
class Family:
    """Rungs that are measured together. rungs: name -> what it does, for people. trained: costs
    training, so one set of twins has to do."""

    rungs: dict[str, str]
    climb: Climb
    trained: bool = False
    unit: str = "nats"
    only: Callable[[Setting], tuple[str, ...]] | None = field(default=None)

    def names(self, setting: Setting) -> tuple[str, ...]:
        return self.only(setting) if self.only else tuple(self.rungs)
