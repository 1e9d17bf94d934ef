"""Checkpoint: choose one, see what it is, load it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from surgery.errors import SurgeryError
from ui.actions import checkpoints
from ui.markup import empty, notice
from ui.screens.shell import LIGHT, MODEL, Shell, changes, heading, run
from ui.session import Bench


def build(bench: Bench, shell: Shell) -> None:
    heading(
        "Checkpoint",
        "Choose the model to work on. It is loaded once and held in memory; "
        "nothing on disk is changed unless you take something away.",
    )
    known = checkpoints.known()
    first = str(bench.path) if bench.is_open else (known[0] if known else "")
    with gr.Row(equal_height=False):
        path = gr.Dropdown(
            choices=known if not first or first in known else [first, *known],
            value=first or None,
            allow_custom_value=True,
            label="Checkpoint folder",
            info="From weights/ and out/, or type the path of any Hugging Face folder with safetensors.",
            elem_id="checkpoint-path",
            scale=5,
        )
        load = gr.Button(
            "Load", variant="primary", elem_id="checkpoint-load", scale=0, min_width=110
        )
    said = gr.HTML("", elem_id="checkpoint-said", apply_default_css=False)
    about = gr.HTML(
        _about(first) if first else empty("Nothing chosen yet."),
        elem_id="checkpoint-about",
        apply_default_css=False,
    )

    def look(chosen: str) -> tuple[str, str]:
        try:
            return "", checkpoints.describe(chosen)
        except SurgeryError as error:
            return notice(str(error)), ""

    def open_it(chosen: str) -> Iterator[tuple[Any, ...]]:
        """Load the checkpoint in a folder."""
        yield gr.skip(), gr.skip(), gr.update(interactive=False)
        job = bench.job("loading", lambda: checkpoints.open_checkpoint(bench, chosen))
        for status, done in run(job):
            described = _about(chosen) if done is not None else gr.skip()
            yield done or status, described, gr.update(interactive=job.ended)

    path.change(look, path, [said, about], api_name="describe", trigger_mode="always_last", **LIGHT)
    changes(shell, load.click(open_it, path, [said, about, load], api_name="load", **MODEL), "load")


def _about(path: str) -> str:
    try:
        return checkpoints.describe(path)
    except SurgeryError as error:
        return notice(str(error))
