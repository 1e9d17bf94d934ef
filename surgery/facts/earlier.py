"""Keys of facts that earlier edits of the stack have set, as the model computes them now.

They are read off the specs the deltas carry, so nothing has to be remembered between runs, and the
keys are those of the present weights (the released AlphaEdit code, too, re-reads them after an update).
"""

from __future__ import annotations

from typing import Any

import torch

from surgery.facts.capture import capture, context_mean
from surgery.facts.rows import rewriting_rows
from surgery.model import Model
from surgery.spec import Fact
from surgery.stack.memory import stack


def earlier_edits(model: Model) -> list[dict[str, Any]]:
    """Every edit that is in the model, as its spec says it, oldest first."""
    specs = [delta.metadata.get("spec") or {} for delta in stack(model)]
    return [edit for spec in specs for edit in spec.get("edits", [])]


def earlier_keys(model: Model, layer: int) -> torch.Tensor | None:
    """Keys (d_ff, n) of earlier facts at a layer, or None."""
    means = []
    for edit in earlier_edits(model):
        facts = edit.get("facts")
        if not isinstance(facts, list) or not facts:
            continue
        prefixes = edit.get("prefixes") or []
        rows = [
            row
            for fact in facts
            for row in rewriting_rows(model, Fact.model_validate(fact), prefixes)
        ]
        keys = capture(model, rows, keys=[layer]).keys[layer]
        means.append(context_mean(keys, len(prefixes) + 1))
    return torch.cat(means).T if means else None
