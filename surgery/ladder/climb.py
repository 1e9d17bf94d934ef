"""The climb: every rung on base, on edited, and on twins that nobody ever knew.

found = ladder("base", "edited", facts)
found.word, found.reason, found.rung("paraphrase").recovered
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from surgery.audit.cache import SideCache, Unfinished
from surgery.audit.facts import facts_of_delta
from surgery.audit.sides import Edited, Sides
from surgery.errors import SurgeryError
from surgery.ladder.items import Item, items_of, twins
from surgery.ladder.judge import OPEN, Measured, by_item, judge, pooled, taken_away, verdict
from surgery.ladder.kept import scores
from surgery.ladder.registry import FAMILIES
from surgery.ladder.result import Ladder, RungResult
from surgery.ladder.rung import NOTHING, Family, Score, Setting
from surgery.ladder.rungs.direction import moved, read
from surgery.ladder.rungs.probe import readers
from surgery.ladder.said import said, with_rivals
from surgery.model import Model
from surgery.progress import track
from surgery.spec import Fact
from surgery.stack import Lineage

QUICK_FACTS = 24


def ladder(
    base: Model | str | Path,
    edited: Edited,
    facts: Sequence[Fact] | None = None,
    *,
    quick: bool = False,
    rungs: Collection[str] | None = None,
    copies: int | None = None,
    seed: int = 0,
    force: bool = False,
    cache: bool = True,
) -> Ladder:
    """Climb.

    base: a folder or a loaded model. edited: a folder, a delta or its file, or several deltas in
    order. facts: what was changed or forgotten; by default the facts the deltas were solved for. A
    fact whose target is its old answer counts as forgotten. quick: at most 24 facts, one made-up twin
    for each instead of three, no 100 steps of relearning. rungs: only these. force: accept deltas of
    another base. cache: keep what the base says, and what the edited model says until the climb is
    done, so that one that was killed goes on where it was. The models come back bit for bit as they
    were.

    Raises:
        SurgeryError: no facts, an unknown rung, or sides that cannot be compared.
    """
    families = _chosen(rungs)
    sides = Sides.of(base, edited, force=force)
    facts = list(facts) if facts is not None else _own_facts(sides)
    notes = [*sides.notes]
    if quick and len(facts) > QUICK_FACTS:
        notes.append(f"the first {QUICK_FACTS} of {len(facts)} facts")
        facts = facts[:QUICK_FACTS]
    items = items_of(facts, sides.model, seed)
    if len(items) < len(facts):
        notes.append(f"{len(facts) - len(items)} facts to which the base says nothing left out")
    copies = copies if copies is not None else (1 if quick else 3)
    if copies < 1:
        raise SurgeryError("at least one made-up twin a fact is needed as a control")

    place, before = read(sides.model, items), said(sides.model, items)
    with sides.edited() as model:
        after, now = read(model, items), said(model, items)
    items = with_rivals(sides.model, items, before, now)
    made_up = twins(items, copies, seed)
    setting = Setting(
        directions=moved(place, after),
        steps=(5, 20) if quick else (5, 20, 100),
        seed=seed,
        quick=quick,
    )

    unfinished = Unfinished(cache)

    def climb(chosen: Sequence[Family], taken: Sequence[bool], what: str) -> list[Measured]:
        kept = [i for i, t in enumerate(taken) if t]
        sets = [[one[i] for i in kept] for one in (items, *made_up)]
        fold = halves(sets[0], seed)
        probed = any("probe" in family.rungs for family in chosen)
        mine = replace(
            setting, fold=fold, readers=readers(sides.model, sets[0], fold) if probed else ()
        )
        store = SideCache(sides.model, cache)
        on_base = _climb(sides.model, store, chosen, sets[:1], mine, f"{what}: base")
        with sides.edited() as model:
            store = unfinished.of(model)
            on_edited = _climb(model, store, chosen, sets, mine, f"{what}: edited")
        wanted = [(f, name) for f in chosen for name in f.names(mine)]
        return [
            _measured(name, f, on_base[name][0], on_edited[name], kept, len(items))
            for f, name in wanted
            if rungs is None or name in rungs
        ]

    openly = [f for f in families if any(name in OPEN for name in f.rungs)]
    measured = climb(openly, [True] * len(items), "asking") if openly else []
    entry, taken = taken_away(measured, len(items))
    measured = [one if one.name == entry else one.among(taken) for one in measured]
    if any(taken):
        measured += climb([f for f in families if f not in openly], taken, "climbing")
    found = judge(measured)
    overall = pooled(measured, found, entry)
    word, reason, deepest, returns = verdict(found, overall, entry, taken)
    notes += _skipped(found, sum(taken))
    unfinished.clear()
    return Ladder(
        base=str(sides.base_side.path),
        edited=str(sides.edited_side.path or "+".join(d.name for d in sides.deltas)),
        word=word, reason=reason, deepest=deepest, returns_at=returns,
        rungs=found, items=by_item(items, measured, entry, taken, before, now), overall=overall,
        entry=entry, taken=sum(taken),
        quick=quick, seed=seed, copies=copies, notes=notes,
    )  # fmt: skip


def _measured(
    name: str,
    family: Family,
    base: Sequence[Score],
    edited: Sequence[Sequence[Score]],
    kept: Sequence[int],
    count: int,
) -> Measured:
    """Scores of the items that were climbed with, among all `count`."""

    def whole(scores: Sequence[Score]) -> list[Score]:
        by_place = dict(zip(kept, scores, strict=True))
        return [by_place.get(i, NOTHING) for i in range(count)]

    sets = [whole(scores) for scores in edited]
    return Measured(name, family.rungs[name], family.unit, whole(base), sets[0], sets[1:])


def halves(items: Sequence[Item], seed: int = 0) -> tuple[int, ...]:
    """0 or 1 for each item; all items of a subject are in the same half."""
    subjects = list(dict.fromkeys(item.subject.casefold() for item in items))
    random.Random(seed).shuffle(subjects)
    half = {subject: place % 2 for place, subject in enumerate(subjects)}
    return tuple(half[item.subject.casefold()] for item in items)


def _climb(
    model: Model,
    store: SideCache,
    families: Sequence[Family],
    sets: Sequence[Sequence[Item]],
    setting: Setting,
    label: str,
) -> dict[str, list[list[Score]]]:
    """Scores by rung, one list for each set of items. Where training is needed, only the first set of
    twins is asked."""
    found: dict[str, list[list[Score]]] = {}
    for family in track(families, label, total=len(families)):
        for items in sets[:2] if family.trained else sets:
            for name, mine in scores(store, family, model, items, setting).items():
                found.setdefault(name, []).append(mine)
    return found


def _chosen(rungs: Collection[str] | None) -> list[Family]:
    known = [name for family in FAMILIES for name in family.rungs]
    unknown = [name for name in rungs or () if name not in known]
    if unknown:
        raise SurgeryError(f"no rung {unknown[0]!r}: there are {', '.join(known)}")
    return [f for f in FAMILIES if rungs is None or any(name in rungs for name in f.rungs)]


def _own_facts(sides: Sides) -> list[Fact]:
    deltas = sides.deltas
    if not deltas and sides.other is not None:
        deltas = Lineage.of(sides.other.checkpoint).deltas
    return [fact for delta in deltas for _, fact in facts_of_delta(delta)]


def _skipped(found: Sequence[RungResult], count: int) -> list[str]:
    if not count:
        return []  # nothing was taken away, so nothing else was asked
    reasons = {
        "paraphrase": "the facts bring no paraphrases",
        "hints": "no facts about other subjects of these relations are known",
        "language": "no translation of these prompts ships with the ladder",
        "probe": "fewer than four facts to fit on",
        "relearn5": "relearning needs facts about at least two subjects",
    }
    notes = [
        f"{rung.name}: skipped, {reasons.get(rung.name, 'nothing to ask')}"
        for rung in found
        if rung.status == "skipped" and rung.name not in ("relearn20", "relearn100")
    ]
    silent = [rung.name for rung in found if rung.status == "silent"]
    if silent:
        notes.append(
            "not told apart from made-up subjects even in the base, so these rungs say nothing: "
            + ", ".join(silent)
        )
    partial = [f"{r.name} {r.n}" for r in found if 0 < r.n < count]
    if partial:
        notes.append(f"asked of fewer than all {count} facts: " + ", ".join(partial))
    return notes
