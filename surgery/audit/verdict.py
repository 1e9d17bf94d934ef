"""Accept, warn or reject: figures against limits, and the cause in one line.

Limits come from the suite, the spec (`checks.limits`) and the call, later ones first. One that is set
by somebody is strict: beyond it means reject. A default has two steps, and what is estimated from few
items rejects only when its interval says so too; otherwise it warns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from surgery.audit.causes import (
    Finding,
    example,
    neighbours_no_longer_said,
    overwritten,
    relations,
    scaled,
    weights_cause,
)
from surgery.audit.report import Report, TaskResult, Verdict
from surgery.errors import SurgeryError


@dataclass(frozen=True)
class Limit:
    """What a limit is about. least: the value must reach it, instead of staying below.

    The defaults are set from what was measured on SmolLM2-135M (benchmarks/results/gate.md, made by
    benchmarks/gate.py): `warn` lies above single facts, ten facts and random edits of their size, `reject`
    half way (geometrically) between the largest honest or random edit and the mildest disaster.
    """

    what: str
    value: Callable[[Report], float | None]
    warn: float
    reject: float
    least: bool = False
    unit: str = ""
    certain: Callable[[Report], bool] = lambda report: True


def _value(name: str) -> Callable[[Report], float | None]:
    return lambda report: report.value(name)


def _change(name: str) -> Callable[[Report], float | None]:
    return lambda report: next((f.change for f in report.figures if f.name == name), None)


def _drop(name: str) -> Callable[[Report], float | None]:
    def drop(report: Report) -> float | None:
        change = next((f.change for f in report.figures if f.name == name), None)
        return None if change is None else -change

    return drop


def _sure(name: str) -> Callable[[Report], bool]:
    """Whether the interval of a change leaves out no change at all."""

    def sure(report: Report) -> bool:
        interval = next((f.interval for f in report.figures if f.name == name), None)
        return interval is not None and interval[1] < 0

    return sure


def _perplexity_rise(report: Report) -> float | None:
    figure = next((f for f in report.figures if f.name == "perplexity"), None)
    if figure is None or not figure.base or figure.edited is None:
        return None
    return figure.edited / figure.base - 1


def _norm_ratio(report: Report) -> float | None:
    ratio = report.value("hidden_norm")
    if ratio is None:
        return None
    return max(ratio, 1 / ratio) if ratio > 0 else math.inf


def _no_longer_said(report: Report) -> float | None:
    lost, known = neighbours_no_longer_said(report)
    return lost / known if known else None


def _count(name: str) -> Callable[[Report], float | None]:
    return lambda report: float(sum(not getattr(change, name) for change in report.weights))


LIMITS: dict[str, Limit] = {
    "kl_mean": Limit("mean KL on unrelated text", _value("kl_mean"), 0.03, 0.12, unit=" nats"),
    "kl_p95": Limit("95th percentile of KL", _value("kl_p95"), 0.15, 0.4, unit=" nats"),
    "kl_max": Limit("largest KL of a token", _value("kl_max"), 2.5, math.inf, unit=" nats"),
    "top1_drop": Limit(
        "share of next tokens that changed", _drop("top1_agreement"), 0.1, 0.2, unit="%"
    ),
    "perplexity_rise": Limit("rise of perplexity", _perplexity_rise, 0.04, 0.1, unit="%"),
    "hidden_norm": Limit("length of hidden states, ratio", _norm_ratio, 1.05, 1.5, unit="x"),
    "neighborhood_drop": Limit(
        "neighbouring facts lost", _drop("neighborhood"), 0.1, 0.2, unit="%",
        certain=_sure("neighborhood"),
    ),
    "neighborhood_greedy_drop": Limit(
        "neighbouring facts no longer said", lambda r: _no_longer_said(r), 0.3, 0.5, unit="%",
        certain=lambda r: neighbours_no_longer_said(r)[0] >= 3,
    ),
    "neighborhood_plus_drop": Limit(
        "neighbouring facts lost after the edit's statement", _drop("neighborhood_plus"), 0.2,
        math.inf, unit="%", certain=_sure("neighborhood_plus"),
    ),
    "earlier_edits_drop": Limit(
        "earlier edits that no longer hold", _drop("earlier_edits"), 0.01, 0.1, unit="%"
    ),
    "success": Limit(
        "facts whose new answer is preferred", _value("success"), 0.98, 0.5, least=True, unit="%"
    ),
    "paraphrase": Limit(
        "paraphrases that prefer the new answer", _value("paraphrase"), 0.5, 0.0, least=True,
        unit="%",
    ),
    "surprise_rise": Limit(
        "rise of the base's surprise at free answers", _change("surprise"), 0.4, 2.0, unit=" nats"
    ),
    "truncated_rise": Limit(
        "more answers cut off at the length limit", _change("truncated"), 0.3, math.inf, unit="%"
    ),
    "silence": Limit("more empty answers", _change("silence"), 0.0, 0.2, unit="%"),
    "task_drop": Limit("largest loss on a task", lambda r: _task_drop(r), 0.05, 0.1, unit="%"),
    "undeclared_tensors": Limit(
        "tensors that differ but were not declared", _count("declared"), 0, 0
    ),
    "not_finite": Limit("tensors that are not finite", _count("finite"), 0, 0),
}  # fmt: skip


def check_limits(limits: Mapping[str, float]) -> None:
    """Raises SurgeryError for a limit nobody knows: it would silently not be enforced."""
    for name in limits:
        if name not in LIMITS:
            raise SurgeryError(f"unknown limit {name!r} (known: {', '.join(sorted(LIMITS))})")


def unenforced(report: Report, limits: Mapping[str, float]) -> list[str]:
    """Notes on limits that nothing was measured for: they hold for nothing."""
    return [
        f"the limit {name} was not enforced: this suite and this edit give no {LIMITS[name].what}"
        for name in limits
        if LIMITS[name].value(report) is None
    ]


def decide(report: Report, limits: Mapping[str, float] | None = None) -> Verdict:
    """The verdict on a report. Findings are ordered: what broke the model most plainly comes first."""
    limits = dict(limits or {})
    check_limits(limits)
    findings: list[Finding] = [*_broken(report), *relations(report)]
    for name, limit in LIMITS.items():
        value = limit.value(report)
        if value is None:
            continue
        level, bound = _level(report, name, limit, value, limits)
        if level:
            text = _sentence(report, name, limit, value, bound)
            if name == "task_drop":
                worst = _worst_task(report, strict=name in limits)
                value, text = -worst.change, _task_sentence(worst)
            findings.append(
                {"level": level, "name": name, "value": value, "limit": bound, "text": text}
            )
    findings.sort(key=lambda finding: _rank(report, finding))
    decision = str(findings[0]["level"]) if findings else "accept"
    used = {name: limits.get(name, limit.reject) for name, limit in LIMITS.items()}
    used = {name: value for name, value in used.items() if math.isfinite(value)}
    return Verdict(
        decision=decision,  # type: ignore[arg-type]
        reason=_reason(report, decision, findings),
        findings=findings,
        limits=used,
    )


def _rank(report: Report, finding: Finding) -> tuple[bool, bool, bool]:
    """What rejects first; of that what says most: no output at all, then damage to certain facts, unless
    a whole tensor was scaled, which explains those as well."""
    name = str(finding["name"])
    about_facts = name == "relation" or (name.startswith("neighborhood") and overwritten(report))
    return (
        finding["level"] != "reject",
        name != "not_finite_output",
        not about_facts or bool(scaled(report)),
    )


def _level(
    report: Report, name: str, limit: Limit, value: float, limits: Mapping[str, float]
) -> tuple[str, float]:
    def beyond(bound: float) -> bool:
        # Written so that NaN is beyond every limit.
        return not (value >= bound) if limit.least else not (value <= bound)

    if name in limits:
        return ("reject" if beyond(limits[name]) else ""), limits[name]
    if name == "task_drop":
        return _task_level(report), limit.reject
    if beyond(limit.reject):
        return ("reject" if limit.certain(report) else "warn"), limit.reject
    return ("warn" if beyond(limit.warn) else ""), limit.warn


# ---------------------------------------------------------------------- single findings
def _task_drop(report: Report) -> float | None:
    return max((-task.change for task in report.tasks if task.measurable), default=None)


def _worst_task(report: Report, strict: bool) -> TaskResult:
    """The task a finding is about: the largest loss, or, where significance counts, the largest of the
    most significant ones."""

    def weight(task: TaskResult) -> tuple[bool, bool, float]:
        losing = not strict and task.lost > task.gained
        return losing and task.p_holm < 0.05, losing and task.p < 0.05, -task.change

    return max((task for task in report.tasks if task.measurable), key=weight)


def _task_level(report: Report) -> str:
    """A default limit on tasks goes by significance: reject after Holm, warn before."""
    losing = [t for t in report.tasks if t.measurable and t.lost > t.gained]
    limit = LIMITS["task_drop"]
    if any(t.p_holm < 0.05 and -t.change > limit.reject for t in losing):
        return "reject"
    return "warn" if any(t.p < 0.05 and -t.change > limit.warn for t in losing) else ""


def _task_sentence(task: TaskResult) -> str:
    return (
        f"{task.label}: {_number(task.base, '%')} right before, {_number(task.edited, '%')} now "
        f"({task.lost} lost, {task.gained} gained, p = {task.p_holm:.2g})"
    )


def _broken(report: Report) -> list[Finding]:
    """Output that is not finite: nothing else needs a limit then."""
    figure = next((f for f in report.figures if f.name == "kl_mean"), None)
    if figure is not None and (figure.edited is None or not math.isfinite(figure.edited)):
        return [
            {"level": "reject", "name": "not_finite_output", "value": None, "limit": None,
             "text": f"the edited model's logits are not finite{weights_cause(report)}"}
        ]  # fmt: skip
    return []


def _sentence(report: Report, name: str, limit: Limit, value: float, bound: float) -> str:
    word = "at least" if limit.least else "limit"
    shown = example(report) if name in ("neighborhood_drop", "neighborhood_greedy_drop") else ""
    number, allowed = _number(value, limit.unit), _number(bound, limit.unit)
    return f"{limit.what}: {number} ({word} {allowed}){shown}"


def _number(value: float, unit: str) -> str:
    if not math.isfinite(value):
        return "not finite"
    if unit == "%":
        return f"{100 * value:.3g} %" if abs(value) < 10 else f"{100 * value:.0f} %"
    return f"{value:.3g}{unit}"


def _reason(report: Report, decision: str, findings: list[Finding]) -> str:
    if not findings:
        control = next((f for f in report.figures if f.name == "kl_mean"), None)
        times = ""
        if control is not None and control.multiple is not None:
            times = f", {control.multiple:.2g} times what a random edit of this size does"
        kl = control.edited if control is not None else None
        return f"nothing beyond its limit (KL {kl or 0:.2g} nats a token{times})"
    first = findings[0]
    more = len(findings) - 1
    rest = f"; {more} more finding{'s' * (more > 1)}" if more else ""
    about_facts = first["name"] in ("relation", "success", "paraphrase", "earlier_edits_drop")
    near = str(first["name"]).startswith("neighborhood") and overwritten(report)
    cause = "" if about_facts or near else weights_cause(report)
    text = str(first["text"])
    return f"{text}{cause if cause not in text else ''}{rest}"
