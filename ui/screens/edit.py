"""Edit: a form in plain words and its YAML side by side; solve, and see at once whether it took."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.events import api

from surgery.errors import SurgeryError
from ui.actions import commands, specs
from ui.actions import edits as actions
from ui.markup import empty, notice
from ui.naming import what
from ui.screens.edit_form import forms
from ui.screens.shell import (
    HIDDEN,
    MODEL,
    Shell,
    busy,
    cancel_button,
    changes,
    command_box,
    heading,
    owner,
    run,
)
from ui.session import Bench

TYPING: dict[str, Any] = {**HIDDEN, "trigger_mode": "always_last"}


def build(bench: Bench, shell: Shell) -> dict[str, Any]:
    heading(
        "Edit",
        "Say what should change. The form and the YAML are the same spec: write in either.",
    )
    ready = list(specs.ready())
    with gr.Row(equal_height=False, elem_classes="columns"):
        with gr.Column(scale=6, min_width=320):
            with gr.Row(equal_height=False):
                kind = gr.Dropdown(
                    [(title, key) for key, title in specs.TITLES.items()],
                    value="fact",
                    label="What should change?",
                    elem_id="edit-kind",
                    filterable=False,
                    scale=3,
                )
                recipe = gr.Dropdown(
                    ready,
                    value=None,
                    label="Or start from a ready-made spec",
                    elem_id="edit-ready",
                    visible=bool(ready),
                    scale=2,
                )
            fields, groups = forms()
        with gr.Column(scale=5, min_width=300):
            yaml = gr.Code(
                "",
                language="yaml",
                label="The spec, as YAML",
                elem_id="edit-yaml",
                interactive=True,
                lines=14,
                max_lines=30,
                show_line_numbers=True,
                wrap_lines=True,
                buttons=["copy"],
            )
            valid = gr.HTML(specs.check("")[1], elem_id="edit-valid", apply_default_css=False)
            ahead = gr.HTML("", elem_id="edit-ahead", apply_default_css=False)
    with gr.Row(elem_classes="actions"):
        solve = gr.Button(
            "Solve and put on the stack",
            variant="primary",
            elem_id="edit-solve",
            scale=0,
            min_width=230,
        )
        cancel = cancel_button(bench, "solve")
    status = gr.HTML("", elem_id="edit-status", apply_default_css=False)
    result = gr.HTML(
        empty(
            "After solving, both sides are asked about the fact here. "
            "The first solve on a model reads some text to learn what ordinary keys look like; that is kept."
        ),
        elem_id="edit-result",
        apply_default_css=False,
    )
    command = command_box("edit", 6)

    names, boxes = list(fields), list(fields.values())

    def gathered(form: str, values: tuple[Any, ...]) -> specs.Values:
        found = dict(zip(names, values, strict=True))
        if form == "facts":
            for key in ("method", "layers", "steps"):
                found[key] = found[f"{key}_many"]
        return found

    def look(text: str) -> tuple[str, str, str]:
        """Validity, what would be touched, and the command, for a YAML text."""
        spec, said = specs.check(text or "")
        if spec is None:
            return said, "", ""
        try:
            shown = actions.plan_html(actions.plan(bench, spec)) if bench.is_open else ""
        except SurgeryError as error:
            shown = notice(str(error))
        name = spec.name or what(spec.compact())
        return said, shown, commands.solve_command(bench, text, name) if bench.is_open else ""

    def from_form(form: str, text: str, *values: Any) -> tuple[Any, ...]:
        text = text or ""  # an editor that nobody has touched has no value
        written = specs.to_yaml(form, gathered(form, values), text)
        if written.strip() == text.strip():
            return tuple(gr.skip() for _ in range(4))
        return (written, *look(written))

    def from_text(text: str) -> tuple[Any, ...]:
        try:
            form, values = specs.from_yaml(text)
        except SurgeryError:
            kept = [gr.skip() for _ in (kind, *boxes, *groups)]
        else:
            values = {**values, **{f"{k}_many": values[k] for k in ("method", "layers", "steps")}}
            values["table"] = values["table"] or [["", "", ""]]
            kept = [form, *(values[name] for name in names)]
            kept += [gr.update(visible=key == form) for key in specs.FORMS]
        return (*kept, *look(text))

    def chosen(form: str, *values: Any) -> tuple[Any, ...]:
        written = specs.to_yaml(form, gathered(form, values), "")
        shown = [gr.update(visible=key == form) for key in specs.FORMS]
        return (*shown, written, *look(written))

    def start_from(name: str | None) -> tuple[Any, ...]:
        if not name:
            return tuple(gr.skip() for _ in range(len(boxes) + len(groups) + 5))
        try:
            text = specs.read_ready(name)
        except SurgeryError as error:
            skipped = [gr.skip() for _ in range(len(boxes) + len(groups) + 2)]
            return (*skipped, notice(str(error)), "", "")
        form_outputs = from_text(text)
        return (*form_outputs[: 1 + len(boxes) + len(groups)], text, *look(text))

    def solve_it(text: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Solve a spec given as YAML on the model in memory, and put it on the stack."""
        spec, said = specs.check(text or "")
        if spec is None:
            yield said, gr.skip(), gr.skip(), *busy(False)
            return
        yield "", gr.skip(), gr.skip(), *busy(True)
        job = bench.job("solving", actions.solve(bench, spec), owner(request))
        for progress, done in run(job):
            shown = actions.outcome_html(done) if done is not None else gr.skip()
            planned = gr.skip()
            if done is not None:
                planned = notice("This edit is on the stack now.", "plain")
            yield progress, shown, planned, *busy(not job.ended)

    looked = [valid, ahead, command]
    # One event for all fields: answers come back in the order of typing.
    gr.on(
        [box.input for box in boxes],
        from_form,
        [kind, yaml, *boxes],
        [yaml, *looked],
        api_name="form_to_yaml",
        **TYPING,
    )
    kind.input(chosen, [kind, *boxes], [*groups, yaml, *looked], api_name="choose_kind", **TYPING)
    yaml.input(from_text, yaml, [kind, *boxes, *groups, *looked], api_name="yaml_to_form", **TYPING)
    recipe.input(
        start_from, recipe, [kind, *boxes, *groups, yaml, *looked], api_name="ready_made", **TYPING
    )
    event = solve.click(
        solve_it, yaml, [status, result, ahead, solve, cancel], api_name="solve", **MODEL
    )
    changes(shell, event, "solve")

    def validate(text: str) -> dict[str, Any]:
        """Whether a YAML text is a whole spec; if not, what is wrong and on which line."""
        from surgery.spec import EditSpec

        try:
            spec = EditSpec.parse(text)
        except SurgeryError as error:
            return {"valid": False, "error": str(error)}
        return {"valid": True, "id": spec.id}

    api(validate, api_name="validate", queue=False)
    return {
        "kind": kind,
        "fields": fields,
        "boxes": boxes,
        "groups": groups,
        "yaml": yaml,
        "looked": looked,
        "from_form": from_form,
    }
