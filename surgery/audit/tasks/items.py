"""Items of a task out of its file. Everything becomes a prompt and some choices, or a prompt to answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from surgery.audit.files import read_rows
from surgery.audit.formats import converted
from surgery.audit.suite import Suite, TaskPart
from surgery.errors import SurgeryError
from surgery.measure.sample import spread


@dataclass(frozen=True)
class Item:
    """prompt and choices; gold is the right one's place. A cloze has its answer as the only choice,
    a request has none. ending: what follows every choice, where those are beginnings (a Winograd
    schema). join: what is scored follows what stands before it as writing has it, with a space. row: as
    it stands in the file, for tasks that somebody else frames."""

    id: str
    prompt: str
    choices: tuple[str, ...] = ()
    gold: int = 0
    group: str | None = None
    ending: str | None = None
    join: bool = True
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        shown = self.prompt or " / ".join(self.choices)
        return shown if self.ending is None else f"{shown} … {self.ending}"

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(what stands before, what is scored) for every choice."""
        if self.ending is not None:
            return [(choice, self.ending) for choice in self.choices]
        return [(self.prompt, choice) for choice in self.choices]


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
    fitting = [
        (number, row)
        for number, row in enumerate(rows, start=1)
        if all(str(row.get(name)) == value for name, value in part.where.items())
    ]
    items = []
    for number, row in _chosen(fitting, part):
        try:
            named = {**row, **{ours: row[theirs] for ours, theirs in part.fields.items()}}
            framed = converted(named, part.format, part.options)
            items.append(make(framed, f"{part.name}/{number}", part, rows))
        except SurgeryError as error:
            raise SurgeryError(f"{path}, row {number}: {error}") from None
        except (KeyError, TypeError, IndexError, ValueError) as error:
            reason = f"not a {part.kind} item ({error!r})"
            raise SurgeryError(f"{path}, row {number}: {reason}") from None
    if not items:
        raise SurgeryError(f"{path} holds no items for the task {part.name}")
    return Task(part, items)


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
    chosen = [row for members in groups.values() for row in spread(members, share)]
    return spread(chosen, part.items)


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
    open_question = query.startswith("Question:") and not query.endswith("Answer:")
    suffix = part.options.get("suffix", "\nAnswer:" if open_question else "")
    choices = tuple(str(choice) for choice in row["choices"])
    gold = int(row["gold"])
    if not 0 <= gold < len(choices):
        raise ValueError(f"gold {gold} of {len(choices)} choices")
    return Item(name, query + suffix, choices, gold, _group(row, part))


def _schema(row: Row, name: str, part: TaskPart, _rows: list[Row]) -> Item:
    """Two beginnings with one end, of which only one makes sense: the end is scored behind each."""
    choices = tuple(str(choice) for choice in row["context_options"])
    gold = int(row["gold"])
    if not 0 <= gold < len(choices):
        raise ValueError(f"gold {gold} of {len(choices)} beginnings")
    return Item(name, "", choices, gold, _group(row, part), ending=str(row["continuation"]))


def _cloze(row: Row, name: str, part: TaskPart, _rows: list[Row]) -> Item:
    return Item(name, str(row["context"]), (str(row["continuation"]),), 0, _group(row, part))


def _pair(row: Row, name: str, part: TaskPart, _rows: list[Row]) -> Item:
    # The harness has a space before a sentence that nothing precedes; ours begin with their first letter.
    lead = str(part.options.get("lead", ""))
    both = (f"{lead}{row['good']}", f"{lead}{row['bad']}")
    return Item(name, "", both, 0, _group(row, part), join=False)


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
    "schema": _schema,
    "requests": _request,
    "harness": _harness,
}
