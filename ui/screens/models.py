"""Compare models: answers of several checkpoints, a debate, a cross-check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ui.actions import commands
from ui.actions import models as actions
from ui.actions.specs import lines
from ui.markup import empty
from ui.screens.shell import MODEL, busy, cancel_button, command_box, heading, owner, run
from ui.session import Bench

RULES = [
    ("each must stay truthful", "stay_truthful"),
    ("they must agree in the end", "must_agree"),
    ("they must not agree", "must_not"),
]
QUESTIONS = "What is the capital of France?\nWhat is the capital of Italy?\nWho wrote Hamlet?"


def build(bench: Bench) -> None:
    heading(
        "Compare models",
        "Two to four models on the same questions. The one in memory can stand on both sides, "
        "with its edits and without.",
    )
    with gr.Tabs(elem_id="models-tabs", elem_classes="inner"):
        with gr.Tab("Answers", id="answers"):
            _answers(bench)
        with gr.Tab("Debate", id="debate"):
            _debate(bench)
        with gr.Tab("Cross-check", id="crosscheck"):
            _crosscheck(bench)


def _answers(bench: Bench) -> None:
    known = actions.choices()
    chosen = gr.Dropdown(
        known,
        value=known[:2],
        multiselect=True,
        allow_custom_value=True,
        max_choices=actions.MOST,
        label="Models",
        elem_id="answers-models",
    )
    prompts = gr.Textbox(
        label="Prompts", info="One a line.", value=QUESTIONS, lines=4, elem_id="answers-prompts"
    )
    with gr.Row(elem_classes="options"):
        mode = gr.Radio(
            [("Ask as a chat", "chat"), ("Continue the text", "text")],
            value="chat",
            label="How",
            elem_id="answers-mode",
        )
        length = gr.Slider(8, 160, value=40, step=8, label="Tokens", elem_id="answers-tokens")
    go, cancel, status, shown, command = _runner(
        bench, "answers", "Ask all", "Their answers appear here, the most different first."
    )

    def ask(
        which: list[str], text: str, how: str, most: float, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """The same prompts to several models."""
        asked = lines(text)
        work = actions.answers(bench, which or [], asked, int(most), how == "chat")
        line = ""
        if bench.is_open:
            names = [actions.as_argument(bench, one) for one in which or []]
            extra = [] if how == "chat" else ["--no-chat"]
            line = "\n".join(
                [
                    commands.heredoc("prompts.txt", "\n".join(asked)),
                    commands.line(
                        "surgery", "answers", *names, "--prompts", "prompts.txt",
                        "--tokens", str(int(most)), *extra,
                    ),
                ]
            )  # fmt: skip
        yield from _worked(bench, "asking", work, line, request)

    go.click(
        ask,
        [chosen, prompts, mode, length],
        [status, shown, command, go, cancel],
        api_name="answers",
        **MODEL,
    )


def _two(name: str, first: str, second: str) -> tuple[gr.Dropdown, gr.Dropdown]:
    known = actions.choices()
    with gr.Row():
        one = gr.Dropdown(
            known, value=known[0], allow_custom_value=True, label=first, elem_id=f"{name}-one"
        )
        other = gr.Dropdown(
            known, value=known[1], allow_custom_value=True, label=second, elem_id=f"{name}-other"
        )
    return one, other


def _debate(bench: Bench) -> None:
    one, other = _two("debate", "Speaks first", "Answers")
    question = gr.Textbox(
        label="Question", value="What is the capital of France?", elem_id="debate-question"
    )
    with gr.Row(elem_classes="options"):
        rule = gr.Radio(RULES, value="stay_truthful", label="Rule", elem_id="debate-rule")
        turns = gr.Slider(2, 12, value=4, step=1, label="Turns", elem_id="debate-turns")
        seed = gr.Number(value=0, precision=0, label="Seed", elem_id="debate-seed", min_width=80)
    go, cancel, status, shown, command = _runner(
        bench,
        "debate",
        "Let them argue",
        "The debate appears here, with the turn at which a side gives way.",
    )

    def argue(
        a: str, b: str, asked: str, how: str, count: float, start: float, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Two models argue a question under a rule."""
        work = actions.debate(bench, a, b, asked, how, int(count), int(start or 0))
        line = ""
        if bench.is_open:
            line = commands.line(
                "surgery", "debate", actions.as_argument(bench, a), actions.as_argument(bench, b),
                "--question", asked, "--rule", how, "--turns", str(int(count)),
                "--seed", str(int(start or 0)),
            )  # fmt: skip
        yield from _worked(bench, "debating", work, line, request)

    go.click(
        argue,
        [one, other, question, rule, turns, seed],
        [status, shown, command, go, cancel],
        api_name="debate",
        **MODEL,
    )


def _crosscheck(bench: Bench) -> None:
    one, other = _two("crosscheck", "One", "The other")
    prompts = gr.Textbox(
        label="Prompts",
        info="One a line. A few more than three make the reading surer.",
        value=QUESTIONS,
        lines=4,
        elem_id="crosscheck-prompts",
    )
    go, cancel, status, shown, command = _runner(
        bench,
        "crosscheck",
        "Cross-check",
        "What the one asserts and the other denies appears here, in both directions.",
    )

    def check(a: str, b: str, text: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Each model judges what the other says."""
        asked = lines(text)
        work = actions.crosscheck(bench, a, b, asked)
        line = ""
        if bench.is_open:
            names = actions.as_argument(bench, a), actions.as_argument(bench, b)
            line = "\n".join(
                [
                    commands.heredoc("prompts.txt", "\n".join(asked)),
                    commands.line(
                        "surgery",
                        "crosscheck",
                        names[0],
                        "--by",
                        names[1],
                        "--prompts",
                        "prompts.txt",
                    ),
                ]
            )
        yield from _worked(bench, "cross-checking", work, line, request)

    go.click(
        check,
        [one, other, prompts],
        [status, shown, command, go, cancel],
        api_name="crosscheck",
        **MODEL,
    )


def _runner(bench: Bench, name: str, button: str, hint: str) -> tuple[Any, ...]:
    with gr.Row(elem_classes="actions"):
        go = gr.Button(button, variant="primary", elem_id=f"{name}-run")
        cancel = cancel_button(bench, name)
    status = gr.HTML("", elem_id=f"{name}-status", apply_default_css=False)
    shown = gr.HTML(empty(hint), elem_id=f"{name}-shown", apply_default_css=False)
    return go, cancel, status, shown, command_box(name, 3)


def _worked(
    bench: Bench, name: str, work: Callable[[], str], line: str, request: gr.Request
) -> Iterator[tuple[Any, ...]]:
    yield "", gr.skip(), gr.skip(), *busy(True)
    job = bench.job(name, work, owner(request))
    for said, html in run(job):
        shown = (html, line) if html is not None else (gr.skip(), gr.skip())
        yield said, *shown, *busy(not job.ended)
