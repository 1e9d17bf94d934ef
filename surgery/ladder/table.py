"""The ladder as text."""

from __future__ import annotations

from surgery.ladder.result import Cell, Ladder, RungResult, Share

WORDS = {
    "hidden": "HIDDEN, NOT GONE",
    "gone": "GONE, as far as these rungs reach",
    "unchanged": "NOT CHANGED",
    "unclear": "UNCLEAR",
    "untold": "NOTHING CAN BE SAID",
}
STATUS = {
    "back": "comes back",
    "partly": "partly back",
    "held": "held",
    "unclear": "unclear",
    "silent": "says nothing",
    "skipped": "skipped",
}
MARKS: dict[Cell, str] = {"back": "#", "held": ".", "untold": " "}


def table(found: Ladder) -> str:
    """Verdict, one line a rung, one line an item, notes."""
    lines = [f"{WORDS[found.word]}: {found.reason}"]
    overall = found.overall
    if overall and overall.recovered is not None and overall.recovered_interval:
        low, high = overall.recovered_interval
        lines.append(
            f"recovered {overall.recovered:.0%} [{low:.0%}, {high:.0%}] over {overall.rungs} rungs; "
            f"the edit took {found.taken} of {len(found.items)} answers away"
            + (f" (asked: {found.entry})" if found.entry else "")
        )
    if found.deepest:
        lines.append(f"deepest rung survived: {found.deepest}{_back(found.returns_at)}")
    lines += [
        "",
        f"  {'rung':<11} {'n':>3}  {'base':>5} {'edited':>6} {'never knew':>10}  recovered [95 %]",
    ]
    lines += [_line(rung, found.entry) for rung in found.rungs]
    names = [rung.name for rung in found.rungs]
    lines += ["", f"  item by item, rungs in order: {' '.join(names)}"]
    lines.append("  # the old answer is back   . it is not   (blank) the rung does not tell")
    for item in found.items:
        cells = "".join(MARKS[item.rungs[name]] for name in names)
        share = "   -" if item.share is None else f"{item.share:>4.0%}"
        held = f"held to {item.deepest or 'none'}{_back(item.returns_at)}"
        held = held if item.taken else "not changed"
        lines.append(f"  |{cells}| {share}  {item.subject}: {item.old} ({held})")
    return "\n".join([*lines, *(["", *found.notes] if found.notes else [])])


def _line(rung: RungResult, entry: str | None) -> str:
    head = f"  {rung.name:<11} {rung.n:>3}  "
    if rung.base is None or rung.edited is None or rung.control is None:
        return f"{head}{'':>23}  {STATUS[rung.status]}"
    figures = f"{_of(rung.base):>5} {_of(rung.edited):>6} {_of(rung.control):>10}"
    return f"{head}{figures}  {recovered(rung):<18} {state(rung, entry)}"


def state(rung: RungResult, entry: str | None) -> str:
    """What a rung says, in a word or two."""
    if rung.name == entry and rung.status in ("held", "partly"):
        return "edited here"
    return STATUS[rung.status]


def _back(rung: str | None) -> str:
    return f", back at {rung}" if rung else ""


def _of(share: Share) -> str:
    return f"{share.share:.0%}"


def recovered(rung: RungResult) -> str:
    """Share recovered with its interval, or a dash."""
    if rung.recovered is None or rung.recovered_interval is None:
        return "-"
    low, high = rung.recovered_interval
    return f"{rung.recovered:.0%} [{low:.0%}, {high:.0%}]"
