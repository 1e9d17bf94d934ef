"""Before and after: base and edited side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from surgery.errors import SurgeryError
from ui.actions import batch, commands, talk, tokens
from ui.actions.answers import Asked, Pair, Voice, answer_both
from ui.actions.showing import pair_html
from ui.actions.specs import lines
from ui.markup import empty, notice
from ui.screens.shell import (
    LIGHT,
    MODEL,
    busy,
    cancel_button,
    command_box,
    heading,
    owner,
    run,
)
from ui.session import Bench

if TYPE_CHECKING:
    from surgery.trace.tokens import NextTokenChange

MODES = [("Continue the text", "text"), ("Ask as a chat", "chat")]


def build(bench: Bench) -> None:
    heading(
        "Before and after",
        "The same prompt, the same seed, the same weights but for the edits. "
        "Words the other side does not have are marked.",
    )
    with gr.Tabs(elem_id="sides-tabs", elem_classes="inner"):
        with gr.Tab("One prompt", id="one"):
            _one(bench)
        with gr.Tab("Many prompts", id="many"):
            _many(bench)
        with gr.Tab("Conversation", id="talk"):
            _talk(bench)


def _one(bench: Bench) -> None:
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
            MODES,
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

        def work() -> list[NextTokenChange]:
            answer_both(bench, pair, asked)
            if mark == "surprise":

                def read(voice: Voice, by: str) -> list[float]:
                    return tokens.surprise(bench, text, voice.ids, asked.chat, by, before)

                # Both at once: the page is drawn meanwhile, and cannot use one alone.
                reads.update(left=read(pair.left, "right"), right=read(pair.right, "left"))
            return tokens.next_tokens(bench, text, asked.chat, before)

        job = bench.job("answering", work, owner(request))
        for said, rows in run(job):
            shown = pair_html(pair, reads) if pair.left.state else gr.skip()
            following = tokens.next_html(rows) if rows is not None else gr.skip()
            line = (
                commands.answers_command(bench, [text], asked.chat, asked.tokens)
                if rows is not None
                else gr.skip()
            )
            yield (
                said if not pair.left.text or job.ended else "",
                shown,
                following,
                line,
                *busy(not job.ended),
            )

    inputs = [prompt, mode, against, shading, length, temperature, seed]
    outputs = [status, both, table, command, go, cancel]
    gr.on([go.click, prompt.submit], compare, inputs, outputs, api_name="compare_sides", **MODEL)


def _many(bench: Bench) -> None:
    prompts = gr.Textbox(
        label="Prompts",
        info="One a line.",
        lines=6,
        max_lines=14,
        placeholder="The capital of France is\nThe capital of Italy is",
        elem_id="batch-prompts",
    )
    with gr.Row(elem_classes="options"):
        mode = gr.Radio(MODES, value="text", label="How", elem_id="batch-mode")
        length = gr.Slider(4, 120, value=16, step=4, label="Tokens", elem_id="batch-tokens")
    with gr.Row(elem_classes="actions"):
        go = gr.Button("Ask all", variant="primary", elem_id="batch-run")
        cancel = cancel_button(bench, "batch")
    status = gr.HTML("", elem_id="batch-status", apply_default_css=False)
    table = gr.HTML("", elem_id="batch-table", apply_default_css=False)
    command = command_box("batch", 4)

    def ask(text: str, how: str, most: float, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Answer many prompts with base and edited; the changed ones come first."""
        asked = lines(text)
        yield "", gr.skip(), gr.skip(), *busy(True)
        work = batch.ask_all(bench, asked, how == "chat", int(most))
        job = bench.job("answering", work, owner(request))
        for said, rows in run(job):
            shown = (
                batch.batch_html(rows, bench.state, bench.stamp) if rows is not None else gr.skip()
            )
            line = gr.skip()
            if rows is not None:
                line = commands.answers_command(bench, asked, how == "chat", int(most))
            yield said, shown, line, *busy(not job.ended)

    go.click(
        ask,
        [prompts, mode, length],
        [status, table, command, go, cancel],
        api_name="compare_many",
        **MODEL,
    )


def _talk(bench: Bench) -> None:
    talk_id = gr.State("")
    both = gr.HTML(
        empty("Write to both at once. Each side remembers its own answers."),
        elem_id="talk-both",
        apply_default_css=False,
    )
    status = gr.HTML("", elem_id="talk-status", apply_default_css=False)
    with gr.Row(equal_height=False, elem_classes="ask"):
        message = gr.Textbox(
            show_label=False, placeholder="Write to both", elem_id="talk-message", scale=5
        )
        go = gr.Button("Send", variant="primary", elem_id="talk-send", scale=0, min_width=90)
        cancel = cancel_button(bench, "talk")
        clear = gr.Button("Start over", elem_id="talk-clear", scale=0, min_width=100)
    with gr.Row(elem_classes="options"):
        length = gr.Slider(8, 200, value=48, step=8, label="Tokens", elem_id="talk-tokens")
        temperature = gr.Slider(
            0, 1.5, value=0, step=0.1, label="Temperature", elem_id="talk-temperature"
        )
        seed = gr.Number(value=0, precision=0, label="Seed", elem_id="talk-seed", min_width=80)

    def send(
        text: str, id: str, most: float, heat: float, start: float, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Put a message to base and edited, each in its own conversation."""
        id, conversation = talk.open_talk(id)
        asked = Asked(True, int(most), float(heat), int(start or 0))
        try:
            work = talk.say(bench, conversation, text or "", asked)
        except SurgeryError as error:
            yield notice(str(error)), gr.skip(), gr.skip(), id, *busy(False)
            return
        yield "", gr.skip(), "", id, *busy(True)
        job = bench.job("answering", work, owner(request))
        for said, _ in run(job):
            shown = talk.talk_html(conversation) or gr.skip()
            yield said if job.ended else "", shown, gr.skip(), id, *busy(not job.ended)

    def start_over() -> tuple[str, str, str]:
        return "", empty("Write to both at once. Each side remembers its own answers."), ""

    gr.on(
        [go.click, message.submit],
        send,
        [message, talk_id, length, temperature, seed],
        [status, both, message, talk_id, go, cancel],
        api_name="chat_both",
        **MODEL,
    )
    clear.click(start_over, None, [talk_id, both, status], api_name="chat_clear", **LIGHT)
