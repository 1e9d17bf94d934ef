"""What `surgery run` prints: answers before and after, and the figures that matter, in one screen."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.audit.report import Answer, Figure, Report

# The figures of the table, by the name limits call them. Tasks come after them.
SHOWN = (
    "new_probability",
    "old_probability",
    "success",
    "paraphrase",
    "neighborhood",
    "neighborhood_plus",
    "earlier_edits",
    "perplexity",
    "kl_mean",
    "top1_agreement",
    "surprise",
    "repetition",
    "entropy",
    "truncated",
    "silence",
)
# How many answers of a kind are shown, in this order.
ANSWERS = {
    "asked": 8,
    "direct": 3,
    "paraphrase": 1,
    "neighbour": 2,
    "positive": 3,
    "negative": 1,
    "general": 1,
}
_DECISIONS = {"accept": "ACCEPTED", "warn": "ACCEPTED WITH A WARNING", "reject": "REJECTED"}


def summary(report: Report, metadata: Mapping[str, Any], width: int | None = None) -> str:
    """The report in one screen.

    metadata: of the delta, which holds the spec. width: of the terminal, found out by default.
    """
    from surgery.audit.table import columns, row
    from surgery.stack.card import describe

    width = width or max(60, min(shutil.get_terminal_size((100, 24)).columns, 160))
    lines = textwrap.wrap(describe(metadata), width)
    lines += ["", *side_by_side(_chosen(report.answers), width), ""]
    figures = [figure for name in SHOWN for figure in report.figures if figure.name == name]
    figures += [figure for figure in report.figures if figure.name.startswith("task_")]
    lines += columns([("", "before", "after", "sham", "x sham"), *map(row, figures)])
    lines += _probabilities(report, width)
    lines += ["", *_legend(figures, width)]
    for note in report.notes:
        lines += textwrap.wrap(f"note: {note}", width)
    lines += textwrap.wrap(f"{_DECISIONS[report.verdict.decision]}: {report.verdict.reason}", width)
    return "\n".join(lines)


def side_by_side(answers: Sequence[Answer], width: int) -> list[str]:
    """Prompts, with the answers before on the left and after on the right of a rule."""
    half = (width - 3) // 2
    lines = [f"{'before':<{half}} │ after".rstrip(), "─" * (half + 1) + "┼" + "─" * (half + 1)]
    for answer in answers:
        lines += _wrapped(f"» {answer.prompt}", width)
        left, right = _wrapped(answer.before, half), _wrapped(answer.after, half)
        for place in range(max(len(left), len(right))):
            one = left[place] if place < len(left) else ""
            two = right[place] if place < len(right) else ""
            lines.append(f"{one:<{half}} │ {two}".rstrip())
    return lines


def _wrapped(text: str, width: int, most: int = 3) -> list[str]:
    # Control characters in an answer would spoil the columns, or worse, steer the terminal.
    clean = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    return textwrap.wrap(clean, width, max_lines=most, placeholder=" …") or ["(nothing)"]


def _chosen(answers: Sequence[Answer]) -> list[Answer]:
    return [
        answer
        for kind, most in ANSWERS.items()
        for answer in [one for one in answers if one.kind == kind][:most]
    ]


def _probabilities(report: Report, width: int) -> list[str]:
    """Probability of the old and the new answer, fact by fact, if there are several but not many."""
    rows = [
        (record, question)
        for record in report.facts
        for question in record.questions
        if question.kind == "direct" and not record.earlier
    ]
    if not 2 <= len(rows) <= 8:
        return []
    lines = ["", "facts one by one"]
    for record, asked in rows:
        lines.append(textwrap.shorten(f"» {asked.prompt}", width, placeholder=" …"))
        for what, answer, before, after in (
            ("new", record.new, asked.base_new, asked.edited_new),
            ("old", record.old, asked.base_old, asked.edited_old),
        ):
            if answer is not None and before is not None and after is not None:
                lines.append(f"  p({what}: {answer})  {before:.4f} before, {after:.4f} after")
    return lines


def _legend(figures: Sequence[Figure], width: int) -> list[str]:
    if not any(figure.sham is not None for figure in figures):
        return []
    said = (
        "sham: a random edit of the same tensors, rank and size; x sham: how many times its damage"
    )
    return textwrap.wrap(said, width)
