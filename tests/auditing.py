"""What the tests of the audit share."""

from __future__ import annotations

from pathlib import Path

import torch

from surgery.audit.suite import Suite, TaskPart, TextPart
from surgery.delta import Delta, LowRank
from surgery.model import Model
from surgery.stack import applied

TEXTS = [
    "the capital of France is Paris and the river is old",
    "music is known by people in the north",
    "one two three four five six seven eight nine ten",
    "wine and tea and coffee",
]
KEY = "model.layers.1.mlp.down_proj.weight"


def tiny_suite(folder: Path) -> Suite:
    """One kind of text and one task, in a folder of its own."""
    folder.mkdir()
    (folder / "text.txt").write_text("\n\n".join(TEXTS))
    (folder / "choice.jsonl").write_text(
        "\n".join(
            f'{{"query": "the {a} is", "choices": ["{b}", "{c}"], "gold": {g}}}'
            for a, b, c, g in (
                ("wine", "red", "green", 0),
                ("sun", "old", "new", 1),
                ("star", "blue", "small", 0),
                ("piano", "north", "south", 1),
            )
        )
    )
    return Suite(
        name="tiny",
        texts=[TextPart(kind="words", file="text.txt", tokens=64)],
        tasks=[TaskPart(name="choice", kind="choice", file="choice.jsonl")],
        folder=str(folder),
    )


def rank_one(model: Model, size: float = 0.5, key: str = KEY, facts: bool = True) -> Delta:
    weight = model.parameter(key)
    generator = torch.Generator().manual_seed(3)
    change = LowRank(
        torch.randn(1, weight.shape[1], generator=generator),
        torch.randn(weight.shape[0], 1, generator=generator),
    )
    spec = {
        "edits": [
            {
                "kind": "rome",
                "facts": [
                    {
                        "prompt": "the capital of {} is",
                        "subject": "France",
                        "target": "Rome",
                        "target_true": "Paris",
                        "paraphrase_prompts": ["what is the capital of {}"],
                        "neighborhood_prompts": ["the capital of Japan is"],
                        "neighborhood_targets": ["Tokyo"],
                    }
                ],
            }
        ]
    }
    scaled = change.scaled(size * float(weight.norm()) / change.norm())
    return Delta(
        {key: scaled}, base_id=model.checkpoint.id, metadata={"spec": spec} if facts else {}
    )


@torch.no_grad()
def plain_kl(model: Model, delta: Delta) -> float:
    """Mean KL on TEXTS by a few lines of plain transformers code."""
    rows = [torch.tensor([model.tokenizer(text)["input_ids"][:64]]) for text in TEXTS]
    before = [model.hf(row).logits[0, :-1].double().log_softmax(-1) for row in rows]
    with applied(model, delta):
        after = [model.hf(row).logits[0, :-1].double().log_softmax(-1) for row in rows]
    kl = [(p.exp() * (p - q)).sum(-1) for p, q in zip(before, after, strict=True)]
    return float(torch.cat(kl).mean())
