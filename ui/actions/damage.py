"""What the edits cost: the audit of the whole stack, which edit did it, and the flinch test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from surgery.errors import SurgeryError
from ui.markup import Raw, esc, state_line, table
from ui.naming import label
from ui.session import Bench, new_id

if TYPE_CHECKING:
    from surgery.audit import Report
    from surgery.audit.attribution import Share
    from surgery.audit.report import Figure

# Reports kept for taking away, by an id that the window holds.
REPORTS: dict[str, Report] = {}
KEPT = 16
DECISIONS = {
    "accept": ("good", "Accept"),
    "warn": ("warn", "Look closely"),
    "reject": ("error", "Reject"),
}


def suites() -> list[str]:
    """The suites that come with surgery, the quickest first."""
    from surgery import resources

    try:
        folder = resources.path("benchmarks", "suites")
    except SurgeryError:
        return []
    names = [file.stem for file in folder.glob("*.yaml")]
    order = ["quick", "standard", "full"]
    return sorted(names, key=lambda n: (order.index(n) if n in order else len(order), n))


def audit(bench: Bench, suite: str) -> Callable[[], tuple[str, Report]]:
    """The work of measuring everything that is on against the base. Gives an id and the report."""

    def work() -> tuple[str, Report]:
        from surgery.audit import audit as measure

        edits = bench.on
        if not edits:
            raise SurgeryError(
                "nothing is switched on, so there is nothing to measure: solve an edit first"
            )
        folder = any(entry.folder for entry in bench.stack)
        if bench.stale():
            # The audit refuses an order the edits were not solved in; as one change it is what it is.
            edits = [bench.combined(edits)]
        with bench.as_base() as model:
            report = measure(model, edits, suite=suite, cache=not folder)
        return keep(report), report

    return work


def keep(report: Report) -> str:
    id = new_id()
    REPORTS[id] = report
    while len(REPORTS) > KEPT:
        REPORTS.pop(next(iter(REPORTS)))
    return id


def report_html(report: Report, state: str, stamp: str = "") -> str:
    """Verdict, figures beside their control, and what flipped."""
    from surgery.audit.table import row

    kind, word = DECISIONS[report.verdict.decision]
    head = (
        f'<div class="verdict {kind}"><strong>{word}</strong>'
        f"<span>{esc(report.verdict.reason)}</span></div>"
    )
    rows = []
    for figure in report.figures:
        label, base, edited, sham, _ = row(figure)
        named = Raw(f"{esc(label)}<small>{esc(_goal(figure.goal))}</small>")
        rows.append((named, base, edited, _change(figure), sham))
    figures = table(["Figure", "Base", "Edited", "Change", "Sham edit"], rows, "tnnnn", "figures")
    return (
        state_line(state, "Measured for", stamp)
        + head
        + figures
        + '<p class="quiet">The sham edit is a random change of the same tensors, rank and size: '
        "damage beyond it is the edit’s own.</p>" + _controls(report) + _flips(report)
    )


def page(report: Report) -> str:
    """The whole report in a frame of its own."""
    return framed_page(report.html())


def framed_page(html: str) -> str:
    """A page in a frame, where it cannot touch this one and runs nothing."""
    from html import escape

    return (
        '<iframe class="report" sandbox="" title="report" srcdoc="'
        + escape(html, quote=True).replace("{", "&#123;").replace("$", "&#36;")
        + '"></iframe>'
    )


def _controls(report: Report) -> str:
    identity = report.controls.get("identity") or {}
    if not identity:
        return ""
    worst = identity.get("kl_max")
    said = "exactly zero" if worst == 0 else f"{worst}"
    return (
        f'<p class="quiet">Identity control: an edit that changes nothing measured {esc(said)}.</p>'
    )


def _flips(report: Report) -> str:
    out = []
    for task in report.tasks:
        moved = [item for item in task.items if item.base != item.edited]
        if not moved:
            continue
        rows = [
            (
                "lost" if item.base else "gained",
                item.text,
                item.base_answer or ("right" if item.base else "wrong"),
                item.edited_answer or ("right" if item.edited else "wrong"),
            )
            for item in sorted(moved, key=lambda item: not item.base)[:12]
        ]
        out.append(
            f'<details class="flips"><summary>{esc(task.label)}: {task.lost} lost, {task.gained} gained '
            f"of {task.n}</summary>{table(['', 'Item', 'Base', 'Edited'], rows)}</details>"
        )
    if not out:
        return '<p class="quiet">No item of any task flipped.</p>'
    return '<h3 class="sub">What flipped</h3>' + "".join(out)


# ---------------------------------------------------------------------- which edit did it
def attribute(bench: Bench, suite: str) -> Callable[[], list[Share]]:
    """The work of telling the edits' damage apart: the stack, and the stack without each in turn."""

    def work() -> list[Share]:
        from surgery.audit.attribution import leave_one_out

        edits = bench.on
        if not edits:
            raise SurgeryError("nothing is switched on, so there is nothing to tell apart")
        return leave_one_out(bench.model, edits, suite)

    return work


