"""Prompt sets: a list, a .txt with one prompt a line, or a .jsonl / .csv with a prompt field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.errors import SurgeryError
from surgery.spec.rows import parse_rows

# The field names under which published prompt sets keep the prompt itself.
PROMPT_FIELDS = (
    "prompt",
    "question",
    "instruction",
    "goal",
    "Goal",
    "Behavior",
    "text",
    "Question",
)


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Every row of a prompt file as a dict that has at least `prompt`.

    Raises:
        SurgeryError: missing or unreadable file, a row without a prompt, no rows.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SurgeryError(f"no prompt file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SurgeryError(f"cannot read prompts from {path}: {error}") from None

    if path.suffix in (".csv", ".jsonl", ".json"):
        rows = parse_rows(text, path)
    else:
        rows = [line.strip() for line in text.split("\n") if line.strip()]

    records = [_record(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1)]
    if not records:
        raise SurgeryError(f"{path} holds no prompts")
    return records


def read_prompts(source: list[str] | str | Path) -> list[str]:
    """The prompts of a list or a file, in order."""
    if isinstance(source, list):
        if not source:
            raise SurgeryError("an empty list of prompts")
        return source
    return [record["prompt"] for record in read_records(source)]


def _record(row: Any, where: str) -> dict[str, Any]:
    if isinstance(row, str):
        return {"prompt": row}
    if isinstance(row, dict):
        for field in PROMPT_FIELDS:
            if isinstance(row.get(field), str) and row[field].strip():
                return {**row, "prompt": row[field].strip()}
        turns = row.get("turns")
        if isinstance(turns, list) and turns and isinstance(turns[0], str):
            return {**row, "prompt": turns[0]}
    raise SurgeryError(f"{where} has no prompt field ({', '.join(PROMPT_FIELDS)})")
