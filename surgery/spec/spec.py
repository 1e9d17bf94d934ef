"""EditSpec: what to change, as one small file. Loading says the line of every mistake."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError

from surgery.errors import SurgeryError
from surgery.spec.edits import Checks, Edit, Part


class EditSpec(Part):
    """Intent: base, seed, edits in the order they are applied, and the limits the result must keep."""

    version: Literal[1] = 1
    name: str | None = None
    base: str | None = None
    seed: int = 0
    edits: list[Edit] = Field(min_length=1)
    checks: Checks = Field(default_factory=Checks)

    # ------------------------------------------------------------------ identity
    @property
    def id(self) -> str:
        """sha256 of what is asked for. Name, base and checks do not change what is solved."""
        content = self.model_dump(mode="json", exclude={"name", "base", "checks"})
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    # ------------------------------------------------------------------ files
    @classmethod
    def load(cls, path: str | Path) -> EditSpec:
        """Read a spec from YAML 1.2 or JSON, with paths inside it taken relative to the file.

        Raises:
            SurgeryError: missing file, malformed YAML, unknown or wrong field; names the line.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise SurgeryError(f"no spec {path}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise SurgeryError(f"cannot read the spec {path}: {error}") from None
        return cls.parse(text, name=str(path)).resolved(path.parent)

    @classmethod
    def parse(cls, text: str, name: str = "spec") -> EditSpec:
        """Read a spec from text; relative paths stay as they are."""
        data = _yaml(text, name)
        if not isinstance(data, dict):
            raise SurgeryError(f"{name} is not a spec: expected fields such as edits")
        try:
            return cls.model_validate(_plain(data))
        except ValidationError as error:
            raise SurgeryError(_explain(error, data, name)) from None

    def resolved(self, folder: Path) -> EditSpec:
        """The same spec with its relative paths made absolute, as seen from `folder`."""

        def absolute(value: str) -> str:
            return str((folder / value).resolve())

        edits = []
        for edit in self.edits:
            changes: dict[str, Any] = {}
            for field in ("facts", "statistics", "positive", "negative", "spare", "path", "minus"):
                value = getattr(edit, field, None)
                if isinstance(value, str):
                    changes[field] = absolute(value)
            direction = getattr(edit, "direction", None)
            if direction is not None:
                single = isinstance(direction, str)
                files = [direction] if single else direction
                files = [absolute(f) for f in files]
                changes["direction"] = files[0] if single else files
            edits.append(edit.model_copy(update=changes))
        base = absolute(self.base) if self.base is not None else None
        return self.model_copy(update={"edits": edits, "base": base})

    def save(self, path: str | Path) -> None:
        """Write the spec as YAML (or JSON, by the file's ending)."""
        from surgery.checkpoint import atomic_file

        path = Path(path)
        text = self.to_json() if path.suffix == ".json" else self.to_yaml()
        with atomic_file(path) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")

    def to_yaml(self) -> str:
        return yaml_text(self.compact())

    def to_json(self) -> str:
        return json.dumps(self.compact(), indent=2, ensure_ascii=False) + "\n"

    def compact(self) -> dict[str, Any]:
        """The fields that differ from their defaults, `version` and each `kind` always."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        content["edits"] = [
            {"kind": edit.kind, **edit.model_dump(mode="json", exclude_defaults=True)}
            for edit in self.edits
        ]
        return {"version": self.version, **content}


# ---------------------------------------------------------------------- YAML
def yaml_text(data: Any) -> str:
    """Data as YAML, laid out as specs are."""
    from io import StringIO

    from ruamel.yaml import YAML

    writer = YAML()
    writer.default_flow_style = False
    writer.width = 100
    writer.indent(mapping=2, sequence=4, offset=2)
    stream = StringIO()
    writer.dump(data, stream)
    return stream.getvalue()


def _yaml(text: str, name: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    reader = YAML(typ="rt")  # round trip: YAML 1.2, and every node knows its line
    try:
        return reader.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise SurgeryError(f"{name}{place}: not valid YAML: {error.problem}") from None
    except YAMLError as error:
        raise SurgeryError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None


def _plain(node: Any) -> Any:
    """Plain dicts, lists and scalars out of ruamel's annotated ones."""
    from ruamel.yaml.scalarbool import ScalarBoolean

    if isinstance(node, dict):
        return {_plain(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    # A bool is an int to Python, and an anchored one is no bool to ruamel: neither may end as a number.
    if isinstance(node, bool | ScalarBoolean):
        return bool(node)
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _explain(error: ValidationError, data: Any, name: str) -> str:
    """The most telling complaint in one line, with the line of the field it is about."""
    problems = error.errors()
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    whole = problem["loc"]
    location = [part for i, part in enumerate(whole) if not _is_union_tag(part, whole[:i], data)]
    line = _line(data, location)
    field = ".".join(str(part) for part in location)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = f"unknown field {location[-1]!r}{_suggestion(problem, data, location)}"
        field = ".".join(str(part) for part in location[:-1])
    elif problem["type"] == "union_tag_invalid":
        context = problem.get("ctx", {})
        message = f"unknown kind {context.get('tag')!r} (known: {context.get('expected_tags')})"
    elif problem["type"] == "union_tag_not_found":
        message = "needs a kind, such as kind: rome"
    where = f"{name}, line {line}" if line else name
    return f"{where}: {field + ': ' if field else ''}{message}"


def _is_union_tag(part: Any, before: tuple[Any, ...], data: Any) -> bool:
    """pydantic names the union member it tried in the path; such parts are not in the data."""
    if not isinstance(part, str):
        return False
    node = data
    for step in before:
        node = _step(node, step)
    present = isinstance(node, dict) and part in node
    return not present and ("[" in part or part in _kinds() | {"str", "float", "int", "Fact"})


def _kinds() -> set[str]:
    """Every `kind` an edit may have."""
    members = get_args(get_args(Edit)[0])
    return {member.model_fields["kind"].default for member in members}


def _step(node: Any, step: Any) -> Any:
    try:
        return node[step]
    except (KeyError, IndexError, TypeError):
        return node


def _line(data: Any, location: list[Any]) -> int | None:
    node, line = data, None
    for step in location:
        marks = getattr(node, "lc", None)
        if marks is not None:
            try:
                line = (marks.key(step) if isinstance(node, dict) else marks.item(step))[0] + 1
            except (KeyError, IndexError, TypeError):
                line = line or marks.line + 1
        node = _step(node, step)
    return line


def _suggestion(problem: Any, data: Any, location: list[Any]) -> str:
    from difflib import get_close_matches

    from surgery.spec import edits, facts

    node = data
    for step in location[:-1]:
        node = _step(node, step)
    known: set[str] = set()
    kind = node.get("kind") if isinstance(node, dict) else None
    for model in vars(edits).values():
        if isinstance(model, type) and issubclass(model, Part):
            tag = model.model_fields.get("kind")
            if tag is not None and tag.default == kind:
                known = set(model.model_fields)
    if not known:
        known = set(facts.Fact.model_fields) if "facts" in location else set(EditSpec.model_fields)
        known |= set(Checks.model_fields) if "checks" in location else set()
    close = get_close_matches(str(location[-1]), known, n=1)
    return f", did you mean {close[0]!r}?" if close else f" (known: {', '.join(sorted(known))})"
