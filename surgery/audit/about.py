"""What an edit is about, out of its spec or its deltas: what is asked because of it and shown of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from surgery.audit import facts as fact_metrics
from surgery.audit.measure import Measured, Plan
from surgery.audit.report import Answer, FactRecord
from surgery.audit.sides import Sides
from surgery.audit.verdict import LIMITS, check_limits
from surgery.delta import Delta
from surgery.errors import SurgeryError
from surgery.spec import EditSpec, Fact, read_prompts
from surgery.stack import Lineage


def facts_of(spec: EditSpec | None, sides: Sides) -> list[tuple[str, Fact]]:
    """(kind of edit, fact) for every fact the edit sets, by the spec if there is one."""
    if spec is not None:
        return fact_metrics.facts_of_spec(spec)
    return [fact for delta in _deltas(sides) for fact in fact_metrics.facts_of_delta(delta)]


def limits_of(sides: Sides) -> dict[str, float]:
    """The limits in the edits' own specs, the strictest where several set the same."""
    found: dict[str, float] = {}
    for delta in _deltas(sides):
        checks = (delta.metadata.get("spec") or {}).get("checks") or {}
        own: dict[str, float] = checks.get("limits") or {}
        check_limits(own)
        for name, limit in own.items():
            stricter = max if LIMITS[name].least else min
            found[name] = stricter(limit, found.get(name, limit))
    return found


def _deltas(sides: Sides) -> list[Delta]:
    """The edits that are measured, also where the edited folder had to be loaded by itself."""
    if sides.deltas or sides.other is None:
        return sides.deltas
    return Lineage.of(sides.other.checkpoint).deltas


def facts_before(sides: Sides) -> list[tuple[str, Fact]]:
    """The same for the edits that are in the base already."""
    before = [*Lineage.of(sides.model.checkpoint).deltas, *sides.model.edits]
    return [fact for delta in before for fact in fact_metrics.facts_of_delta(delta)]


def left_out_note(ids: set[str]) -> list[str]:
    if not ids:
        return []
    many = len(ids)
    return [
        f"{many} item{'s' * (many > 1)} of the tasks ask{'s' * (many == 1)} for what the edit is to "
        "change, and is no damage: left out"
    ]


def to_speak(facts: Sequence[FactRecord], most: int) -> list[str]:
    """Prompts that are answered freely: every fact's own first, then paraphrases and neighbours by
    turns, a first one of every fact before a second one of any."""

    def prompts(kind: str) -> list[str]:
        of_fact = [[q.prompt for q in r.questions if q.kind == kind] for r in facts]
        return [p for turn in zip_longest(*of_fact) for p in turn if p is not None]

    others = zip_longest(prompts("paraphrase"), prompts("neighbour"))
    found = [*prompts("direct"), *(p for pair in others for p in pair if p is not None)]
    return list(dict.fromkeys(found))[:most]


def contrast(spec: EditSpec | None, sides: Sides) -> list[tuple[str, str]]:
    """A few prompts of the contrast sets of a direction edit."""
    contents = [edit.model_dump() for edit in spec.edits] if spec else []
    if spec is None:
        for delta in sides.deltas:
            contents += (delta.metadata.get("spec") or {}).get("edits", [])
    found: list[tuple[str, str]] = []
    for content in contents:
        for name, most in (("positive", 3), ("negative", 1)):
            source = content.get(name)
            if source:
                with contextlib.suppress(SurgeryError):
                    found += [(name, prompt) for prompt in read_prompts(source)[:most]]
    return list(dict.fromkeys(found))[:8]


def answers(plan: Plan, base: Measured, edited: Measured) -> list[Answer]:
    found = [
        Answer(kind=q.kind, prompt=q.prompt, before=q.said_before, after=q.said_after or "")
        for record in plan.facts
        for q in record.questions
        if q.said_before is not None
    ]
    found += [
        Answer(kind=kind, prompt=p, before=base.answers[p].text, after=edited.answers[p].text)
        for kind, p in plan.answers
    ]
    return found


def spec_of(sides: Sides) -> dict[str, Any] | None:
    specs = [delta.metadata.get("spec") for delta in sides.deltas]
    known = [spec for spec in specs if isinstance(spec, dict)]
    return known[0] if len(known) == 1 else None
