"""Look inside: causal trace, logit lens, next token, projection on a direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ui.actions import commands, specs
from ui.actions import inside as actions
from ui.markup import empty
from ui.screens.shell import (
    CLICKS,
    HIDDEN,
    MODEL,
    busy,
    cancel_button,
    command_box,
    heading,
    owner,
    run,
)
from ui.session import Bench


def build(bench: Bench) -> dict[str, Any]:
    heading(
        "Look inside",
        "Find where the model keeps what you want to change. A trace hides the subject in noise, puts "
        "single states back, and sees which of them bring the answer back.",
    )
    with gr.Row(equal_height=False, elem_classes="ask"):
        prompt = gr.Textbox(
            label="Prompt", placeholder="The capital of France is", elem_id="inside-prompt", scale=4
        )
        subject = gr.Textbox(
            label="Subject", placeholder="France", elem_id="inside-subject", scale=2, min_width=120
        )
        answer = gr.Textbox(
            label="Answer (optional)", placeholder="what the model says", elem_id="inside-answer",
            scale=2, min_width=120,
        )  # fmt: skip
    with gr.Row(elem_classes="actions"):
        go = gr.Button("Trace", variant="primary", elem_id="inside-trace")
        look = gr.Button("Logit lens", elem_id="inside-lens")
        following = gr.Button("Next token", elem_id="inside-next")
        cancel = cancel_button(bench, "inside")
    status = gr.HTML("", elem_id="inside-status", apply_default_css=False)
    picture = gr.HTML(
        empty("The picture appears here: tokens down, layers across. Click a layer to edit there."),
        elem_id="inside-picture",
        js_on_load=CLICKS,
        apply_default_css=False,
    )
    with gr.Accordion("Project on a direction", open=False, elem_classes="how"):
        file = gr.Textbox(
            label="A saved direction",
            info="Path of the .safetensors file.",
            elem_id="inside-direction",
        )
        with gr.Row():
            positive = gr.Textbox(
                label="Or prompts that show a behaviour",
                info="One a line, or the path of a file.",
                lines=3,
                elem_id="inside-positive",
            )
            negative = gr.Textbox(
                label="and prompts that do not",
                info="One a line, or the path of a file.",
                lines=3,
                elem_id="inside-negative",
            )
        onto = gr.Button("Project", elem_id="inside-project")
    command = command_box("inside", 2)

    outputs = [status, picture, command, go, cancel]

    def worked(
        name: str, work: Callable[[], str], line: str, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        yield "", gr.skip(), gr.skip(), *busy(True)
        job = bench.job(name, work, owner(request))
        for said, done in run(job):
            shown = (done, line) if done is not None else (gr.skip(), gr.skip())
            yield said, *shown, *busy(not job.ended)

    def trace(text: str, about: str, wanted: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Causal trace of a prompt and its subject."""
        line = (
            commands.trace_command(bench, text, about, wanted, actions.SAMPLES)
            if bench.is_open
            else ""
        )
        yield from worked("tracing", actions.trace(bench, text, about, wanted), line, request)

    def lens(text: str, wanted: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """What every layer would say next."""
        yield from worked("reading layers", actions.lens(bench, text, wanted), "", request)

    def candidates(text: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """The likeliest next tokens."""
        yield from worked("reading", lambda: actions.candidates(bench, text), "", request)

    def project(
        text: str, path: str, plus: str, minus: str, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """How far a prompt lies along a direction, by layer and token."""
        work = actions.project(bench, text, path, plus, minus)
        yield from worked("projecting", work, "", request)

    go.click(trace, [prompt, subject, answer], outputs, api_name="trace", **MODEL)
    look.click(lens, [prompt, answer], outputs, api_name="lens", **MODEL)
    gr.on(
        [following.click, prompt.submit],
        candidates,
        prompt,
        outputs,
        api_name="next_token",
        **MODEL,
    )
    onto.click(project, [prompt, file, positive, negative], outputs, api_name="project", **MODEL)
    return {"picture": picture, "prompt": prompt, "subject": subject}


def wire_layer(inside: dict[str, Any], edit: dict[str, Any], tabs: gr.Tabs) -> None:
    """A click on a layer fills the edit form and goes there."""
    names = list(edit["fields"])

    # The event comes first: Gradio finds it by its annotation, and the values are many.
    def pick(
        event: gr.EventData, prompt: str, subject: str, text: str, *values: Any
    ) -> tuple[Any, ...]:
        layer = int(getattr(event, "layer", 0))
        filled = actions.picked(dict(zip(names, values, strict=True)), prompt, subject, layer)
        boxes = [filled[name] for name in names]
        return (
            gr.Tabs(selected="edit"),
            "fact",
            *boxes,
            *(gr.update(visible=key == "fact") for key in specs.FORMS),
            *edit["from_form"]("fact", text, *boxes),
        )

    inside["picture"].select(
        pick,
        [inside["prompt"], inside["subject"], edit["yaml"], *edit["boxes"]],
        [tabs, edit["kind"], *edit["boxes"], *edit["groups"], edit["yaml"], *edit["looked"]],
        api_name="pick_layer",
        **HIDDEN,
    )
