"""The report as one self-contained page: no scripts, no fonts, nothing fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.audit import plots
from surgery.audit.report import Figure, Report, TaskResult
from surgery.audit.table import row

TEMPLATES = Path(__file__).parent / "templates"
_FACTS = (
    "new_probability", "old_probability", "success", "success_greedy", "success_said", "paraphrase",
    "paraphrase_greedy", "paraphrase_said", "neighborhood", "neighborhood_greedy",
    "neighborhood_said", "neighborhood_plus", "earlier_edits",
)  # fmt: skip
_KINDS = {
    "asked": "asked for",
    "direct": "the edited fact",
    "paraphrase": "the fact, put differently",
    "neighbour": "a neighbouring fact",
    "positive": "shows the behaviour",
    "negative": "does not show the behaviour",
    "general": "anything else",
}


def page(report: Report) -> str:
    """Render `templates/report.html`."""
    from jinja2 import Environment, FileSystemLoader

    jinja = Environment(
        loader=FileSystemLoader(str(TEMPLATES)), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    jinja.filters["number"] = _number
    return jinja.get_template("report.html").render(
        report=report,
        title=_title(report),
        asked=_asked(report),
        answers=[(_KINDS.get(a.kind, a.kind), a, _same(a.before, a.after)) for a in report.answers],
        facts_plot=plots.shares(report, _FACTS),
        kl_plot=plots.divergence_bars(report),
        layer_plot=plots.layer_lines(report),
        weight_plot=plots.weight_bars(report),
        damage=[row(f) for f in report.figures if _is_damage(f)],
        tasks=[(task, _verdict_of(task)) for task in report.tasks],
        flips=[(task, _flips(task)) for task in report.tasks if task.lost or task.gained],
        neighbours=_neighbours_lost(report),
    )


def _title(report: Report) -> str:
    names = [str(edit.get("name")) for edit in report.edited.edits if edit.get("name")]
    spec = (report.spec or {}).get("name")
    return str(spec or ", ".join(names) or Path(report.edited.path or "edit").name)


def _asked(report: Report) -> list[str]:
    """What the edit set out to do, a sentence for each part."""
    found = []
    facts = [fact for fact in report.facts if not fact.earlier]
    for fact in facts[:12]:
        prompt = fact.prompt.replace("{}", fact.subject)
        old = f" instead of “{fact.old}”" if fact.old else ""
        found.append(f"“{prompt} …” should continue with “{fact.new}”{old}.")
    if len(facts) > 12:
        found.append(f"… and {len(facts) - 12} more facts.")
    for edit in (report.spec or {}).get("edits", []):
        if edit.get("kind") == "ablate":
            strength = edit.get("strength", 1.0)
            found.append(f"A direction of the hidden states is removed (strength {strength}).")
        elif edit.get("kind") in ("forget", "delta"):
            found.append(f"Part of the edit: {edit['kind']} {edit.get('method', '')}".strip() + ".")
    return found or ["The edit carries no description of what it was for."]


def _is_damage(figure: Figure) -> bool:
    return figure.name not in _FACTS and not figure.name.startswith("task_")


def _same(before: str, after: str) -> bool:
    return before.strip() == after.strip()


def _flips(task: TaskResult, most: int = 12) -> list[tuple[str, Any]]:
    changed = [item for item in task.items if item.base != item.edited]
    lost = [("lost", item) for item in changed if item.base]
    gained = [("gained", item) for item in changed if item.edited]
    return [*lost[:most], *gained[: max(0, most - len(lost))]]


def _neighbours_lost(report: Report) -> list[Any]:
    """Neighbours that preferred their own answer before, and the edit's new one now."""
    return [
        question
        for fact in report.facts
        for question in fact.questions
        if question.kind == "neighbour"
        and None not in (question.base_old, question.base_new)
        and None not in (question.edited_old, question.edited_new)
        and question.base_old > question.base_new  # type: ignore[operator]
        and question.edited_old <= question.edited_new  # type: ignore[operator]
    ]


def _verdict_of(task: TaskResult) -> str:
    if not task.measurable:
        return task.note
    if task.lost == task.gained == 0:
        return "nothing changed"
    text = f"{task.lost} lost, {task.gained} gained"
    if task.p_holm < 0.05:
        return f"{text}: more than chance (p = {task.p_holm:.2g})"
    return f"{text}: within chance (p = {task.p:.2g})"


def _number(value: float | None, style: str = "{:.1%}") -> str:
    return "–" if value is None else style.format(value).replace("%", "\u202f%")
