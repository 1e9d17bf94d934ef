"""A Markdown table that grows row by row while a benchmark measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class Table:
    """Printed as it grows, and appended to `out` if that is given."""

    def __init__(self, heading: str, columns: Sequence[str], out: Path | None = None) -> None:
        self._out = out
        self._say(f"{heading}\n")
        self.row(columns)
        self._say("|" + "---|" * len(columns))

    def row(self, cells: Sequence[str]) -> None:
        """One more row."""
        self._say("| " + " | ".join(cells) + " |")

    def _say(self, line: str) -> None:
        print(line, flush=True)
        if self._out is not None:
            with self._out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
