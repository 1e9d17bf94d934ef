"""The target: the vector that, added at the subject's last token, makes the model say the new answer.

For each fact, find a d that brings down (Meng et al., arXiv 2202.05262 eq. 4; 2210.07229 eq. 16)

    mean NLL of the answer over the contexts
    + kl_factor * KL(p_0 || p) of the next token after "{subject} is a", read at the subject
    + weight_decay * |d| / |v_0|^2,            subject to |d| <= clamp * |v_0|,

until it is below `stop_loss`. The papers use Adam: some fifteen steps, each of about the same length
whatever the gradient, and a d that is long for what it does. Here each step is the shortest that would
be enough if the margins of the answers were linear in d (see margins.py), within a radius that grows
while that holds and shrinks when it does not. It takes half to a third of the steps, and a shorter d
leaves more of the model as it was; all the more so when "short" means hardly noticed by ordinary text
(`metric`, see statistics/sensitivity.py). With a `learning_rate` it is the papers' Adam; edits of a single
layer use that (see rome.py).

Facts are solved side by side, each with its own d, and leave the batch when they have converged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from surgery.facts.bucket import Site, tail_length
from surgery.facts.problem import Losses, Problem
from surgery.facts.rows import Row
from surgery.facts.search import Adam, Search, Seen, Shortest, Terms
from surgery.model import Model
from surgery.progress import meter


@dataclass(frozen=True)
class TargetSettings:
    """Numbers of the target solver.

    site: `stream` adds d to the block's output; `value` to the output of its down projection, which on
    a post-norm model is not the same thing. The rest is explained at `Terms`.
    """

    layer: int
    site: Site = "value"
    steps: int = 25
    aim: float = 0.05
    clamp: float = 4.0
    kl_factor: float = 0.0625
    weight_decay: float = 1e-3
    stop_loss: float = 0.05
    learning_rate: float | None = None

    @property
    def terms(self) -> Terms:
        return Terms(**{field.name: getattr(self, field.name) for field in fields(Terms)})


@dataclass(frozen=True)
class Targets:
    """What was found, one line a fact: the change d and the vector v_0 it starts from (facts, d_model),
    its loss and the parts of it, and the steps taken."""

    change: torch.Tensor
    start: torch.Tensor
    loss: torch.Tensor
    nll: torch.Tensor
    kl: torch.Tensor
    steps: torch.Tensor

    @property
    def probability(self) -> torch.Tensor:
        """The answer's mean probability over the contexts."""
        return (-self.nll).exp()

    def __getitem__(self, facts: torch.Tensor) -> Targets:
        """The same for some of the facts: indices, or a mask."""
        return Targets(*(getattr(self, field.name)[facts] for field in fields(self)))


def solve_targets(
    model: Model,
    rewriting: Sequence[Sequence[Row]],
    essence: Sequence[Row],
    settings: TargetSettings,
    metric: torch.Tensor | None = None,
    batch_rows: int = 256,
) -> Targets:
    """Solve for every fact: `rewriting[f]` are its contexts (the bare prompt first), `essence[f]` the
    row whose next token should stay what it is.

    metric: what the length of a step is measured in, positive definite (d_model, d_model); None: the
    identity. Adam has no use for it.
    """
    root = None if metric is None else inverse_root(metric)
    per_fact = len(rewriting[0]) + 1
    size = max(1, batch_rows // per_fact)
    # Facts of similar length together: less padding, and padding is what a batch wastes.
    order = sorted(range(len(rewriting)), key=lambda f: max(tail_length(r) for r in rewriting[f]))
    parts: list[Targets] = []
    with meter("finding targets", len(rewriting) * settings.steps, unit="step") as progress:
        for begin in range(0, len(order), size):
            chosen = order[begin : begin + size]
            problem = Problem.prepare(
                model,
                [rewriting[f] for f in chosen],
                [essence[f] for f in chosen],
                settings.layer,
                settings.site,
            )
            parts.append(_minimise(problem, settings, root, progress))
    joined = Targets(
        *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Targets))
    )
    return joined[torch.argsort(torch.tensor(order)).to(joined.change.device)]


def inverse_root(metric: torch.Tensor) -> np.ndarray:
    """M^(-1/2), symmetric, float64."""
    values, vectors = np.linalg.eigh(metric.cpu().double().numpy())
    return (vectors / np.sqrt(values)) @ vectors.T


def _minimise(
    problem: Problem, settings: TargetSettings, root: np.ndarray | None, progress: Any
) -> Targets:
    """Evaluate, let each fact propose its next d, drop the facts that are done, until none is left."""
    start = problem.start
    searches: list[Search] = [
        Shortest(settings.terms, length, root)
        if settings.learning_rate is None
        else Adam(settings.terms, length)
        for length in start.norm(dim=-1).tolist()
    ]
    left, change = searches, torch.zeros_like(start)
    for step in range(1, settings.steps + 1):
        seen = _seen(change, problem.losses(change), left)
        for search, one in zip(left, seen, strict=True):
            search.see(one)
        going = [not search.done and step < settings.steps for search in left]
        progress.note(f"loss {_mean(left):.2f}, {sum(going)} facts left")
        progress.advance(len(left) + (len(left) - sum(going)) * (settings.steps - step))
        if not any(going):
            break
        if not all(going):
            problem = problem.keep(torch.tensor(going, device=start.device))
            left = [search for search, go in zip(left, going, strict=True) if go]
        change = torch.from_numpy(np.stack([search.propose() for search in left])).to(start)

    results = [search.best for search in searches]
    columns = {
        "change": np.stack([seen.change for seen in results if seen]),
        "loss": [search.loss for search in searches],
        "nll": [seen.mean_nll for seen in results if seen],
        "kl": [seen.kl for seen in results if seen],
    }
    found = {name: torch.tensor(np.array(c)).to(start) for name, c in columns.items()}
    steps = torch.tensor([search.steps for search in searches], device=start.device)
    return Targets(start=start, steps=steps, **found)


def _seen(change: torch.Tensor, losses: Losses, searches: Sequence[Search]) -> list[Seen]:
    """Each fact's line, in float64 on the CPU (other devices may have no float64). Gradients are taken
    unless every fact is done."""
    columns = [
        column.cpu().double().numpy() for column in (change, losses.nll, losses.tokens, losses.kl)
    ]
    rows = [
        Seen(d, nll, tokens, float(kl), np.zeros((len(nll) + 1, len(d))))
        for d, nll, tokens, kl in zip(*columns, strict=True)
    ]
    if all(search.enough(row) for search, row in zip(searches, rows, strict=True)):
        return rows
    gradients = losses.gradient().cpu().double().numpy()
    return [replace(row, gradient=g) for row, g in zip(rows, gradients, strict=True)]


def _mean(searches: Sequence[Search]) -> float:
    return sum(search.loss for search in searches) / len(searches)
