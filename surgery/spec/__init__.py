"""Specs: what to change, written down. Plain data; nothing here needs a model."""

from surgery.spec.edits import (
    AblateEdit,
    AlphaEdit,
    Checks,
    DeltaEdit,
    Edit,
    EmmetEdit,
    FactPart,
    FinetuneEdit,
    MemitEdit,
    RomeEdit,
    SpreadPart,
)
from surgery.spec.facts import Fact, conflicts, read_facts, stream_facts
from surgery.spec.prompts import read_prompts
from surgery.spec.spec import EditSpec

__all__ = [
    "AblateEdit",
    "AlphaEdit",
    "Checks",
    "DeltaEdit",
    "Edit",
    "EditSpec",
    "EmmetEdit",
    "Fact",
    "FactPart",
    "FinetuneEdit",
    "MemitEdit",
    "RomeEdit",
    "SpreadPart",
    "conflicts",
    "read_facts",
    "read_prompts",
    "stream_facts",
]
