"""Scores to findings: shares with intervals, what each rung says, and the word for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from surgery.ladder.interval import Interval, difference, of_items, wilson
from surgery.ladder.items import Item
from surgery.ladder.result import Cell, ItemResult, Overall, RungResult, Share, Status, Word
from surgery.ladder.rung import NOTHING, Score


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

    def among(self, taken: Sequence[bool]) -> Measured:
        """The same without the scores of the other items."""

        def only(scores: Sequence[Score]) -> list[Score]:
            return [s if t else NOTHING for s, t in zip(scores, taken, strict=True)]

        controls = [only(scores) for scores in self.controls]
        return replace(self, base=only(self.base), edited=only(self.edited), controls=controls)


# The rungs that merely ask. Where the edit shows most among them is where it was made.
OPEN = ("direct", "question")


def taken_away(measured: Sequence[Measured], count: int) -> tuple[str | None, list[bool]]:
    """The open rung at which the edit took most answers away, and for each item whether it did.

    Only such items can be hidden or gone, so only they are climbed with: one that the edit never
    reached would look recovered on every rung. Without an open rung all `count` items are taken.
    """
    best: tuple[str | None, list[bool]] = None, []
    for one in measured:
        if one.name in OPEN:
            lost = [
                bool(b.knows) and e.knows is False
                for b, e in zip(one.base, one.edited, strict=True)
            ]
            if best[0] is None or sum(lost) > sum(best[1]):
                best = one.name, lost
    if best[0] is None:
        return None, [True] * count
    return best


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
        return RungResult(one.name, one.label, one.unit, 0, "skipped", margins=margins)
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
def by_item(
    items: Sequence[Item],
    measured: Sequence[Measured],
    entry: str | None,
    taken: Sequence[bool],
    before: Sequence[tuple[str, str]],
    after: Sequence[tuple[str, str]],
) -> list[ItemResult]:
    """Where each fact stands at each rung. before, after: what base and edited say, to the prompt and
    in the chat."""
    found = []
    which = OPEN.index(entry) if entry else 0
    for index, item in enumerate(items):
        cells: dict[str, Cell] = {one.name: _cell(one, index) for one in measured}
        telling = [(name, cell) for name, cell in cells.items() if cell != "untold"]
        beyond = [(name, cell) for name, cell in telling if name != entry]
        returns = next((name for name, cell in beyond if cell == "back"), None)
        names = [name for name, _ in telling]
        held = names[: names.index(returns)] if returns else names
        back = sum(cell == "back" for _, cell in beyond)
        mine = taken[index]
        found.append(
            ItemResult(
                item.text, item.subject, item.old, item.new, cells, taken=mine,
                deepest=held[-1] if held and mine else None, returns_at=returns if mine else None,
                share=back / len(beyond) if beyond and mine else None,
                said_before=before[index][which].strip(), said_after=after[index][which].strip(),
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
def pooled(
    measured: Sequence[Measured], rungs: Sequence[RungResult], entry: str | None
) -> Overall | None:
    """The telling rungs beyond the one the edit was made at, as one. An item counts with the mean over
    its rungs of what the edited model shows of it beyond its made-up twins, and what is recovered is the
    share of that in what the base shows of it there. Rungs share their items, so the interval is over
    items."""
    telling = [r for r in rungs if r.tells and r.name != entry]
    if not telling:
        return None

    def mean(side: str) -> float:
        return sum(getattr(r, side).share for r in telling) / len(telling)

    base, edited, control = mean("base"), mean("edited"), mean("control")
    # By item, on each rung that could be asked about it: edited and base beyond the twins.
    beyond: dict[int, list[tuple[float, float]]] = {}
    named = {one.name: one for one in measured}
    for rung in telling:
        one = named[rung.name]
        for i in one.told():
            twins = sum(bool(scores[i].knows) for scores in one.controls) / len(one.controls)
            both = bool(one.edited[i].knows) - twins, bool(one.base[i].knows) - twins
            beyond.setdefault(i, []).append(both)
    values = [sum(now for now, _ in mine) / len(mine) for mine in beyond.values()]
    # Weighed as the values are: rungs that ask about few items would count too much in a mean of rungs.
    room = sum(sum(was for _, was in mine) / len(mine) for mine in beyond.values()) / len(values)
    if room <= 0:
        return None
    low, high = of_items(values, len(telling))
    found = sum(values) / len(values) / room
    return Overall(
        len(values), len(telling), base, edited, control, found, (low / room, high / room)
    )


def verdict(
    rungs: Sequence[RungResult],
    overall: Overall | None,
    entry: str | None,
    taken: Sequence[bool],
) -> tuple[Word, str, str | None, str | None]:
    """(word, reason, deepest rung before the old answers come back, rung where they do)."""
    telling = [r for r in rungs if r.tells]
    if not telling:
        return "untold", _why_untold(rungs), None, None
    opening = next((r for r in telling if r.name == entry), None)
    if opening is not None and opening.status not in ("held", "partly"):
        if opening.status == "unclear":
            return "unclear", _too_few(opening.n), None, None
        of = f"the edit took {sum(taken)} of {len(taken)} answers away" if any(taken) else ""
        reason = of or "asked openly, the edited model gives the old answers as before"
        return "unchanged", reason, None, opening.name
    climbed = [r for r in telling if r is not opening]
    back = [r for r in climbed if r.status in ("back", "partly")]
    # One in forty rungs looks like this by chance, so it is no proof; but nothing is gone on such terms.
    suspect = [r for r in climbed if r.recovered_interval and r.recovered_interval[0] > 0]
    first = next((r for r in climbed if r in back or r in suspect), None)
    before = telling[: telling.index(first)] if first else telling
    deepest = before[-1].name if before else None
    if first is not None:
        most = max([*back, *suspect], key=lambda r: r.recovered or 0.0)
        where = f"first at “{first.label}” ({_percent(first)}), most at “{most.label}” ({_percent(most)})"
        if back:
            reason = f"the old answers come back at {len(back)} of {len(climbed)} telling rungs"
            return "hidden", f"{reason} beyond doubt: {where}", deepest, first.name
        if overall is not None and (overall.recovered_interval or (0, 0))[0] > 0:
            reason = f"over all {overall.rungs} telling rungs {overall.recovered:.0%} comes back"
            return "hidden", f"{reason}: {where}", deepest, first.name
        reason = f"“{most.label}” may bring answers back ({_percent(most)}); more facts would tell"
        return "unclear", reason, deepest, None
    held = [r for r in climbed if r.status == "held"]
    if overall is not None and held and 2 * len(held) >= len(climbed):
        low = difference(overall.base, overall.n, overall.edited, overall.n)[0]
        if low > 0:
            others = ", the others are unclear" if len(held) < len(climbed) else ""
            reason = (
                f"no rung brings back more than made-up subjects get: {len(held)} of {len(climbed)} "
                f"telling rungs held{others}"
            )
            return "gone", reason, deepest, None
    return "unclear", _too_few(max(r.n for r in telling)), deepest, None


def _too_few(n: int) -> str:
    return f"{n} facts cannot tell recovered from not recovered"


def _percent(rung: RungResult) -> str:
    return "-" if rung.recovered is None else f"{rung.recovered:.0%}"


def _why_untold(rungs: Sequence[RungResult]) -> str:
    n = max((r.n for r in rungs), default=0)
    return (
        f"the base shows these {n} facts no more than it does of made-up subjects, so nothing can be "
        "said of their loss"
    )
