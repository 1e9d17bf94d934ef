"""Before and after: base and edited side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ui.actions import commands, tokens
from ui.actions.answers import Asked, Pair, answer_both
from ui.actions.showing import pair_html
from ui.markup import empty, state_line
from ui.screens.shell import (
    MODEL,
    Shell,
    busy,
    cancel_button,
    command_box,
    heading,
    owner,
    run,
)
from ui.session import Bench


def build(bench: Bench, shell: Shell) -> None:
    heading(
        "Before and after",
        "The same prompt, the same seed, the same weights but for the edits. "
        "Words the other side does not have are marked.",
    )
    with gr.Row(equal_height=False, elem_classes="ask"):
        prompt = gr.Textbox(
            label="Prompt",
            placeholder="The capital of France is",
            elem_id="sides-prompt",
            lines=1,
            max_lines=6,
            scale=5,
        )
        go = gr.Button("Compare", variant="primary", elem_id="sides-run", scale=0, min_width=120)
        cancel = cancel_button(bench, "sides")
    with gr.Row(elem_classes="options"):
        mode = gr.Radio(
            [("Continue the text", "text"), ("Ask as a chat", "chat")],
            value="text",
            label="How",
            elem_id="sides-mode",
        )
        against = gr.Radio(
            [("the base", "base"), ("without the newest edit", "newest")],
            value="base",
            label="Before means",
            elem_id="sides-against",
        )
        shading = gr.Radio(
            [("differing words", "words"), ("surprise to the other side", "surprise")],
            value="words",
            label="Mark",
            elem_id="sides-shading",
        )
        length = gr.Slider(4, 200, value=32, step=4, label="Tokens", elem_id="sides-tokens")
        temperature = gr.Slider(
            0, 1.5, value=0, step=0.1, label="Temperature", elem_id="sides-temperature"
        )
        seed = gr.Number(value=0, precision=0, label="Seed", elem_id="sides-seed", min_width=80)
    status = gr.HTML("", elem_id="sides-status", apply_default_css=False)
    both = gr.HTML(
        empty("Both answers appear here as they are written, the base on the left."),
        elem_id="sides-answers",
        apply_default_css=False,
    )
    table = gr.HTML("", elem_id="sides-next", apply_default_css=False)
    command = command_box("sides", 4)

    def compare(
        text: str,
        how: str,
        before: str,
        mark: str,
        most: float,
        heat: float,
        start: float,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Answer a prompt with base and edited, and compare the next token."""
        asked = Asked(how == "chat", int(most), float(heat), int(start or 0), before)
        pair = Pair(text or "")
        # Marking by surprise needs both answers whole; until then there is nothing to mark.
        reads: dict[str, list[float]] = {}
        yield "", gr.skip(), gr.skip(), gr.skip(), *busy(True)

        def work() -> list[tokens.Next]:
            answer_both(bench, pair, asked)
            if mark == "surprise":
                for name, voice, by in (("left", pair.left, "right"), ("right", pair.right, "left")):
                    reads[name] = tokens.surprise(bench, text, voice.ids, asked.chat, by, before)
            return tokens.next_tokens(bench, text, asked.chat, before)

        job = bench.job("answering", work, owner(request))
        for said, rows in run(job):
            shown = pair_html(pair, reads) if pair.left.state else gr.skip()
            following = tokens.next_html(rows) if rows is not None else gr.skip()
            line = commands.answers_command(bench, [text]) if rows is not None else gr.skip()
            yield (
                said if not pair.left.text or job.ended else "",
                shown,
                following,
                line,
                *busy(not job.ended),
            )

    inputs = [prompt, mode, against, shading, length, temperature, seed]
    outputs = [status, both, table, command, go, cancel]
    gr.on(
        [go.click, prompt.submit], compare, inputs, outputs, api_name="compare_sides", **MODEL
    )
    _ = shell, state_line
