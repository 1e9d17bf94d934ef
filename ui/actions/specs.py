"""The edit form and its YAML, each made from the other.

The form knows the fields people use most. Whatever else stands in the YAML (more edits, rarer fields,
comments) stays there: the form writes into the YAML instead of replacing it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.errors import SurgeryError
from surgery.spec import EditSpec
from surgery.spec.spec import yaml_text
from ui.markup import esc, notice

# form -> the kinds it writes, the usual one first
FORMS: dict[str, tuple[str, ...]] = {
    "fact": ("rome", "memit", "emmet", "alphaedit", "finetune"),
    "facts": ("memit", "alphaedit", "emmet", "rome", "finetune"),
    "behaviour": ("ablate",),
    "include": ("delta",),
}
TITLES = {
    "fact": "Change one fact",
    "facts": "Change many facts",
    "behaviour": "Remove, weaken or strengthen a behaviour",
    "include": "Bring in a delta, an adapter or a second checkpoint",
}
# Kinds that edit a run of layers; the others edit one.
SPREAD = {"memit", "alphaedit"}

Values = dict[str, Any]
BLANK: Values = {
    "name": "",
    "seed": 0,
    "method": "rome",
    "prompt": "",
    "subject": "",
    "target": "",
    "layers": "",
    "steps": None,
    "paraphrases": "",
    "neighbours": "",
    "table": [],
    "file": "",
    "positive": "",
    "negative": "",
    "spare": "",
    "read_layer": None,
    "strength": 1.0,
    "path": "",
    "minus": "",
    "scale": 1.0,
}


# ---------------------------------------------------------------------- form to YAML
def to_yaml(form: str, values: Mapping[str, Any], current: str = "") -> str:
    """The YAML of what the form says, keeping what else `current` holds of the same kind of edit."""
    data = _loaded(current)
    first = data["edits"][0] if data.get("edits") else None
    if not isinstance(first, dict) or form_of(first) != form:
        data = {"version": 1, "edits": [{"kind": FORMS[form][0]}]}
        first = data["edits"][0]
    _put(data, "name", _text(values["name"]), before="edits")
    _put(data, "seed", int(values["seed"] or 0) or None, before="edits")
    _WRITERS[form](first, values)
    return yaml_text(data)


def _write_fact(edit: Any, values: Mapping[str, Any]) -> None:
    kept = edit.get("facts")
    fact = kept[0] if isinstance(kept, list) and kept and isinstance(kept[0], dict) else {}
    fact["prompt"] = _text(values["prompt"]) or ""
    fact["subject"] = _text(values["subject"]) or ""
    fact["target"] = _text(values["target"]) or ""
    _put(fact, "paraphrase_prompts", lines(values["paraphrases"]) or None)
    near = lines(values["neighbours"]) or None
    if near != list(fact.get("neighborhood_prompts") or []) or near is None:
        fact.pop("neighborhood_targets", None)  # they belonged to the prompts that were here
    _put(fact, "neighborhood_prompts", near)
    edit["facts"] = [fact]
    _write_method(edit, values)


def _write_facts(edit: Any, values: Mapping[str, Any]) -> None:
    if _text(values["file"]):
        edit["facts"] = _text(values["file"])
    else:
        kept = edit.get("facts") if isinstance(edit.get("facts"), list) else []
        facts = []
        for index, row in enumerate(filled_rows(values["table"])):
            old = kept[index] if index < len(kept) and isinstance(kept[index], dict) else {}
            old.update(zip(("prompt", "subject", "target"), row, strict=True))
            facts.append(old)
        edit["facts"] = facts
    _write_method(edit, values)


def _write_method(edit: Any, values: Mapping[str, Any]) -> None:
    kind = values["method"] or "rome"
    edit["kind"] = kind
    chosen = numbers(values["layers"])
    _put(edit, "layers", chosen if kind in SPREAD and chosen else None)
    _put(edit, "layer", chosen[0] if kind not in SPREAD and chosen else None)
    _put(edit, "steps", int(values["steps"]) if values["steps"] else None)


def _write_behaviour(edit: Any, values: Mapping[str, Any]) -> None:
    for name in ("positive", "negative", "spare"):
        _put(edit, name, prompts(values[name]))
    layer = values["read_layer"]
    _put(edit, "layer", int(layer) if layer is not None and layer != "" else None)
    strength = float(values["strength"] if values["strength"] is not None else 1.0)
    if not isinstance(edit.get("strength"), list | dict):
        _put(edit, "strength", strength if strength != 1.0 else None)


def _write_include(edit: Any, values: Mapping[str, Any]) -> None:
    edit["path"] = _text(values["path"]) or ""
    _put(edit, "minus", _text(values["minus"]))
    scale = float(values["scale"] if values["scale"] is not None else 1.0)
    _put(edit, "scale", scale if scale != 1.0 else None)


_WRITERS = {
    "fact": _write_fact,
    "facts": _write_facts,
    "behaviour": _write_behaviour,
    "include": _write_include,
}


# ---------------------------------------------------------------------- YAML to form
def from_yaml(text: str) -> tuple[str, Values]:
    """Which form shows the first edit of a spec, and with which values.

    Raises:
        SurgeryError: not YAML, or without edits; the form then stays as it is.
    """
    data = _loaded(text, strict=True)
    edits = data.get("edits")
    if not isinstance(edits, list) or not edits or not isinstance(edits[0], dict):
        raise SurgeryError("the spec has no edits yet")
    edit = edits[0]
    form = form_of(edit)
    if form is None:
        raise SurgeryError(f"there is no form for kind {edit.get('kind')!r}: write it as YAML")
    values = dict(BLANK, name=str(data.get("name") or ""), seed=data.get("seed") or 0)
    values["method"] = str(edit.get("kind"))
    layers = edit.get("layers") or ([edit["layer"]] if edit.get("layer") is not None else [])
    values["layers"] = ", ".join(str(layer) for layer in layers) if isinstance(layers, list) else ""
    values["steps"] = edit.get("steps")
    facts = edit.get("facts")
    if form == "fact":
        fact = facts[0] if isinstance(facts, list) and facts else {}
        values |= {k: str(fact.get(k) or "") for k in ("prompt", "subject", "target")}
        values["target"] = str(fact.get("target") or fact.get("target_new") or "")
        values["paraphrases"] = "\n".join(fact.get("paraphrase_prompts") or [])
        values["neighbours"] = "\n".join(fact.get("neighborhood_prompts") or [])
    elif form == "facts":
        if isinstance(facts, str):
            values["file"] = facts
        else:
            values["table"] = [
                [str(f.get(k) or "") for k in ("prompt", "subject", "target")]
                for f in facts or []
                if isinstance(f, dict)
            ]
    elif form == "behaviour":
        for name in ("positive", "negative", "spare"):
            source = edit.get(name)
            values[name] = source if isinstance(source, str) else "\n".join(source or [])
        values["read_layer"] = edit.get("layer")
        strength = edit.get("strength", 1.0)
        values["strength"] = strength if isinstance(strength, int | float) else 1.0
    else:
        values |= {"path": str(edit.get("path") or ""), "minus": str(edit.get("minus") or "")}
        values["scale"] = edit.get("scale", 1.0)
    return form, values


def form_of(edit: Mapping[str, Any]) -> str | None:
    """The form that shows an edit: one fact has a form of its own."""
    kind, facts = edit.get("kind"), edit.get("facts")
    if kind in FORMS["fact"]:
        # A list of any other length than one is the table's; nothing yet is the simple form's.
        many = isinstance(facts, str) or (isinstance(facts, list) and len(facts) != 1)
        return "facts" if many else "fact"
    return next((form for form, kinds in FORMS.items() if kind in kinds), None)


# ---------------------------------------------------------------------- checking
def check(text: str) -> tuple[EditSpec | None, str]:
    """The spec, or None and what is wrong with it, with the line it is about."""
    if not text.strip():
        return None, notice("Nothing to solve yet: fill in the form.", "plain")
    try:
        spec = EditSpec.parse(text)
    except SurgeryError as error:
        return None, _explained(str(error), text)
    count = len(spec.edits)
    more = f" with {count} edits; the form shows the first" if count > 1 else ""
    return spec, notice(f"The spec is complete{more}. Its id is {spec.id[:12]}.", "good")


def _explained(message: str, text: str) -> str:
    found = re.search(r"line (\d+)", message)
    excerpt = ""
    if found:
        number = int(found[1])
        rows = text.splitlines()
        if 0 < number <= len(rows):
            excerpt = f'<pre class="line"><b>{number}</b>{esc(rows[number - 1])}</pre>'
    return f'<div class="notice error" role="alert">{esc(message)}{excerpt}</div>'


# ---------------------------------------------------------------------- ready-made specs
def ready() -> dict[str, Path]:
    """The specs that come with surgery, by a name people can read."""
    from surgery import resources

    folder = resources.root() / "edits"
    return {
        file.stem.replace("_", " ").replace("-", " "): file
        for file in sorted(folder.glob("*.yaml"))
        if re.search(r"^edits:", file.read_text(encoding="utf-8"), re.MULTILINE)
    }


def read_ready(name: str) -> str:
    """One of them as text, with its paths made absolute so that it works from anywhere."""
    found = ready().get(name)
    if found is None:
        raise SurgeryError(f"no ready-made spec {name!r}")
    spec = EditSpec.load(found)
    return spec.model_copy(update={"base": None}).to_yaml()


# ---------------------------------------------------------------------- small readers
def lines(text: str | None) -> list[str]:
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def prompts(text: str | None) -> list[str] | str | None:
    """What stands in a prompt field: a list one a line, or the path of one file."""
    found = lines(text)
    if len(found) == 1 and re.search(r"\.(txt|jsonl|csv)$", found[0]):
        return found[0]
    return found or None


def numbers(text: Any) -> list[int]:
    """Layers as people write them, also while they are still typing: "8", "4, 5", "4-6"."""
    found: list[int] = []
    for first, last in re.findall(r"(\d+)(?:\s*[-–]\s*(\d+))?", str(text or "")):
        # A slip of the finger is no reason to count to a billion.
        found += range(int(first), min(int(last or first), int(first) + 999) + 1)
    return found


def filled_rows(table: Any) -> list[list[str]]:
    """Rows of a table of facts that have something in them, three cells each."""
    rows = (
        table.values.tolist() if hasattr(table, "values") and not isinstance(table, dict) else table
    )
    found = []
    for row in rows or []:
        cells = [_text(c) or "" for c in (list(row) + ["", "", ""])[:3]]
        if any(cells):
            found.append(cells)
    return found


def _loaded(text: str, strict: bool = False) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data = YAML(typ="rt").load(text) if text.strip() else None
    except YAMLError as error:
        if strict:
            raise SurgeryError(f"not valid YAML: {str(error).splitlines()[0]}") from None
        data = None
    return data if isinstance(data, dict) else {}


def _text(value: Any) -> str | None:
    text = "" if value is None or value != value else str(value).strip()
    return text or None


def _put(data: Any, key: str, value: Any, before: str | None = None) -> None:
    """Set a field, or take it out where there is nothing to say."""
    if value is None:
        data.pop(key, None)
    elif key in data or before is None or before not in data or not hasattr(data, "insert"):
        if before is not None and key not in data and before in data:
            rest = {k: data.pop(k) for k in list(data)[list(data).index(before) :]}
            data[key] = value
            data.update(rest)
        else:
            data[key] = value
    else:
        data.insert(list(data).index(before), key, value)
