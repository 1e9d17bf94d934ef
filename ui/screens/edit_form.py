"""The fields of the edit form, a group for every kind of edit, in plain words."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.actions import specs

METHODS = {
    "rome": "ROME: one layer, one fact at a time",
    "memit": "MEMIT: several layers, many facts at once",
    "alphaedit": "AlphaEdit: as MEMIT, in the null space of what must stay",
    "emmet": "EMMET: one layer, many facts exactly",
    "finetune": "Fine-tuning of one matrix: the plain baseline",
}


def forms() -> tuple[dict[str, Any], list[gr.Group]]:
    """The fields of every form by name, and the groups that are shown one at a time."""
    fields: dict[str, Any] = {}
    groups = []
    with gr.Group(visible=True, elem_id="form-fact", elem_classes="form-group") as group:
        groups.append(group)
        fields["prompt"] = gr.Textbox(
            label="A sentence that ends where the answer begins",
            info="Write {} where the subject stands.",
            placeholder="The capital of {} is",
            elem_id="fact-prompt",
        )
        with gr.Row():
            fields["subject"] = gr.Textbox(
                label="Subject", placeholder="France", elem_id="fact-subject", min_width=140
            )
            fields["target"] = gr.Textbox(
                label="New answer", placeholder="Rome", elem_id="fact-target", min_width=140
            )
        with gr.Accordion("What to measure beside it", open=False, elem_classes="how"):
            fields["paraphrases"] = gr.Textbox(
                label="Other ways to ask, which should change too",
                info="One a line; {} for the subject.",
                lines=2,
                elem_id="fact-paraphrases",
            )
            fields["neighbours"] = gr.Textbox(
                label="Similar questions that must keep their answers",
                info="One a line.",
                lines=2,
                elem_id="fact-neighbours",
            )
        _method(fields, "", "fact")
    with gr.Group(visible=False, elem_id="form-facts", elem_classes="form-group") as group:
        groups.append(group)
        fields["table"] = gr.Dataframe(
            headers=["Sentence with {}", "Subject", "New answer"],
            value=[["", "", ""]],
            datatype="str",
            type="array",
            column_count=3,
            interactive=True,
            label="Facts",
            elem_id="facts-table",
            wrap=True,
        )
        fields["file"] = gr.Textbox(
            label="Or the path of a file of facts",
            info=".jsonl, or CounterFact, zsRE and MQuAKE as published.",
            elem_id="facts-file",
        )
        _method(fields, "_many", "facts")
    with gr.Group(visible=False, elem_id="form-behaviour", elem_classes="form-group") as group:
        groups.append(group)
        said = "One prompt a line, or the path of one .txt, .jsonl or .csv file."
        fields["positive"] = gr.Textbox(
            label="Prompts that show the behaviour",
            info=said,
            lines=4,
            max_lines=8,
            elem_id="behaviour-positive",
        )
        fields["negative"] = gr.Textbox(
            label="Prompts that do not",
            info=said,
            lines=4,
            max_lines=8,
            elem_id="behaviour-negative",
        )
        fields["spare"] = gr.Textbox(
            label="Prompts whose behaviour must stay (optional)",
            lines=2,
            max_lines=6,
            elem_id="behaviour-spare",
        )
        with gr.Row():
            fields["strength"] = gr.Slider(
                -2.0,
                2.0,
                value=1.0,
                step=0.05,
                label="Strength",
                info="1 removes, 0.5 halves, negative strengthens.",
                elem_id="behaviour-strength",
                scale=3,
            )
            fields["read_layer"] = gr.Number(
                value=None,
                precision=0,
                label="Layer",
                info="Blank: chosen.",
                elem_id="behaviour-layer",
                min_width=100,
            )
    with gr.Group(visible=False, elem_id="form-include", elem_classes="form-group") as group:
        groups.append(group)
        fields["path"] = gr.Textbox(
            label="Path",
            info="A .delta.safetensors file, a LoRA adapter folder, or a checkpoint folder.",
            elem_id="include-path",
        )
        fields["minus"] = gr.Textbox(
            label="Minus this checkpoint (optional)",
            info="For the difference of two checkpoints.",
            elem_id="include-minus",
        )
        fields["scale"] = gr.Slider(
            -2.0, 2.0, value=1.0, step=0.05, label="Scale", elem_id="include-scale"
        )
    with gr.Row():
        fields["name"] = gr.Textbox(
            label="Name (optional)",
            info="What the edit is called on the stack.",
            elem_id="edit-name",
            scale=3,
        )
        fields["seed"] = gr.Number(
            value=0,
            precision=0,
            label="Seed",
            info="Same seed, same delta.",
            elem_id="edit-seed",
            min_width=100,
        )
    return fields, groups


def _method(fields: dict[str, Any], suffix: str, form: str) -> None:
    with gr.Accordion("Method, layers, steps", open=False, elem_classes="how"):
        fields[f"method{suffix}"] = gr.Dropdown(
            [(METHODS[key], key) for key in specs.FORMS[form]],
            value=specs.FORMS[form][0],
            label="Method",
            filterable=False,
            elem_id=f"{form}-method",
        )
        with gr.Row():
            fields[f"layers{suffix}"] = gr.Textbox(
                label="Layers",
                info="Blank: chosen by depth. A trace shows where to look.",
                elem_id=f"{form}-layers",
                min_width=140,
            )
            fields[f"steps{suffix}"] = gr.Number(
                value=None,
                precision=0,
                label="Most steps",
                info="Blank: 25.",
                elem_id=f"{form}-steps",
                min_width=120,
            )
