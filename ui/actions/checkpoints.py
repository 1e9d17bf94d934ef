"""Choosing a checkpoint: which there are, and what one is, before and after loading."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from surgery.errors import SurgeryError
from ui.markup import Raw, esc, facts_list, notice, short
from ui.session import Bench


def known(folder: Path | None = None) -> list[str]:
    """Checkpoint folders below `weights/` here, and `out/`, where edited ones usually go."""
    found = []
    usual = [Path("weights"), Path("out"), Path("out", "workbench"), _shipped()]
    for place in [folder] if folder is not None else usual:
        if place is not None and place.is_dir():
            found += [str(child) for child in sorted(place.iterdir()) if _is_checkpoint(child)]
    unique: dict[Path, str] = {}
    for path in found:
        unique.setdefault(Path(path).resolve(), path)
    return list(unique.values())


def describe(path: str) -> str:
    """What lies in a folder, without loading it: architecture, size, dtype, id, lineage."""
    from surgery.architecture import for_config
    from surgery.checkpoint import Checkpoint
    from surgery.stack import Lineage

    checkpoint = Checkpoint.open(clean(path))
    lineage = Lineage.of(checkpoint)
    numbers = sum(math.prod(ref.shape) for ref in checkpoint.tensors.values())
    size = sum(ref.nbytes for ref in checkpoint.tensors.values())
    rows: list[tuple[str, Any]] = [("Folder", str(checkpoint.path))]
    try:
        table = for_config(checkpoint.config)
        depth = table.n_layers(checkpoint.config)
        rows.append(("Architecture", f"{table.name}, {depth} layers"))
    except SurgeryError as error:
        rows.append(("Architecture", str(error)))
    rows += [
        ("Size", f"{amount(numbers)} parameters, {size / 1e6:,.0f} MB"),
        ("Stored as", checkpoint.dtype),
        ("Tensors", f"{len(checkpoint.tensors)} in {files(len(checkpoint.shards))}"),
        ("Identity", Raw(f"<code>{short(checkpoint.id)}</code>")),
        ("Edited", _lineage(lineage)),
    ]
    return facts_list(rows)


def open_checkpoint(bench: Bench, path: str) -> str:
    """Load a checkpoint; what was loaded before is given up only when that worked."""
    bench.open(clean(path))
    model = bench.model
    held = str(model.dtype).removeprefix("torch.")
    return notice(
        f"{bench.name} is loaded: {model.n_layers} layers, held as {held} on {model.device}.",
        "good",
    )


def clean(path: str) -> Path:
    """A path somebody typed: with ~, and without the quotes of a copied one."""
    text = (path or "").strip().strip("\"'")
    if not text:
        raise SurgeryError("choose a checkpoint, or type the path of its folder")
    return Path(os.path.expanduser(text))


def amount(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def files(count: int) -> str:
    return "one file" if count == 1 else f"{count} files"


def _lineage(lineage: Any) -> Raw:
    if not lineage.edited:
        return Raw("no: this is a base")
    edits = "".join(
        f"<li>{esc(entry.get('name') or 'edit')} <code>{short(entry['id'])}</code></li>"
        for entry in lineage.record["edits"]
    )
    return Raw(f"yes, from base <code>{short(lineage.base_id)}</code><ol>{edits}</ol>")


def _is_checkpoint(path: Path) -> bool:
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def _shipped() -> Path | None:
    from surgery import resources

    folder = resources.root() / "weights"
    return folder if folder.is_dir() else None
