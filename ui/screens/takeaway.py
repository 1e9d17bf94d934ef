"""Take away: spec, delta, adapter, checkpoint, report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ui.actions import commands, takeaway
from ui.actions.places import export_folder
from ui.markup import empty, esc, notice
from ui.screens.shell import MODEL, command_box, heading, owner, run
from ui.session import Bench

KINDS = {
    "spec": (
        "Spec",
        "What was asked for, with every choice filled in. Solving it again gives the same delta.",
    ),
    "delta": ("Delta", "The weight changes alone, one small file for each edit."),
    "lora": ("LoRA adapter", "All edits as one adapter for PEFT, vLLM and others."),
    "checkpoint": (
        "Checkpoint",
        "The whole edited model as an ordinary Hugging Face folder, with its lineage.",
    ),
    "report": ("Report", "The last damage report, as a page and as data."),
}


def build(bench: Bench, report: gr.State) -> None:
    heading(
        "Take away",
        f"Everything lands in <code>{esc(export_folder())}</code>. What is switched on is what is taken.",
    )
    buttons = {}
    with gr.Row(elem_id="takeaway-kinds"):
        for key, (title, text) in KINDS.items():
            with gr.Column(min_width=180, elem_classes="kind"):
                gr.HTML(f"<h3>{title}</h3><p>{text}</p>", apply_default_css=False)
                buttons[key] = gr.Button(
                    f"Take the {title.split()[0].lower() if key != 'lora' else 'adapter'}",
                    elem_id=f"take-{key}",
                    size="md",
                )
    status = gr.HTML("", elem_id="take-status", apply_default_css=False)
    said = gr.HTML(
        empty("Files to download appear here; large ones stay in the folder."),
        elem_id="take-said",
        apply_default_css=False,
    )
    files = gr.File(
        label="Files", file_count="multiple", interactive=False, visible=False, elem_id="take-files"
    )
    command = command_box("take", 2)

    def taking(
        work: Callable[[], takeaway.Taken], line: str, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        job = bench.job("writing", work, owner(request))
        for progress, done in run(job):
            if done is None:
                yield progress, gr.skip(), gr.skip(), gr.skip()
                continue
            yield (
                progress,
                notice(done.said, "good") + f'<p class="about"><code>{esc(done.path)}</code></p>',
                gr.update(value=done.files or None, visible=bool(done.files)),
                line,
            )

    def spec(request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """The specs of what is on."""
        yield from taking(takeaway.spec(bench), _apply(bench), request)

    def delta(request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """The deltas of what is on."""
        yield from taking(takeaway.deltas(bench), _apply(bench), request)

    def lora(request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Everything that is on as a LoRA adapter."""
        line = "\n".join(
            commands.line(
                "surgery", "export", name, "--format", "lora", "-o", f"out/{name.split('.')[0]}"
            )
            for name in (commands.stack_files(bench) if bench.is_open else [])
        )
        yield from taking(takeaway.adapter(bench), line, request)

    def checkpoint(request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """The whole edited checkpoint."""
        yield from taking(takeaway.checkpoint(bench), _apply(bench), request)

    def page(id: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """The last report."""
        line = commands.audit_command(bench, "quick") if bench.is_open else ""
        yield from taking(takeaway.report(id), line, request)

    outputs = [status, said, files, command]
    for key, handler in (
        ("spec", spec),
        ("delta", delta),
        ("lora", lora),
        ("checkpoint", checkpoint),
    ):
        buttons[key].click(handler, None, outputs, api_name=f"take_{key}", **MODEL)
    buttons["report"].click(page, report, outputs, api_name="take_report", **MODEL)


def _apply(bench: Bench) -> str:
    return commands.apply_command(bench) if bench.is_open else ""
