"""Names in plain words: of an edit, and of the state the model is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.delta import Delta

KINDS = {
    "rome": "ROME",
    "memit": "MEMIT",
    "alphaedit": "AlphaEdit",
    "emmet": "EMMET",
    "finetune": "fine-tune",
    "ablate": "ablate",
    "delta": "included delta",
}


def label(delta: Delta) -> str:
    """What an edit is called on the screen: its name if it has one, else what it does."""
    spec = delta.metadata.get("spec") or {}
    return str(spec["name"]) if spec.get("name") else what(spec)


def what(spec: Mapping[str, Any]) -> str:
    """What a spec does, in a few words: `ROME France → Rome`, `ablate, strength 0.5`."""
    edits = spec.get("edits") or []
    return " + ".join(_part(edit) for edit in edits) or "edit"


def state_name(base: str, edits: Sequence[tuple[str, bool]]) -> str:
    """The state in one line: base, how many edits, which of them are off."""
    if not edits:
        return f"{base}, no edits"
    count = sum(on for _, on in edits)
    if not count:
        return f"{base}, all edits off: {', '.join(name for name, _ in edits)}"
    names = ", ".join(name if on else f"{name} (off)" for name, on in edits)
    return f"{base} + {count} edit{'s' if count > 1 else ''}: {names}"


def _part(edit: Mapping[str, Any]) -> str:
    kind = str(edit.get("kind", "?"))
    name = KINDS.get(kind, kind)
    facts = edit.get("facts")
    if isinstance(facts, list) and facts:
        first = f"{facts[0].get('subject')} → {facts[0].get('target')}"
        return f"{name} {first}" + (f" and {len(facts) - 1} more" if len(facts) > 1 else "")
    if isinstance(facts, str):
        return f"{name} {_file(facts)}"
    if kind == "ablate":
        strength = edit.get("strength", 1.0)
        return f"{name}, strength {strength:g}" if isinstance(strength, int | float) else name
    if kind == "delta":
        return f"{name} {_file(str(edit.get('path', '')))}"
    return name


def _file(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
