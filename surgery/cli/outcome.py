"""What a command hands back: data for programs, text for people, and the exit code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DONE, WRONG_INPUT, WRONG_USAGE, REJECTED, INTERRUPTED = 0, 1, 2, 3, 130


@dataclass
class Outcome:
    """The result of a command.

    data: what `--json` prints; plain JSON values, paths as text. text: what a person reads; nothing
    is printed if it is empty. code: 0 done, 3 the gate rejected.
    """

    data: dict[str, Any]
    text: str
    code: int = DONE
