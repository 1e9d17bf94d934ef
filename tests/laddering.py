"""What the tests of the ladder share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from surgery.ladder import FAMILIES as RUNGS
from surgery.ladder import Score
from surgery.ladder.judge import Measured
from surgery.model import Model
from surgery.spec import Fact

# Prompts with hints and turns are long when every letter is a token.
LONG = 768
ALL = [name for family in RUNGS for name in family.rungs]


def room(family: str) -> dict[str, Any]:
    return {"n_positions": LONG} if family == "gpt2" else {"max_position_embeddings": LONG}


def capitals() -> list[Fact]:
    rows = [("France", "Rome", "Paris"), ("Japan", "Paris", "Tokyo"), ("Spain", "Berlin", "Madrid"),
            ("Italy", "Tokyo", "Rome")]  # fmt: skip
    return [
        Fact(prompt="The capital of {} is", subject=s, target=new, target_true=old,
             paraphrase_prompts=("the city people know in {} is",))
        for s, new, old in rows
    ]  # fmt: skip


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.hf.named_parameters()}


def same(model: Model, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in model.hf.named_parameters())


def measured(base: Sequence[int], edited: Sequence[int], *controls: Sequence[int]) -> Measured:
    def scores(known: Sequence[int]) -> list[Score]:
        return [Score(1.0 if k else -1.0) for k in known]

    return Measured("r", "r", "nats", scores(base), scores(edited), [scores(c) for c in controls])
