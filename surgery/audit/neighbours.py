"""Other subjects of the edited relation, for facts that bring none: what an edit is likeliest to break.

From the surest source to the least: the facts that ship with the audit, if one of their sentences is the
edit's or one of them is the very fact that is edited; else well-known names of the subject's kind (or of
subjects with such answers) in the edit's own sentence, which should go on saying what the base says there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from surgery import resources
from surgery.audit.report import FactRecord, Question
from surgery.facts.rows import joined
from surgery.measure.sample import spread
from surgery.spec import Fact
from surgery.statistics.subjects import NAMES


def plain(text: str | None) -> str:
    """A name or an answer as it is compared: without case, surrounding space or a leading article."""
    return " ".join((text or "").split()).casefold().removeprefix("the ").rstrip(".")


def mentions(text: str, name: str) -> bool:
    """Whether a text has a name in it as whole words, both as `plain` gives them."""
    return bool(name) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


@cache
def _known() -> tuple[dict[str, Any], ...]:
    file = resources.path("benchmarks", "tasks", "facts.jsonl")
    return tuple(json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line)


@cache
def _kinds() -> tuple[tuple[str, ...], ...]:
    """Well-known names, kind by kind."""
    groups: list[list[str]] = []
    for line in NAMES.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            groups.append([])
        elif line.strip() and groups:
            groups[-1] += [name.strip() for name in line.split(";") if name.strip()]
    relations = dict.fromkeys(row["relation"] for row in _known())
    shipped = [[row["subject"] for row in _known() if row["relation"] == r] for r in relations]
    # The facts' subjects first: those are names a small model has heard of.
    return tuple(tuple(names) for names in [*shipped, *groups])


def companions(
    fact: Fact, most: int, old: str | None = None
) -> tuple[list[str], list[str], list[str | None]]:
    """Paraphrases (templates), neighbours' prompts and their answers (None: what the base says).

    old: what the fact says now, where that is known.
    """
    template, subject = fact.template.strip().casefold(), plain(fact.subject)
    rows = [row for row in _known() if template in (f.casefold() for f in _forms(row))]
    if not rows and old:
        same = [
            r
            for r in _known()
            if (plain(r["subject"]), plain(r["answer"])) == (subject, plain(old))
        ]
        rows = [row for row in _known() if same and row["relation"] == same[0]["relation"]]
    if rows:
        paraphrases = [form for form in _forms(rows[0]) if form.casefold() != template]
        others = [row for row in rows if plain(row["subject"]) != subject][:most]
        prompts = [fact.template.replace("{}", row["subject"]) for row in others]
        return paraphrases, prompts, [row["answer"] for row in others]
    alike = next((names for names in _kinds() if subject in map(plain, names)), None)
    if alike is None:  # a name nobody knows: subjects of relations with such answers
        answers = {plain(old), plain(fact.target)} - {""}
        relations = {row["relation"] for row in _known() if plain(row["answer"]) in answers}
        alike = tuple(row["subject"] for row in _known() if row["relation"] in relations)
    others = spread([name for name in alike if plain(name) != subject], most)
    prompts = [fact.template.replace("{}", name) for name in others]
    return [], prompts, [None] * len(prompts)


def _forms(row: dict[str, Any]) -> list[str]:
    return [row["prompt"], *row["paraphrases"]]


def statement(prompt: str, new: str) -> str:
    """The edited fact as a sentence, to stand before something else."""
    return f"{prompt}{joined(prompt, new)}. "


def bare(record: FactRecord, question: Question) -> str:
    """A question's prompt without the edit's statement before it."""
    if question.kind != "neighbour_plus":
        return question.prompt
    return question.prompt.removeprefix(statement(record.questions[0].prompt, record.new))


def sift(records: Sequence[FactRecord], most: int) -> None:
    """Drop neighbours that say nothing about damage: no answer of their own, the edit's new answer, or
    a fact that the edit is to change as well. Of the others `most` stay, for each kind."""
    changed = [(plain(r.subject), plain(r.old), plain(r.questions[0].prompt)) for r in records]

    def asked_for(prompt: str, own: str) -> bool:
        return any(
            prompt == text or (own == old and mentions(prompt, subject))
            for subject, old, text in changed
        )

    for record in records:
        kept: list[Question] = []
        count: dict[str, int] = {}
        for question in record.questions:
            if question.kind in ("neighbour", "neighbour_plus"):
                own = plain(question.old)
                count.setdefault(question.kind, 0)
                if (
                    not own
                    or own == plain(record.new)
                    or asked_for(plain(bare(record, question)), own)
                ):
                    continue
                if count[question.kind] == most:
                    continue
                count[question.kind] += 1
            kept.append(question)
        record.questions = kept
