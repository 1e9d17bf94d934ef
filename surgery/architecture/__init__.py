"""What models are made of. To add a family: write one file with its table, and list it in TABLES.

The self-test (`surgery.model.selftest`) runs on every load and fails if a table leaves out a writer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgery.architecture.gemma import GEMMA
from surgery.architecture.gpt2 import GPT2
from surgery.architecture.llama import LLAMA
from surgery.architecture.table import Architecture, Component, Layout, Writer
from surgery.errors import SurgeryError

__all__ = ["TABLES", "Architecture", "Component", "Layout", "Writer", "for_config"]

TABLES: tuple[Architecture, ...] = (LLAMA, GPT2, GEMMA)


def for_config(config: Mapping[str, Any]) -> Architecture:
    """The table of a checkpoint, by the `model_type` of its config.json.

    Raises SurgeryError for an unknown type: guessing which modules write into the residual stream is
    how edits get lost silently.
    """
    model_type = config.get("model_type")
    for table in TABLES:
        if model_type in table.model_types:
            return table
    known = ", ".join(t for table in TABLES for t in table.model_types)
    raise SurgeryError(
        f"model_type {model_type!r} is not known (known: {known}): add a table for it as one file in "
        "surgery/architecture/ that names its layers, residual writers and post-norms, and list it in "
        "surgery/architecture/__init__.py"
    )
