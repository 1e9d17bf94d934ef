"""What the tests of the command line share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_checkpoint

from surgery.cli import main

SPEC = """
version: 1
name: to rome
edits:
  - kind: rome
    layer: 1
    contexts: 0
    steps: 8
    statistics_tokens: 400
    facts:
      - prompt: The capital of {} is
        subject: France
        target: Rome
        target_true: Paris
"""
SUITE = """
version: 1
name: least
texts:
  - {kind: stories, file: benchmarks/text/stories.txt, passages: 2, tokens: 16}
edit: {neighbours: 1, plus: false, generations: 2}
"""


def make_place(folder: Path) -> Path:
    """A folder with a tiny base, a spec and a suite."""
    (folder / "base").symlink_to(tiny_checkpoint(folder, "llama"), target_is_directory=True)
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "suite.yaml").write_text(SUITE)
    return folder


def call(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, Any, str]:
    """Exit code, what `--json` gave, and standard error."""
    capsys.readouterr()
    code = main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else None, captured.err
