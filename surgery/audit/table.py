"""The report as a plain table for a terminal: 80 to 100 columns, no colours."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.audit.report import Answer, Figure, Report

_SHARES = {
    "success", "success_greedy", "success_said", "paraphrase", "paraphrase_greedy",
    "paraphrase_said", "neighborhood", "neighborhood_greedy", "neighborhood_said",
    "neighborhood_plus", "earlier_edits", "top1_agreement", "repetition", "truncated", "silence",
}  # fmt: skip
_WORDS = {"accept": "ACCEPTED", "warn": "WARNING", "reject": "REJECTED"}


def table(report: Report, answers: int = 8) -> str:
    """Verdict, figures with base, edited and sham side by side, answers before and after."""
    lines = [f"{_WORDS[report.verdict.decision]}: {report.verdict.reason}", ""]
    head = ("", "before", "after", "sham edit", "x sham")
    rows = [row(figure) for figure in report.figures]
    lines += columns([head, *rows])
    unmeasurable = [task for task in report.tasks if not task.measurable]
    for task in unmeasurable:
        lines.append(f"  (not measurable: {task.label}: {task.note})")
    changed = [task for task in report.tasks if task.measurable and (task.lost or task.gained)]
    if changed:
        lines += ["", "answers that changed: " + "; ".join(
            f"{t.label} {t.lost} lost, {t.gained} gained (p = {t.p:.2g})" for t in changed
        )]  # fmt: skip
    if report.weights:
        lines += ["", _weights(report)]
    identity = report.controls.get("identity")
    if identity:
        lines.append(f"identity edit: KL {identity['kl_max']:g} on {identity['tokens']} tokens")
    lines += [f"note: {note}" for note in report.notes]
    shown = _pick(report.answers, answers)
    if shown:
        lines += ["", *side_by_side(shown)]
    return "\n".join(lines)


def is_share(figure: Figure) -> bool:
    """Whether a figure is a share of something, 0 to 1, and shown in per cent."""
    return figure.name in _SHARES or figure.name.startswith("task_")


def row(figure: Figure) -> tuple[str, str, str, str, str]:
    """A figure as text: label, before, after, sham, multiple of sham."""
    show = "{:.1%}" if is_share(figure) else "{:.4g}"
    if figure.name.startswith("kl_"):
        show = "{:.4f}"

    def text(value: float | None) -> str:
        return "-" if value is None else show.format(value + 0.0).replace("%", " %")

    # Against a sham, damage means something; success does not.
    damage = figure.goal == "same" or figure.name.startswith("kl_")
    times = f"{figure.multiple:.3g}" if damage and figure.multiple is not None else "-"
    unit = f" ({figure.unit})" if figure.unit else ""
    return (
        figure.label + unit,
        text(figure.base),
        text(figure.edited),
        text(figure.sham),
        times,
    )


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows aligned: the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in rows
    ]


def _weights(report: Report) -> str:
    largest = report.weights[0]
    ranks = sorted({change.rank for change in report.weights if change.rank is not None})
    rank = f", rank {ranks[0]}" if len(ranks) == 1 else f", ranks {ranks[0]} to {ranks[-1]}"
    kept = f", {largest.kept_int4:.0%} of it left after int4" if largest.kept_int4 else ""
    many = len(report.weights)
    return (
        f"weights: {many} tensor{'s' * (many != 1)} changed{rank if ranks else ''}; most in "
        f"{largest.key}: {(largest.norm or 0):.2%} of its length{kept}"
    )


def _pick(answers: Sequence[Answer], most: int) -> list[Answer]:
    """A few of every kind, facts first."""
    order = ("asked", "direct", "paraphrase", "neighbour", "positive", "negative", "general")
    share = {"direct": 2, "paraphrase": 1, "neighbour": 2, "positive": 2, "negative": 1, "asked": 9}
    found: list[Answer] = []
    for kind in order:
        found += [answer for answer in answers if answer.kind == kind][: share.get(kind, 1)]
    return found[:most]


def side_by_side(answers: Sequence[Answer], width: int = 98) -> list[str]:
    """Prompts with what was said before on the left and after on the right."""
    import textwrap

    half = (width - 3) // 2
    lines = [f"{'before':<{half}} | after"]
    for answer in answers:
        lines.append("-" * width)
        lines += textwrap.wrap(f"> {' '.join(answer.prompt.split())}", width)
        left = textwrap.wrap(" ".join(answer.before.split()), half) or ["(nothing)"]
        right = textwrap.wrap(" ".join(answer.after.split()), half) or ["(nothing)"]
        for place in range(max(len(left), len(right))):
            one = left[place] if place < len(left) else ""
            two = right[place] if place < len(right) else ""
            lines.append(f"{one:<{half}} | {two}".rstrip())
    return lines
