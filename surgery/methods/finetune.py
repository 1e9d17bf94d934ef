"""Constrained fine-tuning of one matrix: the honest baseline every fact edit must beat.

FT-L (Zhu et al., arXiv 2012.00363): Adam on one down projection for the new answers' likelihood, each
weight kept within `norm_limit` of where it was. Nothing protects what else the matrix knows.
"""

from __future__ import annotations

import torch
from torch import nn

from surgery.delta import Dense
from surgery.facts.requests import load_facts
from surgery.facts.rows import row
from surgery.methods.rome import choose_layer
from surgery.methods.solved import Solved, weight_key
from surgery.model import Model, pad
from surgery.progress import meter
from surgery.spec import FinetuneEdit


def solve_finetune(part: FinetuneEdit, model: Model, seed: int) -> Solved:
    """Solve a finetune part. The model's own weights are left alone; the change is trained beside them."""
    layer = choose_layer(part.layer, model)
    facts = load_facts(part.facts)
    rows = [row(model, fact.template, fact.subject, fact.target) for fact in facts]
    batch = pad([r.ids for r in rows], model)
    labels = batch.ids.masked_fill(batch.mask == 0, -100)
    for index, one in enumerate(rows):
        labels[index, : one.answer] = -100

    key = weight_key(model, layer)
    weight = model.parameter(key)
    original = weight.detach().clone()
    change = torch.zeros_like(original, dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=part.learning_rate)
    name = next(n for n, p in model.hf.named_parameters() if p is weight)
    steps = 0
    loss = torch.tensor(float("nan"))
    with meter("fine-tuning", part.steps, unit="step") as progress:
        for _ in range(part.steps):
            logits = torch.func.functional_call(
                model.hf,
                {name: original + change.to(original.dtype)},
                kwargs={**batch.inputs(), "use_cache": False},
                tie_weights=True,
            ).logits.float()
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
            )
            progress.advance()
            if loss.item() < part.stop_loss:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            if part.norm_limit is not None:
                with torch.no_grad():
                    change.clamp_(-part.norm_limit, part.norm_limit)
    filled = part.model_copy(update={"facts": facts, "layer": layer})
    return Solved(
        {key: Dense(change.detach().float().cpu())},
        filled,
        {"loss": loss.item(), "steps": steps},
    )
