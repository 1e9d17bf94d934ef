"""The target solver without any of its short cuts: the reference it is tested and timed against.

Every step runs the whole model over the whole texts of one fact, with plain transformers, one hook and
torch's own Adam: no cache, no layers left out, logits everywhere, one fact after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from surgery.facts.rows import Row
from surgery.facts.search import Seen, Shortest
from surgery.facts.target import Targets, TargetSettings, inverse_root
from surgery.model import Model, pad


def plain_targets(
    model: Model,
    rewriting: Sequence[Sequence[Row]],
    essence: Sequence[Row],
    settings: TargetSettings,
    metric: torch.Tensor | None = None,
    side: str = "left",
) -> Targets:
    """What `surgery.facts.target.solve_targets` gives, computed the long way."""
    found = [
        _one_fact(model, [*rows, last], settings, metric, side)
        for rows, last in zip(rewriting, essence, strict=True)
    ]
    return Targets(*(torch.stack(column) for column in zip(*found, strict=True)))


def _one_fact(
    model: Model, rows: list[Row], settings: TargetSettings, metric: torch.Tensor | None, side: str
) -> tuple[torch.Tensor, ...]:
    batch = pad([row.ids for row in rows], model, side)
    starts = [batch.ids.shape[1] - len(row.ids) if side == "left" else 0 for row in rows]
    lines = torch.arange(len(rows))
    subjects = torch.tensor([s + row.subject for s, row in zip(starts, rows, strict=True)])
    seen: list[torch.Tensor] = []

    def run(change: torch.Tensor) -> torch.Tensor:
        """log p (rows, tokens, vocabulary) with `change` added at every row's subject."""

        def add(_module, _args, output):
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            seen.append(hidden[lines, subjects].detach())
            moved = hidden.index_put((lines, subjects), change, accumulate=True)
            return moved if isinstance(output, torch.Tensor) else (moved, *output[1:])

        stream, layer = settings.site == "stream", settings.layer
        handle = (model.layer(layer) if stream else model.mlp_out(layer)).register_forward_hook(add)
        try:
            return model.hf(**batch.inputs(), use_cache=False).logits.float().log_softmax(-1)
        finally:
            handle.remove()

    def parts(change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Summed NLL of the answer and its tokens, by context; what follows the essence row's subject."""
        log_p = run(change)
        nll, tokens = [], []
        for line, row in enumerate(rows[:-1]):
            at = starts[line] + torch.arange(row.answer, len(row.ids))
            nll.append(-log_p[line, at - 1, batch.ids[line, at]].sum())
            tokens.append(len(at))
        return torch.stack(nll), torch.tensor(tokens), log_p[-1, subjects[-1]]

    with torch.no_grad():
        _, _, before = parts(torch.zeros(model.hidden_size))
    start = seen[0][0]
    if settings.learning_rate is None:
        return _shortest(parts, before, start, settings, metric)
    return _adam(parts, before, start, settings)


Parts = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def _divergence(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return (before.exp() * (before - after)).sum()


def _adam(
    parts: Parts, before: torch.Tensor, start: torch.Tensor, settings: TargetSettings
) -> tuple[torch.Tensor, ...]:
    change = torch.zeros_like(start, requires_grad=True)
    assert settings.learning_rate is not None
    rate = settings.learning_rate * float(start.norm()) / len(start) ** 0.5
    adam = torch.optim.Adam([change], lr=rate)
    step = 0
    while True:
        step += 1
        summed, tokens, after = parts(change)
        nll, kl = (summed / tokens).mean(), _divergence(before, after)
        # The derivative of |d| at zero is taken to be zero.
        decay = settings.weight_decay * change.norm() / start.norm() ** 2
        loss = nll + settings.kl_factor * kl + decay
        if loss.item() < settings.stop_loss or step == settings.steps:
            values = (change, start, loss, nll, kl, torch.tensor(step))
            return tuple(value.detach().clone() for value in values)
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            longest = settings.clamp * start.norm()
            change.mul_((longest / change.norm()).clamp(max=1))


def _shortest(
    parts: Parts,
    before: torch.Tensor,
    start: torch.Tensor,
    settings: TargetSettings,
    metric: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """The same search, on losses and gradients found the long way: one backward pass a context."""
    root = None if metric is None else inverse_root(metric)
    search = Shortest(settings.terms, float(start.norm()), root)
    change = torch.zeros_like(start)
    while not search.done and search.steps < settings.steps:
        leaf = change.clone().requires_grad_(True)
        nll, tokens, after = parts(leaf)
        kl = _divergence(before, after)
        gradient = [torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in (*nll, kl)]
        d, losses, counts = (x.detach().double().numpy() for x in (change, nll, tokens))
        search.see(Seen(d, losses, counts, kl.item(), torch.stack(gradient).double().numpy()))
        change = torch.from_numpy(search.propose()).to(start)
    best = search.best
    assert best is not None
    values = (search.loss, best.mean_nll, best.kl)
    found = [torch.tensor(value, dtype=torch.float32) for value in values]
    return (torch.from_numpy(best.change).to(start), start, *found, torch.tensor(search.steps))
