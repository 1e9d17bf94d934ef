"""What the tests of the workbench share."""

from __future__ import annotations

from surgery.spec import EditSpec
from ui.actions import edits
from ui.session import Bench

FACT = """version: 1
edits:
  - kind: rome
    facts:
      - prompt: The capital of {} is
        subject: France
        target: Rome
    layer: 1
    steps: 4
    contexts: 0
    statistics_tokens: 400
"""
OTHER = FACT.replace("France", "Japan").replace("Rome", "Madrid")


def solve(bench: Bench, text: str = FACT) -> str:
    """Solve a spec on the bench; returns the id of the edit."""
    return edits.solve(bench, EditSpec.parse(text))().delta.id
