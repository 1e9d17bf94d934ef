"""Damage: the audit and its verdict, which edit did it, and the flinch test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ui.actions import checkpoints, commands
from ui.actions import damage as actions
from ui.markup import empty
from ui.screens.shell import MODEL, busy, cancel_button, command_box, heading, owner, run
from ui.session import Bench


def build(bench: Bench) -> gr.State:
    """Returns the id of this window's last report."""
    heading(
        "Damage",
        "What else changed. Everything that is switched on is measured against the base, beside a "
        "random edit of the same size.",
    )
    report = gr.State("")
    with gr.Tabs(elem_id="damage-tabs", elem_classes="inner"):
        with gr.Tab("Report", id="report"):
            _audit(bench, report)
        with gr.Tab("Which edit did it", id="which"):
            _which(bench)
        with gr.Tab("Hidden or gone", id="ladder"):
            _ladder(bench)
        with gr.Tab("Flinch test", id="flinch"):
            _flinch(bench)
    return report


def _audit(bench: Bench, report: gr.State) -> None:
    names = actions.suites()
    with gr.Row(equal_height=False, elem_classes="ask"):
        suite = gr.Dropdown(
            names,
            value=names[0] if names else None,
            label="Suite",
            info="Quick takes about a minute on a small model; the longer ones see smaller damage.",
            elem_id="damage-suite",
            allow_custom_value=True,
            scale=3,
        )
        go = gr.Button("Measure", variant="primary", elem_id="damage-run", scale=0, min_width=120)
        cancel = cancel_button(bench, "damage")
    status = gr.HTML("", elem_id="damage-status", apply_default_css=False)
    shown = gr.HTML(
        empty("Verdict, figures and what flipped appear here."),
        elem_id="damage-report",
        apply_default_css=False,
    )
    with gr.Accordion("The whole report, with plots", open=False, elem_classes="how"):
        page = gr.HTML("", elem_id="damage-page", apply_default_css=False)
    command = command_box("damage", 3)

    def measure(name: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Audit what is switched on with a suite."""
        yield "", gr.skip(), gr.skip(), gr.skip(), gr.skip(), *busy(True)
        job = bench.job("measuring", actions.audit(bench, name or "quick"), owner(request))
        for said, done in run(job):
            if done is None:
                yield said, gr.skip(), gr.skip(), gr.skip(), gr.skip(), *busy(not job.ended)
                continue
            id, found = done
            yield (
                said,
                actions.report_html(found, bench.state, bench.stamp),
                actions.page(found),
                commands.audit_command(bench, name or "quick"),
                id,
                *busy(False),
            )

    go.click(
        measure,
        suite,
        [status, shown, page, command, report, go, cancel],
        api_name="damage",
        **MODEL,
    )


def _which(bench: Bench) -> None:
    with gr.Row(elem_classes="actions"):
        go = gr.Button("Tell them apart", variant="primary", elem_id="which-run")
        cancel = cancel_button(bench, "which")
    status = gr.HTML("", elem_id="which-status", apply_default_css=False)
    shown = gr.HTML(
        empty("The stack is measured without each edit in turn: what each adds to the damage."),
        elem_id="which-table",
        apply_default_css=False,
    )

    def tell(request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """What each edit of the stack adds to the damage."""
        yield "", gr.skip(), *busy(True)
        job = bench.job("telling apart", actions.attribute(bench, "quick"), owner(request))
        for said, rows in run(job):
            html = actions.attribution_html(bench, rows) if rows is not None else gr.skip()
            yield said, html, *busy(not job.ended)

    go.click(tell, None, [status, shown, go, cancel], api_name="which_edit", **MODEL)


def _ladder(bench: Bench) -> None:
    with gr.Row(elem_classes="actions"):
        go = gr.Button("Climb the ladder", variant="primary", elem_id="ladder-run")
        cancel = cancel_button(bench, "ladder")
    status = gr.HTML("", elem_id="ladder-status", apply_default_css=False)
    shown = gr.HTML(
        empty(
            "Old answers are asked for in ever more forceful ways, beside made-up facts as a control: "
            "is what was changed gone, or only hidden?"
        ),
        elem_id="ladder-page",
        apply_default_css=False,
    )

    def climb(request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Whether what the edits changed is gone or only hidden."""
        yield "", gr.skip(), *busy(True)
        job = bench.job("climbing the ladder", actions.ladder(bench), owner(request))
        for said, html in run(job):
            yield said, html if html is not None else gr.skip(), *busy(not job.ended)

    go.click(climb, None, [status, shown, go, cancel], api_name="ladder", **MODEL)


def _flinch(bench: Bench) -> None:
    known = checkpoints.known()
    here = [str(bench.path)] if bench.is_open else known[:1]
    with gr.Row(equal_height=False, elem_classes="ask"):
        folders = gr.Dropdown(
            sorted({*known, *here}),
            value=here,
            multiselect=True,
            allow_custom_value=True,
            label="Checkpoints",
            info="The first is what the others are compared with.",
            elem_id="flinch-folders",
            scale=4,
        )
        most = gr.Slider(
            2, 60, value=6, step=2, label="Prompts of a kind", elem_id="flinch-most", scale=2
        )
        stack = gr.Checkbox(True, label="and the stack in memory", elem_id="flinch-stack")
    with gr.Row(elem_classes="actions"):
        go = gr.Button("Run the flinch test", variant="primary", elem_id="flinch-run")
        cancel = cancel_button(bench, "flinch")
    status = gr.HTML("", elem_id="flinch-status", apply_default_css=False)
    shown = gr.HTML(
        empty("Who refuses what: harmless prompts, harmless ones that sound bad, and unsafe ones."),
        elem_id="flinch-table",
        apply_default_css=False,
    )

    command = command_box("flinch", 2)

    def test(
        chosen: list[str], count: float, edited: bool, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Refusals of several checkpoints on three kinds of prompts."""
        yield "", gr.skip(), gr.skip(), *busy(True)
        folders = chosen or []
        work = actions.flinch_test(bench, folders, edited, int(count))
        job = bench.job("testing", work, owner(request))
        for said, html in run(job):
            after = (gr.skip(), gr.skip())
            if html is not None:
                after = (html, commands.flinch_command(bench, folders, edited, int(count)))
            yield said, *after, *busy(not job.ended)

    go.click(
        test,
        [folders, most, stack],
        [status, shown, command, go, cancel],
        api_name="flinch",
        **MODEL,
    )
