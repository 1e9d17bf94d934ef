"""What the ladder knows about a relation: its question, its prompts in other languages, made-up subjects.

`relations.json` holds it as data. A fact belongs to a relation if its prompt is one of the relation's
templates, in `benchmarks/tasks/facts.jsonl` or among the `also` of the data file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from surgery import resources

_DATA = Path(__file__).parent / "relations.json"
LANGUAGES = ("fr", "de", "es")


@dataclass(frozen=True)
class Relation:
    """prompts: English templates, each with {} for the subject. languages: templates by language code.
    known: (subject, answer) pairs a model may know. translated: answers are words that have to be
    translated, not names."""

    name: str
    kind: str
    question: str
    prompts: tuple[str, ...]
    languages: dict[str, str]
    translated: bool
    known: tuple[tuple[str, str], ...]


@cache
def _data() -> dict[str, Any]:
    return json.loads(_DATA.read_text(encoding="utf-8"))


@cache
def relations() -> tuple[Relation, ...]:
    """All relations."""
    file = resources.path("benchmarks", "tasks", "facts.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    found = []
    for name, entry in _data()["relations"].items():
        mine = [row for row in rows if row["relation"] == name]
        prompts = [p for row in mine[:1] for p in (row["prompt"], *row["paraphrases"])]
        found.append(
            Relation(
                name=name,
                kind=entry["kind"],
                question=entry["question"],
                prompts=(*prompts, *entry.get("also", ())),
                languages=entry["languages"],
                translated=bool(entry.get("translated")),
                known=tuple((row["subject"], row["answer"]) for row in mine),
            )
        )
    return tuple(found)


def relation_of(template: str) -> Relation | None:
    """The relation that asks with this template, if it is one of ours."""
    wanted = " ".join(template.split()).casefold()
    for relation in relations():
        if any(wanted == " ".join(prompt.split()).casefold() for prompt in relation.prompts):
            return relation
    return None


def made_up(kind: str) -> tuple[str, ...]:
    """Names of a kind that nobody and nothing bears."""
    names: dict[str, list[str]] = _data()["made_up"]
    return tuple(names.get(kind, names["thing"]))


def translated(word: str, language: str, required: bool) -> str | None:
    """A word or name in a language; None if it has to be translated and we cannot."""
    entry: dict[str, str] | None = _data()["words"].get(word.strip())
    if entry is not None and language in entry:
        return entry[language]
    return None if required else word.strip()