def attribution_html(bench: Bench, shares: Sequence[Share]) -> str:
    """What each edit adds to the damage of the whole stack, the worst on top."""
    body = [
        (
            label(bench.deltas[share.edit]) if share.edit in bench.deltas else share.name,
            signed(share.kl, 4),
            signed(share.perplexity, 2),
            str(share.lost),
            str(share.won),
        )
        for share in shares
    ]
    heads = ["Edit", "Divergence it adds", "Perplexity it adds", "Items lost", "Items won"]
    return (
        state_line(bench.state, "Measured for", bench.stamp)
        + table(heads, body, "tnnnn")
        + '<p class="quiet">Divergence on unrelated text in nats a token; items of the suite’s tasks '
        "that are right without the edit and wrong with it, and the other way round.</p>"
    )


# ---------------------------------------------------------------------- hidden or gone
def ladder(bench: Bench) -> Callable[[], str]:
    """The work of asking for the old answers in ever more forceful ways, as a page of its own."""

    def work() -> str:
        from surgery.ladder import ladder as climb

        edits = bench.on
        if not edits:
            raise SurgeryError("nothing is switched on, so there is nothing to look for")
        if bench.stale():
            edits = [bench.combined(edits)]
        with bench.as_base() as model:
            found = climb(model, edits, quick=True)
        return state_line(bench.state, "Climbed for", bench.stamp) + framed_page(found.html())

    return work


# ---------------------------------------------------------------------- the flinch test
def flinch_test(
    bench: Bench, sources: Sequence[str], with_stack: bool, most: int
) -> Callable[[], str]:
    """The work of the flinch test over checkpoints, and what is in memory as the last of them."""

    def work() -> str:
        import tempfile
        from pathlib import Path

        from surgery.delta import SUFFIX, save_delta
        from surgery.flinch import flinch
        from surgery.flinch.sets import limited, own

        items = limited(own(), most)
        with tempfile.TemporaryDirectory() as folder:
            paths: list[str | Path] = [str(source) for source in sources]
            if with_stack and bench.here:
                # What the test takes is files.
                whole = bench.combined(bench.here)
                paths.append(save_delta(whole, Path(folder) / f"{bench.name} as edited{SUFFIX}"))
            if not paths:
                raise SurgeryError("choose at least one checkpoint")
            result = flinch(paths, items, base=str(bench.path), system=None, damage=len(paths) > 1)
        return _flinch_html(result, most)

    return work


def _flinch_html(result: Any, most: int) -> str:
    from surgery.flinch.sets import KINDS

    titles = {"harmless": "Harmless", "safe_scary": "Harmless, but sounds bad", "unsafe": "Unsafe"}
    rows = []
    for name in result.names:
        seen = result.behaviours[name]["template"]
        cells: list[Any] = [name]
        for kind in KINDS:
            rate = seen.rate(kind)
            cells.append(f"{rate.count} of {rate.n}")
        garbled = sum(seen.rate(kind, "incoherent").count for kind in KINDS)
        cells.append(f"{garbled} of {len(seen.rows)}")
        rows.append(cells)
    heads = ["Checkpoint", *(titles.get(kind, kind) for kind in KINDS), "Incoherent"]
    answers = []
    first = result.behaviours[result.names[0]]["template"].rows
    for index, row in enumerate(first):
        said = [result.behaviours[n]["template"].rows[index] for n in result.names]
        if len({one.judged.label for one in said}) > 1:
            answers.append(
                (row.item.prompt, *(f"{one.judged.label}: {one.answer.text[:160]}" for one in said))
            )
    differing = (
        '<h3 class="sub">Where they part</h3>' + table(["Prompt", *result.names], answers)
        if answers
        else ""
    )
    return (
        f'<p class="finding">Refusals, of up to {most} prompts of each kind.</p>'
        + table(heads, rows, "t" + "n" * (len(heads) - 1))
        + differing
    )


# ---------------------------------------------------------------------- numbers
def _change(figure: Figure) -> Raw:
    """The change and its interval; of a share in percentage points."""
    from surgery.audit.table import is_share

    if figure.change is None:
        return Raw("–")
    share = is_share(figure)

    def step(value: float) -> str:
        number = f"{100 * value:+.1f}" if share else f"{value:+.3g}"
        return number.replace("-", "−") if value else "0"

    unit, wide = " pp" if share else "", ""
    if figure.interval:
        low, high = figure.interval
        wide = f"<small>{step(low)} to {step(high)}</small>"
    return Raw(step(figure.change) + unit + wide)


def signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _goal(goal: str) -> str:
    return {"higher": "higher is better", "lower": "lower is better", "same": "should stay"}[goal]
