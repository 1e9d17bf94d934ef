"""Items of a task out of its file. Everything becomes a prompt and some choices, or a prompt to answer."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgery.audit.suite import Suite, TaskPart, spread
from surgery.errors import SurgeryError


@dataclass(frozen=True)
class Item:
    """prompt and choices; gold is the right one's place. A cloze has its answer as the only choice,
    a request has none. join: the choice follows the prompt as writing has it, with a space. row: as it
    stands in the file, for tasks that somebody else frames."""

    id: str
    prompt: str
    choices: tuple[str, ...] = ()
    gold: int = 0
    group: str | None = None
    join: bool = True
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.prompt or " / ".join(self.choices)


@dataclass(frozen=True)
class Task:
    """A part of a suite with its items in hand."""

    part: TaskPart
    items: list[Item] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def label(self) -> str:
        return self.part.label or self.part.name

    @property
    def chance(self) -> float:
        """What guessing gets right."""
        if self.part.chance is not None:
            return self.part.chance
        sizes = [len(item.choices) for item in self.items if len(item.choices) > 1]
        return sum(1 / size for size in sizes) / len(sizes) if sizes else 0.0


def read_task(suite: Suite, part: TaskPart) -> Task:
    """Read the items a suite takes of a task.

    Raises:
        SurgeryError: no file, not JSON, or a row that lacks a field; names the row.
    """
    if part.file is None:
        raise SurgeryError(f"suite {suite.name}: the task {part.name} names no file")
    path = suite.file(part.file)
    rows = read_rows(path)
    make = _MAKERS[part.kind]
    numbered = list(enumerate(rows, start=1))
    chosen = _chosen(numbered, part)
    items = []
    try:
        for number, row in chosen:
            named = {**row, **{ours: row[theirs] for ours, theirs in part.fields.items()}}
            items.append(make(named, f"{part.name}/{number}", part, rows))
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise SurgeryError(f"{path}, row {number}: not a {part.kind} item ({error!r})") from None
    if not items:
        raise SurgeryError(f"{path} holds no items for the task {part.name}")
    return Task(part, items)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .json or .csv file."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        if path.suffix == ".csv":
            return list(csv.DictReader(text.splitlines(keepends=True)))
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise SurgeryError(f"{path} is not JSON: {error}") from None


def _chosen(rows: list[tuple[int, dict[str, Any]]], part: TaskPart) -> list[Any]:
    """The rows a suite takes: the same share of every group."""
    if part.items is None or part.items >= len(rows):
        return rows
    if part.group is None:
        return spread(rows, part.items)
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(str(row[1].get(part.group)), []).append(row)
    share = max(1, part.items // len(groups))
    return [row for members in groups.values() for row in spread(members, share)]


# ---------------------------------------------------------------------- one kind each
Row = dict[str, Any]


def _group(row: Row, part: TaskPart) -> str | None:
    return str(row[part.group]) if part.group else None


def _fact(row: Row, name: str, part: TaskPart, rows: list[Row]) -> Item:
    """A fact against three other answers of its relation, drawn by hash: the same ones every time."""
    answer = str(row["answer"])
    relation = row.get("relation")
    others = sorted({str(o["answer"]) for o in rows if o.get("relation") == relation} - {answer})
    prompt = str(row["prompt"]).replace("{}", str(row["subject"]))
    drawn = sorted(others, key=lambda o: hashlib.sha256(f"{prompt}|{o}".encode()).digest())[:3]
    return Item(name, prompt, (answer, *drawn), 0, _group(row, part))


def _choice(row: Row, name: str, part: TaskPart, _rows: list[Row]) -> Item:
    query = str(row["query"])
    suffix = part.options.get("suffix", "\nAnswer:" if query.startswith("Question:") else "")
    choices = tuple(str(choice) for choice in row["choices"])
    gold = int(row["gold"])
    if not 0 <= gold < len(choices):
        raise ValueError(f"gold {gold} of {len(choices)} choices")
    return Item(name, query + suffix, choices, gold, _group(row, part))


def _cloze(row: Row, name: str, part: TaskPart, _rows: list[Row]) -> Item:
    return Item(name, str(row["context"]), (str(row["continuation"]),), 0, _group(row, part))


def _pair(row: Row, name: str, part: TaskPart, _rows: list[Row]) -> Item:
    return Item(name, "", (str(row["good"]), str(row["bad"])), 0, _group(row, part), join=False)


def _request(row: Row, name: str, part: TaskPart, _rows: list[Row]) -> Item:
    return Item(name, str(row["prompt"]), (), 0, _group(row, part))


def _harness(row: Row, name: str, part: TaskPart, _rows: list[Row]) -> Item:
    """Choices and gold where they are plain fields; the frame is the harness's."""
    choices = row.get("choices")
    gold = row.get("gold", 0)
    plain = isinstance(choices, list) and isinstance(gold, int)
    text = str(row.get("query") or row.get("question") or row.get("prompt") or name)
    shown = tuple(map(str, choices)) if plain else ()  # type: ignore[arg-type]
    return Item(name, text, shown, gold if plain else 0, _group(row, part), row=row)


_MAKERS: dict[str, Callable[[Row, str, TaskPart, list[Row]], Item]] = {
    "facts": _fact,
    "choice": _choice,
    "cloze": _cloze,
    "pairs": _pair,
    "requests": _request,
    "harness": _harness,
}
