"""Figures: per-token and per-item results as single numbers with intervals and controls."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from surgery.audit.general import Divergence, Passage, owners, perplexity
from surgery.audit.report import Figure, TaskResult, TextKind
from surgery.measure.paired import bootstrap


def text_figures(
    texts: Sequence[Passage],
    base_nll: torch.Tensor,
    gaps: Sequence[Divergence],
    ratios: Sequence[list[float]],
) -> list[Figure]:
    """KL, agreement, perplexity and hidden norms over all texts.

    gaps and ratios (hidden norms by layer): of the edited model, then of the shams, which are
    averaged. Intervals are over passages, because the tokens of one passage are not independent.
    """
    gap, sham_gaps = gaps[0], gaps[1:]
    owner = owners(texts)
    counts = torch.bincount(owner, minlength=len(texts)).double()

    def over_passages(values: torch.Tensor) -> tuple[float, float] | None:
        sums = torch.zeros(len(texts), dtype=torch.float64).index_add(0, owner, values.double())
        return bootstrap((sums / counts).tolist(), counts.tolist())

    tokens = len(gap.kl)
    kl = _kl(gap.kl)
    found = [
        Figure(
            name=name, label=label, unit="nats", goal="lower", n=tokens, base=0.0,
            edited=kl[name], change=kl[name],
            sham=_mean([_kl(g.kl)[name] for g in sham_gaps]),
            sham_change=_mean([_kl(g.kl)[name] for g in sham_gaps]),
            interval=over_passages(gap.kl) if name == "kl_mean" else None,
        )
        for name, label in (
            ("kl_mean", "KL on unrelated text, mean"),
            ("kl_p95", "KL, 95th percentile"),
            ("kl_max", "KL, largest"),
        )
    ]  # fmt: skip
    agree = float(gap.agree.double().mean())
    sham_agree = _mean([float(g.agree.double().mean()) for g in sham_gaps])
    lost = over_passages(gap.agree.double() - 1)
    found.append(
        Figure(name="top1_agreement", label="same likeliest next token", goal="same", n=tokens,
               base=1.0, edited=agree, sham=sham_agree, change=agree - 1, interval=lost,
               sham_change=None if sham_agree is None else sham_agree - 1)
    )  # fmt: skip
    before, after = perplexity(base_nll), perplexity(gap.nll)
    control = _mean([perplexity(g.nll) for g in sham_gaps])
    logs = over_passages(gap.nll.double() - base_nll.double())
    found.append(
        Figure(
            name="perplexity", label="perplexity on unrelated text", goal="same", n=tokens,
            base=before, edited=after, sham=control, change=after - before,
            interval=tuple(before * math.expm1(min(x, 700)) for x in logs) if logs else None,  # type: ignore[arg-type]
            sham_change=None if control is None else control - before,
        )
    )  # fmt: skip
    ratio, layer = _worst(ratios[0])
    sham_ratio = _mean([_worst(others)[0] for others in ratios[1:]])
    found.append(
        Figure(name="hidden_norm", label=f"hidden-state length, layer {layer} (furthest from 1)",
               unit="x", goal="same", n=tokens, base=1.0, edited=ratio, sham=sham_ratio,
               change=ratio - 1, sham_change=None if sham_ratio is None else sham_ratio - 1)
    )  # fmt: skip
    return found


def _kl(values: torch.Tensor) -> dict[str, float]:
    kl = values.double()
    return {
        "kl_mean": float(kl.mean()),
        "kl_p95": float(kl.quantile(0.95)) if bool(torch.isfinite(kl).all()) else math.nan,
        "kl_max": float(kl.max()),
    }


def _worst(ratios: list[float]) -> tuple[float, int]:
    """The ratio furthest from 1 and its layer."""

    def far(ratio: float) -> float:
        return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf

    layer = max(range(len(ratios)), key=lambda i: far(ratios[i]))
    return ratios[layer], layer


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def text_kinds(
    texts: Sequence[Passage], base_nll: torch.Tensor, gaps: Sequence[Divergence]
) -> list[TextKind]:
    """The same by kind of text, with the first sham beside."""
    owner = owners(texts)
    gap, sham = gaps[0], gaps[1] if len(gaps) > 1 else None
    found = []
    for kind in dict.fromkeys(passage.kind for passage in texts):
        mine = torch.tensor([passage.kind == kind for passage in texts])[owner]
        kl = _kl(gap.kl[mine])
        found.append(
            TextKind(
                kind=kind, tokens=int(mine.sum()),
                kl=kl["kl_mean"], kl_p95=kl["kl_p95"], kl_max=kl["kl_max"],
                agreement=float(gap.agree[mine].double().mean()),
                perplexity_base=perplexity(base_nll[mine]),
                perplexity_edited=perplexity(gap.nll[mine]),
                perplexity_sham=perplexity(sham.nll[mine]) if sham else None,
                kl_sham=float(sham.kl[mine].double().mean()) if sham else None,
            )
        )  # fmt: skip
    return found


def layer_ratios(ratios: Sequence[list[float]]) -> dict[str, list[float | None]]:
    """Length of each layer's output against the base's, for edited and the first sham."""
    return {name: [*values] for name, values in zip(("edited", "sham"), ratios, strict=False)}


def task_figures(tasks: Sequence[TaskResult]) -> list[Figure]:
    """One figure a task."""
    return [
        Figure(
            name=f"task_{task.name}", label=task.label, goal="same", n=task.n, base=task.base,
            edited=task.edited, sham=task.sham, change=task.change, interval=task.interval,
            sham_change=None if task.sham is None else task.sham - task.base,
        )
        for task in tasks
    ]  # fmt: skip
