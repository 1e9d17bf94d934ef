"""The report of an audit: everything measured, as data. JSON with a versioned schema.

Readers are generous: fields this version does not know are ignored, fields an older version did not
write take their defaults, and `_upgrade` brings older schemas up to date.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from surgery.errors import SurgeryError
from surgery.spec.facts import first_problem

SCHEMA = "report/1"
Decision = Literal["accept", "warn", "reject"]


class Record(BaseModel):
    """Plain data. Numbers that are not finite are written as null, and the decision says why."""

    model_config = ConfigDict(extra="ignore")


class Side(Record):
    """A checkpoint or an edit, and how to find it again."""

    path: str | None = None
    id: str | None = None
    edits: list[dict[str, Any]] = Field(default_factory=list)


class Figure(Record):
    """One number before, after and under the sham edit.

    name: what limits call it. goal: which way is good; `same` means the base's value is. change:
    edited - base, or the figure itself where the base's value is 0 by definition (KL). interval: 95 %
    bootstrap interval of the change over items. multiple: |change| / |change of the sham|.
    """

    name: str
    label: str
    unit: str = ""
    goal: Literal["higher", "lower", "same"] = "same"
    n: int = 0
    base: float | None = None
    edited: float | None = None
    sham: float | None = None
    change: float | None = None
    interval: tuple[float, float] | None = None
    sham_change: float | None = None
    multiple: float | None = None


class Question(Record):
    """One prompt about a fact, scored for the new and the old answer.

    Probabilities are exp(-mean token NLL). `said_*`: what greedy generation gives.
    """

    kind: Literal["direct", "paraphrase", "neighbour", "neighbour_plus"]
    prompt: str
    new: str
    old: str | None = None
    base_new: float | None = None
    base_old: float | None = None
    edited_new: float | None = None
    edited_old: float | None = None
    sham_new: float | None = None
    sham_old: float | None = None
    base_greedy: bool | None = None
    edited_greedy: bool | None = None
    sham_greedy: bool | None = None
    said_before: str | None = None
    said_after: str | None = None


class FactRecord(Record):
    """A fact and every question about it."""

    prompt: str
    subject: str
    new: str
    old: str | None = None
    edit: str | None = None
    earlier: bool = False
    questions: list[Question] = Field(default_factory=list)


class Item(Record):
    """One item of a task on both sides: right or wrong, and what was preferred or said."""

    id: str
    text: str
    group: str | None = None
    base: bool
    edited: bool
    sham: bool | None = None
    gold: str | None = None
    base_answer: str | None = None
    edited_answer: str | None = None


class TaskResult(Record):
    """A task on the same items for base and edited.

    lost, gained: items that changed. p: exact McNemar, two-sided; p_holm corrected over tasks.
    measurable: False when the base itself is at chance, with the reason in `note`; then nothing is
    concluded from the task.
    """

    name: str
    label: str
    kind: str
    n: int
    chance: float
    base: float
    edited: float
    sham: float | None = None
    change: float = 0.0
    interval: tuple[float, float] | None = None
    lost: int = 0
    gained: int = 0
    p: float = 1.0
    p_holm: float = 1.0
    measurable: bool = True
    note: str = ""
    groups: dict[str, dict[str, float]] = Field(default_factory=dict)
    items: list[Item] = Field(default_factory=list)


class TextKind(Record):
    """Unrelated text of one kind. KL in nats a token."""

    kind: str
    tokens: int
    kl: float | None = None
    kl_p95: float | None = None
    kl_max: float | None = None
    agreement: float | None = None
    perplexity_base: float | None = None
    perplexity_edited: float | None = None
    perplexity_sham: float | None = None
    kl_sham: float | None = None


class TensorChange(Record):
    """What happened to one tensor. norm: ||dW||_F / ||W||_F. scale: the least-squares factor by which
    the tensor was multiplied, given when that explains the change. kept_*: share of the change, along
    itself, that is left after rounding to so many bits (groups of 128 along a row)."""

    key: str
    shape: list[int]
    dtype: str
    norm: float | None = None
    rank: int | None = None
    largest: float | None = None
    scale: float | None = None
    stored: float | None = None
    kept_int8: float | None = None
    kept_int4: float | None = None
    declared: bool = True
    finite: bool = True


class Answer(Record):
    """The same prompt before and after."""

    prompt: str
    kind: str
    before: str
    after: str
    note: str = ""


class Verdict(Record):
    """decision, the reason in one line, and every limit that was crossed or nearly."""

    decision: Decision
    reason: str
    findings: list[dict[str, Any]] = Field(default_factory=list)
    limits: dict[str, float] = Field(default_factory=dict)


class Report(Record):
    """Everything an audit found. `to_json`, `from_json`, `html()`, `text()`."""

    schema_version: str = SCHEMA
    suite: str
    suite_id: str = ""
    created: str = ""
    base: Side
    edited: Side
    spec: dict[str, Any] | None = None
    environment: dict[str, Any] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    verdict: Verdict
    figures: list[Figure] = Field(default_factory=list)
    facts: list[FactRecord] = Field(default_factory=list)
    tasks: list[TaskResult] = Field(default_factory=list)
    texts: list[TextKind] = Field(default_factory=list)
    layers: dict[str, list[float | None]] = Field(default_factory=dict)
    weights: list[TensorChange] = Field(default_factory=list)
    answers: list[Answer] = Field(default_factory=list)
    controls: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    def figure(self, name: str) -> Figure:
        """The figure of that name; KeyError if it was not measured."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(name)

    def value(self, name: str) -> float | None:
        """The edited side of a figure, None where it was not measured."""
        return next((figure.edited for figure in self.figures if figure.name == name), None)

    def summary(self) -> dict[str, Any]:
        """What fits into `surgery.json` and a model card."""
        return {
            "suite": self.suite,
            "verdict": self.verdict.decision,
            "reason": self.verdict.reason,
            "created": self.created,
            "figures": {f.name: {"base": f.base, "edited": f.edited, "sham": f.sham}
                        for f in self.figures},
        }  # fmt: skip

    # ------------------------------------------------------------------ in and out
    def to_json(self) -> str:
        content = finite(self.model_dump(mode="json"))
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str = "report") -> Report:
        """Read a report of this or an older schema.

        Raises:
            SurgeryError: not JSON, not a report, or of a newer schema than this version knows.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise SurgeryError(f"{name} is not JSON: {error}") from None
        version = content.get("schema_version") if isinstance(content, dict) else None
        if not isinstance(version, str) or not version.startswith("report/"):
            raise SurgeryError(f"{name} is not an audit report")
        try:
            return cls.model_validate(_upgrade(content, name))
        except ValidationError as error:
            raise SurgeryError(f"{name}: {first_problem(error)}") from None

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a report file."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            raise SurgeryError(f"no report {path}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise SurgeryError(f"cannot read the report {path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write JSON, or the page if the name ends in .html."""
        from surgery.checkpoint import atomic_file

        path = Path(path)
        text = self.html() if path.suffix in (".html", ".htm") else self.to_json()
        with atomic_file(path) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")

    def html(self) -> str:
        """One self-contained page for people who are not specialists."""
        from surgery.audit.page import page

        return page(self)

    def text(self) -> str:
        """A compact plain table for a terminal."""
        from surgery.audit.table import table

        return table(self)


def _upgrade(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Older schemas, one step at a time."""
    try:
        number = int(content["schema_version"].removeprefix("report/"))
    except ValueError:
        raise SurgeryError(f"{name} has no schema version: {content['schema_version']!r}") from None
    current = int(SCHEMA.removeprefix("report/"))
    if number > current:
        raise SurgeryError(
            f"{name} has the schema report/{number}; this version reads up to {SCHEMA}: upgrade"
        )
    return content


def finite(value: Any) -> Any:
    """The same data with numbers that JSON cannot hold as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
