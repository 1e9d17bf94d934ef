"""Suites: which texts, tasks and controls an audit uses, as data under benchmarks/suites/."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from surgery import resources
from surgery.errors import SurgeryError

TaskKind = Literal["facts", "choice", "cloze", "pairs", "requests", "harness"]


class SuitePart(BaseModel):
    """Unknown fields are errors: a misspelt limit must not silently mean no limit."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(SuitePart):
    """Passages of one kind of text. file: .txt with blank lines between passages, or .jsonl with a
    `text` field; a path, or the name of a file that ships with the project."""

    kind: str
    file: str
    passages: int | None = Field(default=None, ge=1, description="how many; all by default")
    tokens: int = Field(default=128, ge=2, description="longest passage in tokens")
    field: str = "text"


class TaskPart(SuitePart):
    """A task and how much of it. items are taken evenly over `group`, the same ones every time."""

    name: str
    kind: TaskKind
    file: str | None = None
    label: str | None = None
    items: int | None = Field(default=None, ge=1, description="how many; all by default")
    group: str | None = Field(default=None, description="the field items are grouped by")
    chance: float | None = Field(default=None, ge=0, le=1)
    fields: dict[str, str] = Field(default_factory=dict, description="our name -> the file's name")
    tokens: int = Field(default=32, ge=1, description="how long free answers may be")
    normalize: Literal["none", "characters", "tokens"] = "none"
    options: dict[str, Any] = Field(default_factory=dict)


class EditPart(SuitePart):
    """How the edit itself is checked."""

    neighbours: int = Field(default=10, ge=0, description="most neighbours a fact")
    plus: bool = Field(default=True, description="neighbours after the edited statement")
    generations: int = Field(default=48, ge=0, description="most prompts that are answered freely")
    facts: int | None = Field(default=None, ge=1, description="most facts that are asked about")


class Controls(SuitePart):
    """identity, sham (how many, with seeds from `seed` on; which tasks the first one does), and
    reloads at lower precision."""

    identity: bool = True
    sham: int = Field(default=1, ge=0)
    sham_tasks: bool | list[str] = True
    seed: int = 0
    reload: list[Literal["bfloat16", "int8", "int4"]] = Field(default_factory=list)


class Suite(SuitePart):
    """What an audit measures."""

    version: Literal[1] = 1
    name: str
    texts: list[TextPart] = Field(min_length=1)
    tasks: list[TaskPart] = Field(default_factory=list)
    edit: EditPart = Field(default_factory=EditPart)
    controls: Controls = Field(default_factory=Controls)
    answers: list[str] = Field(default_factory=list, description="general prompts, shown only")
    limits: dict[str, float] = Field(default_factory=dict)
    folder: str = Field(default="", exclude=True)

    @classmethod
    def load(cls, name: str | Path) -> Suite:
        """A suite by name ("quick") or by path.

        Raises:
            SurgeryError: none of that name, or a mistake in it.
        """
        path = Path(name)
        if path.suffix not in (".yaml", ".yml", ".json"):
            folder = resources.path("benchmarks", "suites")
            path = folder / f"{name}.yaml"
            if not path.is_file():
                known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
                raise SurgeryError(
                    f"no suite {str(name)!r} (known: {known}, or the path of a .yaml)"
                )
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        try:
            content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
            suite = cls.model_validate(content)
        except FileNotFoundError:
            raise SurgeryError(f"no suite {path}") from None
        except (OSError, UnicodeDecodeError, YAMLError) as error:
            raise SurgeryError(f"cannot read {path}: {' '.join(str(error).split())}") from None
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(str(part) for part in problem["loc"])
            raise SurgeryError(f"{path}: {place}: {problem['msg']}") from None
        return suite.model_copy(update={"folder": str(path.resolve().parent)})

    @cached_property
    def id(self) -> str:
        """sha256 over the suite and the contents of every file it names."""
        digest = hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode())
        for file in [part.file for part in (*self.texts, *self.tasks)]:
            if file is not None:
                digest.update(self.file(file).read_bytes())
        return digest.hexdigest()

    def file(self, name: str) -> Path:
        """A file the suite names: beside the suite, else among those that ship with the project."""
        given = Path(name).expanduser()
        for path in (given, Path(self.folder) / given) if not given.is_absolute() else (given,):
            if path.is_file():
                return path
        try:
            return resources.path(*given.parts)
        except SurgeryError:
            raise SurgeryError(
                f"suite {self.name} names {name}, which is nowhere to be found"
            ) from None

    def texts_of(self, part: TextPart) -> list[str]:
        """The passages of a part, those the suite takes."""
        path = self.file(part.file)
        content = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in content.splitlines() if line.strip()]
            texts = [str(row[part.field]) for row in rows if row.get(part.field)]
        else:
            texts = [block.strip() for block in content.split("\n\n") if block.strip()]
        return spread(texts, part.passages)


def spread(items: list[Any], most: int | None) -> list[Any]:
    """`most` of the items, evenly over the list and the same every time."""
    if most is None or most >= len(items):
        return items
    return [items[i * len(items) // most] for i in range(most)]
