"""Prompt sets of a flinch test, in three kinds: safe but scary, unsafe, and plainly harmless.

Ours ships with the project. XSTest, OR-Bench, and any .csv, .jsonl or .txt are read by path; where a
file does not say of which kind its prompts are, put the kind before the path: `unsafe=FILE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from surgery import resources
from surgery.errors import SurgeryError
from surgery.spec.prompts import read_records

Kind = Literal["safe_scary", "unsafe", "harmless"]
KINDS: tuple[Kind, ...] = ("safe_scary", "unsafe", "harmless")

# Words published sets use in a label column, or in the name of the file.
_NAMES: dict[str, Kind] = {
    "safe_scary": "safe_scary",
    "safe": "safe_scary",
    "pseudo-harmful": "safe_scary",
    "unsafe": "unsafe",
    "harmful": "unsafe",
    "toxic": "unsafe",
    "harmless": "harmless",
    "benign": "harmless",
}
_LABEL_FIELDS = ("label", "kind", "final_label", "type")


@dataclass(frozen=True)
class Item:
    """One prompt of a set."""

    prompt: str
    kind: Kind


def own() -> list[Item]:
    """The set that comes with the project."""
    return read(str(resources.path("benchmarks", "flinch", "prompts.jsonl")))


def read(source: str) -> list[Item]:
    """Read FILE or KIND=FILE.

    Raises:
        SurgeryError: an unreadable file, or prompts of unknown kind.
    """
    kind, equals, file = source.partition("=")
    fixed: Kind | None = None
    if equals and not Path(source).exists():
        if kind not in KINDS:
            raise SurgeryError(f"{kind!r} is no kind of prompt: use {', '.join(KINDS)}")
        fixed = kind
    else:
        file = source
    records = read_records(file)
    guess = fixed or _by_name(Path(file))
    items = []
    for number, record in enumerate(records, start=1):
        found = fixed or _by_label(record) or guess
        if found is None:
            raise SurgeryError(
                f"{file}, row {number} does not say whether it is safe or unsafe: add a label "
                f"column, or give the kind with the path, such as unsafe={file}"
            )
        items.append(Item(record["prompt"], found))
    return items


def read_all(sources: Sequence[str] | None) -> list[Item]:
    """Several files as one set, each prompt once; the project's own set without any.

    Raises:
        SurgeryError: see `read`; also a prompt that is given as two kinds.
    """
    if not sources:
        return own()
    seen: dict[str, Kind] = {}
    for source in sources:
        for item in read(source):
            if seen.setdefault(item.prompt, item.kind) != item.kind:
                raise SurgeryError(
                    f"{source}: {item.prompt!r} is {item.kind} here and {seen[item.prompt]} before"
                )
    return [Item(prompt, kind) for prompt, kind in seen.items()]


def _by_label(record: dict[str, Any]) -> Kind | None:
    for field in _LABEL_FIELDS:
        value = record.get(field)
        if isinstance(value, str) and value.strip().lower() in _NAMES:
            return _NAMES[value.strip().lower()]
    return None


def _by_name(path: Path) -> Kind | None:
    """OR-Bench and plain lists say it in the file's name only."""
    name = path.stem.lower().replace("-", "_")
    if any(word in name for word in ("unsafe", "toxic", "harmful", "advbench", "harmbench")):
        return "unsafe"
    if any(word in name for word in ("or_bench", "orbench", "scary", "safe")):
        return "safe_scary"
    if "harmless" in name or "benign" in name:
        return "harmless"
    return None


def limited(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` prompts of each kind, spread evenly over the set."""
    found: list[Item] = []
    for kind in KINDS:
        of_kind = [item for item in items if item.kind == kind]
        step = max(1.0, len(of_kind) / most)
        found += [of_kind[int(i * step)] for i in range(min(most, len(of_kind)))]
    return found
