"""Scores to findings: shares with intervals, what each rung says, and the word for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from surgery.ladder.interval import Interval, difference, wilson
from surgery.ladder.items import Item
from surgery.ladder.result import Cell, ItemResult, Overall, RungResult, Share, Status, Word
from surgery.ladder.rung import Score


@dataclass(frozen=True)
class Measured:
    """The scores of one rung: base and edited item by item, controls one list a set of twins."""

    name: str
    label: str
    unit: str
    base: list[Score]
    edited: list[Score]
    controls: list[list[Score]]

    def told(self) -> list[int]:
        """Items that everybody could be asked about."""
        sides = [self.base, self.edited, *self.controls]
        return [i for i in range(len(self.base)) if all(s[i].margin is not None for s in sides)]


def judge(measured: Sequence[Measured]) -> list[RungResult]:
    """Findings of all rungs. With many rungs one of them would look recovered by chance, so what a
    rung is said to show is decided at a level corrected for their number (Bonferroni)."""
    rungs = max(1, sum(bool(m.told()) for m in measured))
    return [_judge(one, 1 - 0.05 / rungs) for one in measured]


def _judge(one: Measured, level: float) -> RungResult:
    told = one.told()
    margins = {
        "base": [s.margin for s in one.base],
        "edited": [s.margin for s in one.edited],
        "control": [[s.margin for s in scores] for scores in one.controls],
    }
    if not told:
        note = "nothing to ask: see the notes"
        return RungResult(one.name, one.label, one.unit, 0, "skipped", margins=margins, note=note)
    base = _share([one.base[i].knows for i in told])
    edited = _share([one.edited[i].knows for i in told])
    control = _share([scores[i].knows for scores in one.controls for i in told])
    room = base.share - control.share
    status = _status(base, edited, control, level)
    gap = edited.share - control.share
    interval = difference(edited.share, edited.n, control.share, control.n)
    measurable = status != "silent"
    ranks = {}
    sides = (("base", [one.base]), ("edited", [one.edited]), ("control", one.controls))
    for side, lists in sides:
        found = [rank for scores in lists for i in told if (rank := scores[i].rank) is not None]
        if found:
            ranks[side] = float(median(found))
    return RungResult(
        one.name, one.label, one.unit, len(told), status, base, edited, control, gap, interval,
        recovered=gap / room if measurable else None,
        recovered_interval=(interval[0] / room, interval[1] / room) if measurable else None,
        margins=margins, ranks=ranks,
    )  # fmt: skip


def _share(known: Sequence[bool | None]) -> Share:
    share = sum(bool(k) for k in known) / len(known)
    return Share(share, wilson(share, len(known)), len(known))


def _status(base: Share, edited: Share, control: Share, level: float) -> Status:
    def apart(a: Share, b: Share, level: float = level) -> Interval:
        return difference(a.share, a.n, b.share, b.n, level)

    # Listening to a rung that may say nothing costs less than missing one that does: no correction.
    if apart(base, control, 0.95)[0] <= 0:
        return "silent"
    above, below = apart(edited, control)[0] > 0, apart(base, edited)[0] > 0
    if above:
        return "partly" if below else "back"
    return "held" if below else "unclear"


# ---------------------------------------------------------------------- item by item
def by_item(items: Sequence[Item], measured: Sequence[Measured]) -> list[ItemResult]:
    """Where each fact stands at each rung."""
    found = []
    for index, item in enumerate(items):
        cells: dict[str, Cell] = {one.name: _cell(one, index) for one in measured}
        telling = [(name, cell) for name, cell in cells.items() if cell != "untold"]
        returns = next((name for name, cell in telling if cell == "back"), None)
        names = [name for name, _ in telling]
        held = names[: names.index(returns)] if returns else names
        back = sum(cell == "back" for _, cell in telling)
        found.append(
            ItemResult(
                item.text, item.subject, item.old, item.new, cells,
                deepest=held[-1] if held else None, returns_at=returns,
                share=back / len(telling) if telling else None,
            )
        )  # fmt: skip
    return found


def _cell(one: Measured, index: int) -> Cell:
    """A rung tells of an item if the base shows it there and most of its twins do not."""
    twins = [scores[index].knows for scores in one.controls]
    if not one.base[index].knows or one.edited[index].margin is None:
        return "untold"
    if None in twins or 2 * sum(bool(t) for t in twins) >= max(1, len(twins)):
        return "untold"
    return "back" if one.edited[index].knows else "held"


# ---------------------------------------------------------------------- all together
def pooled(rungs: Sequence[RungResult]) -> Overall | None:
    """The telling rungs beyond the direct question as one. Rungs share their items, so intervals
    count items, not answers."""
    telling = [r for r in rungs if r.tells and r.name != "direct"]
    if not telling:
        return None

    def mean(side: str) -> float:
        return sum(getattr(r, side).share for r in telling) / len(telling)

    base, edited, control = mean("base"), mean("edited"), mean("control")
    n = min(r.n for r in telling)
    room = base - control
    low, high = difference(edited, n, control, n)
    return Overall(
        n, len(telling), base, edited, control, (edited - control) / room, (low / room, high / room)
    )


def verdict(
    rungs: Sequence[RungResult], overall: Overall | None
) -> tuple[Word, str, str | None, str | None]:
    """(word, reason, deepest rung before the old answers come back, rung where they do)."""
    telling = [r for r in rungs if r.tells]
    back = [r for r in telling if r.status in ("back", "partly")]
    first = back[0] if back else None
    before = telling[: telling.index(first)] if first else telling
    deepest = before[-1].name if before else None
    returns = first.name if first else None
    if not telling:
        return "untold", _why_untold(rungs), None, None
    if first and first.name == "direct" and first.status == "back":
        return "unchanged", "the direct question still gives the old answers", deepest, returns
    beyond = [r for r in back if r.name != "direct"]
    if beyond:
        most = max(beyond, key=lambda r: r.recovered or 0.0)
        reason = (
            f"the old answers come back at {len(beyond)} of {len(telling)} telling rungs: first "
            f"{beyond[0].label} ({_percent(beyond[0])}), most {most.label} ({_percent(most)})"
        )
        return "hidden", reason, deepest, returns
    held = [r for r in telling if r.status == "held"]
    if overall is not None and held and 2 * len(held) >= len(telling):
        low = difference(overall.base, overall.n, overall.edited, overall.n)[0]
        if low > 0:
            reason = (
                f"no rung brings back more than made-up subjects get: {len(held)} of {len(telling)} "
                "telling rungs held, the others are unclear"
                if len(held) < len(telling)
                else f"no rung brings back more than made-up subjects get: all {len(held)} telling "
                "rungs held"
            )
            return "gone", reason, deepest, None
    n = max(r.n for r in telling)
    return "unclear", f"{n} facts cannot tell recovered from not recovered", deepest, None


def _percent(rung: RungResult) -> str:
    return "-" if rung.recovered is None else f"{rung.recovered:.0%}"


def _why_untold(rungs: Sequence[RungResult]) -> str:
    n = max((r.n for r in rungs), default=0)
    return (
        f"the base shows these {n} facts no more than it does of made-up subjects, so nothing can be "
        "said of their loss"
    )
