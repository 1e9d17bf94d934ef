"""What the climb found, as plain data: rung by rung, item by item, and in one word."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from surgery.audit.report import finite
from surgery.ladder.interval import Interval

SCHEMA = "surgery.ladder/1"
Status = Literal["back", "partly", "held", "unclear", "silent", "skipped"]
Word = Literal["hidden", "gone", "unchanged", "unclear", "untold"]
# How an item stands at a rung: recovered, not recovered, or the rung does not tell (the base does not
# show it there, or models "know" it of made-up subjects too).
Cell = Literal["back", "held", "untold"]


@dataclass(frozen=True)
class Share:
    """A share of items with its 95 % Wilson interval."""

    share: float
    interval: Interval
    n: int


@dataclass(frozen=True)
class RungResult:
    """One rung over all items.

    base, edited, control: share of items whose old answer is preferred to all others; control: the
    edited model asked about made-up subjects. gap: edited - control with its 95 % interval. recovered:
    (edited - control) / (base - control), None where the base shows no more than the control; its
    interval is the gap's over the same denominator. status: back (above the control, not below the
    base), partly (above the control, below the base), held (below the base, not above the control),
    unclear (neither can be said), silent (the base itself shows nothing here), skipped (nothing to
    ask). margins: by side, one number an item (a list of them for the control). ranks: for the lens,
    the median over items of the best rank by side.
    """

    name: str
    label: str
    unit: str
    n: int
    status: Status
    base: Share | None = None
    edited: Share | None = None
    control: Share | None = None
    gap: float | None = None
    gap_interval: Interval | None = None
    recovered: float | None = None
    recovered_interval: Interval | None = None
    margins: dict[str, list[Any]] = field(default_factory=dict)
    ranks: dict[str, float] = field(default_factory=dict)

    @property
    def tells(self) -> bool:
        return self.status not in ("silent", "skipped")


@dataclass(frozen=True)
class ItemResult:
    """One fact. taken: the edit took its answer away where it was made; else it is not climbed with.
    deepest: the deepest rung up to which the edit held, counting rungs that tell; None if it fails at
    the first. returns_at: the first rung where the old answer is back. share: of the rungs that tell,
    beyond the one the edit was made at, how many have it back. said_before, said_after: what base and
    edited model say there."""

    prompt: str
    subject: str
    old: str
    new: str | None
    rungs: dict[str, Cell]
    deepest: str | None
    returns_at: str | None
    share: float | None
    taken: bool = True
    said_before: str = ""
    said_after: str = ""


@dataclass(frozen=True)
class Overall:
    """All rungs beyond the one the edit was made at together; n counts items. Shares are means over
    rungs; the interval is Student's over items."""

    n: int
    rungs: int
    base: float
    edited: float
    control: float
    recovered: float | None
    recovered_interval: Interval | None


@dataclass(frozen=True)
class Ladder:
    """The result of a climb. word: hidden, gone (as far as these rungs reach), unchanged (the direct
    question still gives the old answer), unclear (too few facts), untold (the base never showed them).
    deepest: the deepest rung before the old answers first come back, over all items. entry: the rung
    the edit was made at: of the two that ask openly, where it took more answers away; taken: how many.
    All other rungs are climbed with these only."""

    base: str
    edited: str
    word: Word
    reason: str
    deepest: str | None
    returns_at: str | None
    rungs: list[RungResult]
    items: list[ItemResult]
    overall: Overall | None
    quick: bool
    seed: int
    copies: int
    entry: str | None = None
    taken: int = 0
    notes: list[str] = field(default_factory=list)

    def rung(self, name: str) -> RungResult:
        return next(rung for rung in self.rungs if rung.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers that are not finite become None."""
        return finite({"schema": SCHEMA, **asdict(self)})

    def text(self) -> str:
        """A table for a terminal."""
        from surgery.ladder.table import table

        return table(self)

    def html(self) -> str:
        """A page that holds everything it shows."""
        from surgery.ladder.page import page

        return page(self)
