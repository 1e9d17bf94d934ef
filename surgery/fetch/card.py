"""The model card of a fetched folder: where it comes from, and what it is by content."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from surgery.fetch.registry import KnownAdapter, KnownModel

NAME = "README.md"


def write(
    folder: Path,
    name: str,
    entry: KnownModel | KnownAdapter,
    *,
    origin: str,
    note: str,
    identity: str,
) -> None:
    """Write the card; its front matter is what `read` returns."""
    from ruamel.yaml import YAML

    base = entry.base if isinstance(entry, KnownAdapter) else entry.base_model
    source = "adapter" if isinstance(entry, KnownAdapter) else _kind_of(entry, origin)
    front: dict[str, Any] = {"license": entry.licence, "library_name": "transformers"}
    if base and "/" in base:
        front["base_model"] = base
    front["surgery"] = {"name": name, "source": source, "id": identity}
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(front, text)
    lines = [f"---\n{text.getvalue()}---\n", f"# {entry.title}\n", f"From {origin}."]
    if note:
        lines.append(f"Note: {note}.")
    if isinstance(entry, KnownModel):
        lines.append(f"All tensors are {entry.dtype}.")
    lines.append("\nThe `id` above is a hash of the tensors and the config in this folder.")
    (folder / NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """What the card says under `surgery`; empty where there is no such card."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    file = folder / NAME
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n") or "\n---\n" not in text[3:]:
        return {}
    try:
        front = YAML(typ="safe", pure=True).load(text[4:].split("\n---\n", 1)[0])
    except YAMLError:
        return {}
    said = front.get("surgery") if isinstance(front, dict) else None
    return said if isinstance(said, dict) else {}


def _kind_of(entry: KnownModel, origin: str) -> str:
    return next(source.kind for source in entry.sources if source.label == origin)
