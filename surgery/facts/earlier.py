"""Keys of facts that earlier edits of the stack have set, as the model computes them now.

They are read off the specs the deltas carry, so nothing has to be remembered between runs, and the
keys are those of the present weights (the released AlphaEdit code, too, re-reads them after an update).
"""

from __future__ import annotations

from typing import Any

import torch

from surgery.facts.capture import fact_keys
from surgery.facts.requests import request
from surgery.model import Model
from surgery.spec import Fact
from surgery.stack.memory import stack


def earlier_edits(model: Model) -> list[dict[str, Any]]:
    """Every edit that is in the model, as its spec says it, oldest first."""
    specs = [delta.metadata.get("spec") or {} for delta in stack(model)]
    return [edit for spec in specs for edit in spec.get("edits", [])]


def earlier_facts(model: Model) -> int:
    """How many facts earlier edits have changed."""
    lists = [edit.get("facts") for edit in earlier_edits(model)]
    return sum(len(facts) for facts in lists if isinstance(facts, list))


def earlier_keys(model: Model, layer: int) -> torch.Tensor | None:
    """Keys (d_ff, n) of earlier facts at a layer, or None."""
    found = []
    for edit in earlier_edits(model):
        facts = edit.get("facts")
        if isinstance(facts, list) and facts:
            requests = [
                request(model, Fact.model_validate(fact), edit.get("prefixes") or [])
                for fact in facts
            ]
            found.append(fact_keys(model, requests, [layer])[layer])
    return torch.cat(found, dim=1) if found else None
