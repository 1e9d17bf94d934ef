"""Base and edited on the same items: flips, McNemar, bootstrap, Holm over tasks, the plausibility floor."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from surgery.audit import report
from surgery.audit.tasks.items import Task
from surgery.audit.tasks.running import Outcome
from surgery.measure.paired import bootstrap, flips, holm, mcnemar

Outcomes = Mapping[str, Sequence[Outcome]]


def compare(
    tasks: Sequence[Task],
    base: Outcomes,
    edited: Outcomes,
    sham: Outcomes | None = None,
    without: Container[str] = (),
) -> list[report.TaskResult]:
    """One result a task (two for facts), p values corrected over all that can be measured.

    without: ids of items that are left out.
    """
    results: list[report.TaskResult] = []
    for task in tasks:
        kept = [place for place, item in enumerate(task.items) if item.id not in without]
        asked = replace(task, items=[task.items[place] for place in kept])
        for name in (task.name, f"{task.name}_greedy"):
            if name in base and kept:
                before, after = ([side[name][i] for i in kept] for side in (base, edited))
                mine = [sham[name][i] for i in kept] if sham and name in sham else None
                results.append(_result(asked, name, before, after, mine))
    ranked = [result for result in results if result.measurable]
    for result, p in zip(ranked, holm([r.p for r in ranked]), strict=True):
        result.p_holm = p
    return results


def _result(
    task: Task,
    name: str,
    base: Sequence[Outcome],
    edited: Sequence[Outcome],
    sham: Sequence[Outcome] | None,
) -> report.TaskResult:
    before, after = [o.right for o in base], [o.right for o in edited]
    lost, gained = flips(before, after)
    greedy = name != task.name
    chance = 0.0 if greedy else task.chance
    count = len(before)
    label = "safe requests answered" if task.label == "requests" else task.label
    result = report.TaskResult(
        name=name,
        label=f"{label}, greedy" if greedy else label,
        kind=task.part.kind,
        n=count,
        chance=chance,
        base=sum(before) / count,
        edited=sum(after) / count,
        sham=sum(o.right for o in sham) / count if sham else None,
        change=(sum(after) - sum(before)) / count,
        interval=bootstrap([float(a) - float(b) for b, a in zip(before, after, strict=True)]),
        lost=lost,
        gained=gained,
        p=mcnemar(lost, gained),
    )
    result.note = floor(sum(before), count, chance)
    result.measurable = not result.note
    for number, item in enumerate(task.items):
        result.items.append(
            report.Item(
                id=item.id,
                text=item.text,
                group=item.group,
                base=before[number],
                edited=after[number],
                sham=sham[number].right if sham else None,
                gold=item.choices[item.gold] if item.choices else None,
                base_answer=base[number].answer,
                edited_answer=edited[number].answer,
            )
        )
    result.groups = _groups(result.items)
    return result


def floor(right: int, count: int, chance: float) -> str:
    """Why nothing can be concluded from a task, or nothing: the base must beat chance (one-sided
    binomial, 5 %), and where guessing gets nothing, be right on a tenth of the items."""
    from scipy.stats import binomtest

    if chance == 0:
        if right < max(2, 0.1 * count):
            return f"the base gets only {right} of {count} right: nothing to lose here"
        return ""
    p = binomtest(right, count, chance, alternative="greater").pvalue
    if p > 0.05:
        return f"the base is at chance ({right} of {count}, guessing gives {chance * count:.0f})"
    return ""


def _groups(items: Sequence[report.Item]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(item.group for item in items):
        if name is None:
            continue
        mine = [item for item in items if item.group == name]
        lost, gained = flips([i.base for i in mine], [i.edited for i in mine])
        found[name] = {
            "n": len(mine),
            "base": sum(i.base for i in mine) / len(mine),
            "edited": sum(i.edited for i in mine) / len(mine),
            "lost": lost,
            "gained": gained,
        }
    return found
