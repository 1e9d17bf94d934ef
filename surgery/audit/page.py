"""The report as one self-contained page: no scripts, no fonts, nothing fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.audit import plots
from surgery.audit.causes import neighbours_kept, neighbours_lost
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


# What the figures of the damage table say, for people who do not know their names.
EXPLAINED = {
    "kl_mean": "how far the expectations about the next word moved; 0 is not at all",
    "kl_p95": "the same at the worst of twenty words",
    "kl_max": "the same at the worst word of all",
    "top1_agreement": "how often the likeliest next word is still the same one",
    "perplexity": "how much text by other people surprises the model; lower is better",
    "hidden_norm": "size of the signal inside the model, against before; 1 is unchanged",
    "surprise": "how odd the original model finds what is said; nonsense scores high",
    "repetition": "runs of three words that came before in the same answer",
    "truncated": "answers that had not come to an end when they were stopped",
    "entropy": "how varied the words of all answers are; it falls when a model gets stuck",
    "silence": "questions that got no answer at all",
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
        summary=in_words(report),
        explained=EXPLAINED,
        answers=[(_KINDS.get(a.kind, a.kind), a, _same(a.before, a.after)) for a in report.answers],
        facts_plot=plots.shares(report, _FACTS),
        kl_plot=plots.divergence_bars(report),
        layer_plot=plots.layer_lines(report),
        weight_plot=plots.weight_bars(report),
        damage=[(f.name, row(f)) for f in report.figures if _is_damage(f)],
        tasks=[(task, _verdict_of(task)) for task in report.tasks],
        flips=[(task, _flips(task)) for task in report.tasks if task.lost or task.gained],
        neighbours=neighbours_lost(report),
        reloads=_reloads(report),
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
        elif edit.get("kind") == "delta":
            found.append("Weight changes from elsewhere are included.")
    return found or ["The edit carries no description of what it was for."]


def in_words(report: Report) -> list[str]:
    """The main figures as sentences."""
    found = []
    for name, what in (
        ("success", "{} of {} edited facts now give the new answer before the old one"),
        ("paraphrase", "{} of {} other ways to ask for them do"),
        ("earlier_edits", "{} of {} facts of earlier edits still hold"),
    ):
        figure = next((f for f in report.figures if f.name == name and f.n), None)
        if figure is not None and figure.edited is not None:
            text = what.format(round(figure.edited * figure.n), figure.n)
            before = round((figure.base or 0.0) * figure.n)
            fewer = name == "earlier_edits" and before != figure.n
            found.append(f"{text} ({before} before)." if fewer else f"{text}.")
    kept, known = neighbours_kept(report)
    if known:
        found.append(f"{kept} of {known} neighbouring facts that it knew keep their own answer.")
    tasks = [t for t in report.tasks if t.measurable and not t.name.endswith("_greedy")]
    right = sum(round(task.base * task.n) for task in tasks)
    if right:
        lost, gained = (sum(getattr(task, way) for task in tasks) for way in ("lost", "gained"))
        found.append(
            f"Of {right} other questions it had right, {lost or 'none'} {_is(lost)} wrong now; "
            f"{gained or 'none'} that it had wrong {_is(gained)} right."
        )
    same = report.value("top1_agreement")
    if same is not None and same == same:
        found.append(
            f"On text that has nothing to do with the edit, the likeliest next word is the same "
            f"{_number(same)} of the time."
        )
    return found


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _reloads(report: Report) -> list[tuple[str, dict[str, float | None]]]:
    """Coarser copies of the edited model, in which the edit was looked for."""
    names = {"bfloat16": "16-bit", "int8": "8-bit", "int4": "4-bit"}
    measured: dict[str, dict[str, float | None]] = report.controls.get("reload") or {}
    return [(names.get(how, how), found) for how, found in measured.items()]


def _is_damage(figure: Figure) -> bool:
    return figure.name not in _FACTS and not figure.name.startswith("task_")


def _same(before: str, after: str) -> bool:
    return before.strip() == after.strip()


def _flips(task: TaskResult, most: int = 12) -> list[tuple[str, Any]]:
    changed = [item for item in task.items if item.base != item.edited]
    lost = [("lost", item) for item in changed if item.base]
    gained = [("gained", item) for item in changed if item.edited]
    return [*lost[:most], *gained[: max(0, most - len(lost))]]


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
    return "–" if value is None else style.format(value + 0.0).replace("%", "\u202f%")
