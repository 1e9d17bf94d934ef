"""What damage comes from: whole tensors that were scaled, facts of one relation that were overwritten,
neighbours that took the edit's answer."""

from __future__ import annotations

from surgery.audit.report import Question, Report, TaskResult, TensorChange

Finding = dict[str, object]

# A relation is overwritten when at least so many of its facts, and this share of them, are lost, and
# losses elsewhere make that unlikely (p after Bonferroni over relations).
_LEAST_LOST, _SHARE, _P = 3, 0.3, 0.01


def weights_cause(report: Report) -> str:
    """What in the weights explains damage: tensors scaled or zeroed as a whole, else the one that
    changed most. Begins with a colon; empty if nothing stands out."""
    changed = [change for change in report.weights if change.norm]
    bad = [change for change in report.weights if not change.finite]
    if bad:
        return f": {bad[0].key} is not finite"
    same = scaled(report)
    if same:
        factor = same[0].scale or 0.0
        done = "zeroed" if abs(factor) < 0.02 else f"multiplied by {factor:.2f}"
        return f": {_names(same)} {'was' if len(same) == 1 else 'were'} {done}"
    if changed and (changed[0].norm or 0) > 0.05:
        return f": {changed[0].key} changed by {100 * (changed[0].norm or 0):.0f} % of its length"
    return ""


def scaled(report: Report) -> list[TensorChange]:
    """Tensors that were multiplied by one number, the same for all of them."""
    found = [change for change in report.weights if change.scale is not None]
    factor = found[0].scale or 0.0 if found else 0.0
    return [change for change in found if abs((change.scale or 0.0) - factor) < 0.05]


def _names(changes: list[TensorChange]) -> str:
    if len(changes) == 1:
        return changes[0].key
    keys = [change.key.split(".") for change in changes]
    shared = []
    for parts in zip(*keys, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    where = ".".join(shared) or "the model"
    return f"{len(changes)} tensors of {where}"


# ---------------------------------------------------------------------- one relation
def relations(report: Report) -> list[Finding]:
    """Relations whose known facts are lost while others are kept.

    Under damage that spares no relation, the lost facts of one are a draw without replacement from all
    lost ones: P(X >= l) with X hypergeometric(known facts, lost facts, known facts of the relation).
    """
    for task in report.tasks:
        if task.kind == "facts" and task.measurable:
            found = [f for name in task.groups if (f := _relation(task, name))]
            if found:
                return found
    return []


def _relation(task: TaskResult, name: str) -> Finding | None:
    from scipy.stats import hypergeom

    def known(group: dict[str, float]) -> int:
        return round(group["base"] * group["n"])

    mine, lost = known(task.groups[name]), int(task.groups[name]["lost"])
    every = sum(map(known, task.groups.values()))
    every_lost = int(sum(group["lost"] for group in task.groups.values()))
    if lost < _LEAST_LOST or lost < _SHARE * mine:
        return None
    p = float(hypergeom.sf(lost - 1, every, every_lost, mine)) * len(task.groups)
    if p >= _P:
        return None
    return {
        "level": "reject" if lost >= 0.5 * mine else "warn",
        "name": "relation",
        "value": lost,
        "limit": _SHARE * mine,
        "text": f"facts of one relation are overwritten: {lost} of the {mine} about "
        f"{name.replace('_', ' ')} that the base knew are lost, {every_lost - lost} of "
        f"{every - mine} others",
    }


# ---------------------------------------------------------------------- neighbours
def neighbours_lost(report: Report) -> list[Question]:
    """Neighbours that preferred their own answer before, and the edit's new one now."""
    return [q for q in _neighbours(report) if _prefers_own(q, "base") and not _prefers_own(q)]


def neighbours_no_longer_said(report: Report) -> tuple[int, int]:
    """(lost, known) of the neighbours whose own answer was the greedy one: whatever is said now."""
    known = [q for q in _neighbours(report) if q.base_greedy]
    return sum(not q.edited_greedy for q in known), len(known)


def neighbours_kept(report: Report) -> tuple[int, int]:
    """(kept, known): known are those whose own answer the base preferred or said, and kept those for
    which both is as it was."""
    known = [q for q in _neighbours(report) if q.base_greedy or _prefers_own(q, "base")]
    kept = [
        q
        for q in known
        if (q.edited_greedy or not q.base_greedy)
        and (_prefers_own(q) or not _prefers_own(q, "base"))
    ]
    return len(kept), len(known)


def overwritten(report: Report) -> bool:
    """Whether neighbours are lost out of all proportion to other facts: the damage is theirs alone."""
    lost, known = neighbours_no_longer_said(report)
    preferred = len(neighbours_lost(report)), len(_neighbours(report))
    share = max(lost / known if known else 0.0, preferred[0] / max(1, preferred[1]))
    others = [t for t in report.tasks if t.kind == "facts" and t.base > 0]
    elsewhere = max((t.lost / (t.base * t.n) for t in others), default=0.0)
    return share >= 0.5 and elsewhere < share / 2 and not scaled(report)


def example(report: Report) -> str:
    """One neighbour that was lost, to show what is meant; empty if none was."""
    lost = neighbours_lost(report)
    if lost:
        q = lost[0]
        return f", such as “{q.prompt}”: {q.new} is preferred to {q.old} now"
    silent = [q for q in _neighbours(report) if q.base_greedy and not q.edited_greedy]
    return f", such as “{silent[0].prompt}”: no longer {silent[0].old}" if silent else ""


def _neighbours(report: Report) -> list[Question]:
    return [q for fact in report.facts for q in fact.questions if q.kind == "neighbour"]


def _prefers_own(question: Question, side: str = "edited") -> bool:
    new, old = getattr(question, f"{side}_new"), getattr(question, f"{side}_old")
    return new is not None and old is not None and old > new  # NaN does not
