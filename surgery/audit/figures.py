"""Figures: per-token and per-item results as single numbers with intervals and controls."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from surgery.audit.general import Divergence, Passage, TextStates, norm_ratios, owners, perplexity
from surgery.audit.paired import bootstrap
from surgery.audit.report import Figure, TaskResult, TextKind


def text_figures(
    texts: Sequence[Passage],
    base: TextStates,
    edited: TextStates,
    gap: Divergence,
    shams: Sequence[TextStates],
    sham_gaps: Sequence[Divergence],
) -> list[Figure]:
    """KL, agreement, perplexity and hidden norms over all texts. Intervals are over passages, because
    the tokens of one passage are not independent. Several shams are averaged."""
    owner = owners(texts)
    counts = torch.bincount(owner, minlength=len(texts)).double()

    def over_passages(values: torch.Tensor) -> tuple[float, float] | None:
        sums = torch.zeros(len(texts), dtype=torch.float64).index_add(0, owner, values.double())
        return bootstrap((sums / counts).tolist(), counts.tolist())

    tokens = len(gap.kl)
    kl = _kl(gap)
    found = [
        Figure(
            name=name, label=label, unit="nats", goal="lower", n=tokens, base=0.0,
            edited=kl[name], change=kl[name],
            sham=_mean([_kl(g)[name] for g in sham_gaps]),
            sham_change=_mean([_kl(g)[name] for g in sham_gaps]),
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
    before, after = perplexity(base.nll), perplexity(edited.nll)
    control = _mean([perplexity(s.nll) for s in shams])
    logs = over_passages(edited.nll.double() - base.nll.double())
    found.append(
        Figure(
            name="perplexity", label="perplexity on unrelated text", goal="same", n=tokens,
            base=before, edited=after, sham=control, change=after - before,
            interval=tuple(before * math.expm1(min(x, 700)) for x in logs) if logs else None,  # type: ignore[arg-type]
            sham_change=None if control is None else control - before,
        )
    )  # fmt: skip
    ratio, layer = _worst(norm_ratios(base, edited))
    sham_ratio = _mean([_worst(norm_ratios(base, s))[0] for s in shams])
    found.append(
        Figure(name="hidden_norm", label=f"hidden-state length, layer {layer} (furthest from 1)",
               unit="x", goal="same", n=tokens, base=1.0, edited=ratio, sham=sham_ratio,
               change=ratio - 1, sham_change=None if sham_ratio is None else sham_ratio - 1)
    )  # fmt: skip
    return found


def _kl(gap: Divergence) -> dict[str, float]:
    kl = gap.kl.double()
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
    texts: Sequence[Passage],
    base: TextStates,
    edited: TextStates,
    gap: Divergence,
    sham: TextStates | None,
    sham_gap: Divergence | None,
) -> list[TextKind]:
    """The same by kind of text."""
    owner = owners(texts)
    found = []
    for kind in dict.fromkeys(passage.kind for passage in texts):
        members = torch.tensor([passage.kind == kind for passage in texts])
        mine = members[owner]
        part = Divergence(gap.kl[mine], gap.agree[mine])
        kl = _kl(part)
        found.append(
            TextKind(
                kind=kind, tokens=int(mine.sum()),
                kl=kl["kl_mean"], kl_p95=kl["kl_p95"], kl_max=kl["kl_max"],
                agreement=float(part.agree.double().mean()),
                perplexity_base=perplexity(base.nll[mine]),
                perplexity_edited=perplexity(edited.nll[mine]),
                perplexity_sham=perplexity(sham.nll[mine]) if sham else None,
                kl_sham=float(sham_gap.kl[mine].double().mean()) if sham_gap else None,
            )
        )  # fmt: skip
    return found


def layer_ratios(
    base: TextStates, edited: TextStates, sham: TextStates | None
) -> dict[str, list[float | None]]:
    """Length of each layer's output against the base's, for edited and sham."""
    found: dict[str, list[float | None]] = {"edited": [*norm_ratios(base, edited)]}
    if sham is not None:
        found["sham"] = [*norm_ratios(base, sham)]
    return found


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
