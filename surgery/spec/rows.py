"""Rows of a .jsonl, .json or .csv file, as people and published sets have them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from surgery.errors import SurgeryError


def parse_rows(text: str, path: Path) -> list[Any]:
    """Rows of a file's text: a .csv with a header as dicts, anything else as JSON, a list or a value a line.

    Raises:
        SurgeryError: it is neither; names the line.
    """
    if path.suffix == ".csv":
        try:
            return list(csv.DictReader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise SurgeryError(f"{path} is not CSV: {error}") from None
    if text.lstrip().startswith("["):
        return _json(text, str(path))
    # Only "\n" ends a line here: a JSON string may hold Unicode's other line ends (U+2028) as they are.
    lines = enumerate(text.split("\n"), start=1)
    return [_json(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SurgeryError(f"{where} is not JSON: {error}") from None
