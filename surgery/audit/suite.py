"""Suites: which texts, tasks and controls an audit uses, as data under benchmarks/suites/."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from surgery import resources
from surgery.audit.files import locate, read_rows, read_text
from surgery.audit.formats import Format, converted, wikitext
from surgery.errors import SurgeryError
from surgery.measure.sample import spread
from surgery.spec.facts import first_problem

TaskKind = Literal["facts", "choice", "cloze", "pairs", "schema", "requests", "harness"]


class SuitePart(BaseModel):
    """Unknown fields are errors: a misspelt limit must not silently mean no limit."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(SuitePart):
    """Passages of one kind of text. file: .txt with blank lines between passages, or .jsonl, .json or
    .csv with a `text` field (or another one, `field`); see `Suite.file` for where it may lie."""

    kind: str
    file: str
    passages: int | None = Field(default=None, ge=1, description="how many; all by default")
    tokens: int = Field(default=128, ge=2, description="longest passage in tokens")
    field: str = "text"
    format: Literal["wikitext"] | Format | None = None


class TaskPart(SuitePart):
    """A task and how much of it. items are taken evenly over `group`, the same ones every time.

    format: a published one, see `formats`. fields: our name -> the file's name. where: only rows whose
    fields have these values.
    """

    name: str
    kind: TaskKind
    file: str | None = None
    label: str | None = None
    items: int | None = Field(default=None, ge=1, description="how many; all by default")
    group: str | None = Field(default=None, description="the field items are grouped by")
    chance: float | None = Field(default=None, ge=0, le=1)
    format: Format | None = None
    fields: dict[str, str] = Field(default_factory=dict, description="our name -> the file's name")
    where: dict[str, str] = Field(default_factory=dict)
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
    """What an audit measures.

    optional: parts whose file is nowhere to be found are left out, and the report says so; otherwise
    that is an error. folder: of the suite file. data: where else its files may lie. absent: files of
    the parts that were left out.
    """

    version: Literal[1] = 1
    name: str
    texts: list[TextPart] = Field(min_length=1)
    tasks: list[TaskPart] = Field(default_factory=list)
    edit: EditPart = Field(default_factory=EditPart)
    controls: Controls = Field(default_factory=Controls)
    answers: list[str] = Field(default_factory=list, description="general prompts, shown only")
    answer_tokens: int = Field(default=40, ge=1, description="how long answers to prompts may be")
    limits: dict[str, float] = Field(default_factory=dict)
    optional: bool = False
    folder: str = Field(default="", exclude=True)
    data: tuple[str, ...] = Field(default=(), exclude=True, strict=False)
    absent: tuple[str, ...] = Field(default=(), exclude=True, strict=False)

    @classmethod
    def load(
        cls, name: str | Path, data: Sequence[str | Path] = (), items: int | None = None
    ) -> Suite:
        """A suite by name ("quick") or by path.

        data: folders its files may lie in. items: at most so many of every task, and passages of every
        kind of text.

        Raises:
            SurgeryError: none of that name, a mistake in it, no such folder, or a file that is missing.
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
            raise SurgeryError(f"{path}: {first_problem(error)}") from None
        for folder in data:
            if not Path(folder).is_dir():
                raise SurgeryError(f"no folder {folder}")
        places = {"folder": str(path.resolve().parent), "data": tuple(str(d) for d in data)}
        return suite.model_copy(update=places)._at_most(items)._present()

    def _at_most(self, items: int | None) -> Suite:
        if items is None:
            return self
        if items < 1:
            raise SurgeryError(f"{items} items of a task: at least one has to be asked")
        texts = [
            part.model_copy(update={"passages": min(items, part.passages or items)})
            for part in self.texts
        ]
        tasks = [
            part.model_copy(update={"items": min(items, part.items or items)})
            for part in self.tasks
        ]
        return self.model_copy(update={"texts": texts, "tasks": tasks})

    def _present(self) -> Suite:
        """Without the parts whose file is not there, if the suite allows that."""
        if not self.optional:
            return self
        named = {part.file for part in (*self.texts, *self.tasks) if part.file is not None}
        absent = {name for name in named if locate(name, self._folders) is None}
        shipped = {name for name in named if name.startswith("benchmarks/")}
        if absent and absent == named - shipped:
            raise SurgeryError(
                f"suite {self.name} is about data of your own: say where it lies with --data DIR "
                f"(it looks for {', '.join(sorted(absent)[:3])}, ...)"
            )
        return self.model_copy(
            update={
                "texts": [part for part in self.texts if part.file not in absent],
                "tasks": [part for part in self.tasks if part.file not in absent],
                "absent": tuple(sorted(absent)),
            }
        )

    def notes(self) -> list[str]:
        """What the report must say about the suite."""
        if not self.absent:
            return []
        return [f"not measured, because there is no such file: {', '.join(self.absent)}"]

    @property
    def _folders(self) -> list[Path]:
        return [*map(Path, self.data), Path(self.folder)]

    @cached_property
    def id(self) -> str:
        """sha256 over the suite and the contents of every file it names."""
        digest = hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode())
        for file in [part.file for part in (*self.texts, *self.tasks)]:
            if file is not None:
                digest.update(self.file(file).read_bytes())
        return digest.hexdigest()

    def file(self, name: str) -> Path:
        """A file the suite names: in the data folders (by its whole name or the last part of it), beside
        the suite, or among those that ship with the project; `hf://datasets/...` is of the hub."""
        found = locate(name, self._folders)
        if found is None:
            raise SurgeryError(f"suite {self.name} names {name}, which is nowhere to be found")
        return found

    def texts_of(self, part: TextPart) -> list[str]:
        """The passages of a part, those the suite takes."""
        path = self.file(part.file)
        if path.suffix in (".jsonl", ".json", ".csv"):
            rows = []
            for number, row in enumerate(read_rows(path), start=1):
                try:
                    rows.append(converted(row, part.format, {}))
                except SurgeryError as error:
                    raise SurgeryError(f"{path}, row {number}: {error}") from None
            texts = [str(row[part.field]).strip() for row in rows if row.get(part.field)]
        else:
            content = read_text(path)
            blocks = wikitext(content) if part.format == "wikitext" else content.split("\n\n")
            texts = [block.strip() for block in blocks if block.strip()]
        if not texts:
            raise SurgeryError(f"{path} holds no text for the suite {self.name}")
        return spread(texts, part.passages)
