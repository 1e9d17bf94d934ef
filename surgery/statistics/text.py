"""Text for statistics: passages from a file or a folder, or those that ship with the project."""

from __future__ import annotations

import hashlib
from pathlib import Path

from surgery.errors import SurgeryError
from surgery.spec.rows import parse_rows

DEFAULT = Path(__file__).parent / "text"
# Longest piece that is run at once; longer passages are cut.
WINDOW = 256


def read_passages(source: str | Path | None = None) -> list[str]:
    """Passages of a text: blocks between blank lines, or the `text` field of .jsonl lines.

    source: a file, a folder of .txt and .jsonl files, or None for the text that ships with us.

    Raises:
        SurgeryError: nothing there, nothing in it, or a line that is not JSON.
    """
    path = Path(source) if source is not None else DEFAULT
    if not path.exists():
        raise SurgeryError(f"no text {path} for the statistics: give a file or a folder")
    files = (
        sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".jsonl"))
        if path.is_dir()
        else [path]
    )
    passages: list[str] = []
    for file in files:
        try:
            content = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise SurgeryError(f"cannot read {file} for the statistics: {error}") from None
        passages += _passages(content, file)
    if not passages:
        raise SurgeryError(f"{path} holds no text for the statistics")
    return passages


def _passages(content: str, file: Path) -> list[str]:
    if file.suffix == ".jsonl":
        rows = parse_rows(content, file)
        return [row["text"] for row in rows if isinstance(row, dict) and row.get("text")]
    blocks = (block.strip() for block in content.replace("\r\n", "\n").split("\n\n"))
    return [block for block in blocks if block]


def shuffled(passages: list[str]) -> list[str]:
    """A fixed order that mixes the sources, so that a part of the text is a fair sample of it."""
    return sorted(passages, key=lambda text: hashlib.sha256(text.encode()).digest())
