"""What surrounds every screen: the line that names the state, and the stack panel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import api

from surgery.errors import Cancelled, SurgeryError
from ui.actions import edits as edit_actions
from ui.actions import panel
from ui.jobs import Job
from ui.markup import notice, progress
from ui.session import Bench

# One queue for everything that needs the model; the rest answers at once.
MODEL: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "show_progress": "hidden",
}
LIGHT: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
HIDDEN: dict[str, Any] = {**LIGHT, "api_visibility": "undocumented"}

# Clicks on anything with data-do inside a fragment become an event that carries its data.
CLICKS = """
element.addEventListener('click', (event) => {
  const hit = event.target.closest('[data-do]');
  if (hit && element.contains(hit)) trigger('select', {...hit.dataset});
});
"""


@dataclass
class Shell:
    """Components that every screen refreshes after it has changed something."""

    bench: Bench
    header: gr.HTML
    panel: gr.HTML
    seen: gr.State
    undo: gr.Button
    redo: gr.Button
    said: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.header, self.panel, self.seen, self.undo, self.redo]

    def show(self) -> tuple[Any, ...]:
        """The panel as the bench is now."""
        bench = self.bench
        return (
            panel.header(bench),
            panel.panel(bench),
            bench.revision,
            gr.update(interactive=bench.is_open and bench.history.can_undo),
            gr.update(interactive=bench.is_open and bench.history.can_redo),
        )


def header_bar(bench: Bench) -> gr.HTML:
    return gr.HTML(panel.header(bench), elem_id="header", apply_default_css=False)


def side_panel(bench: Bench, header: gr.HTML) -> Shell:
    """Build the panel. Its events are wired by `wire`, once everything is on the page."""
    stack = gr.HTML(panel.panel(bench), elem_id="stack", js_on_load=CLICKS, apply_default_css=False)
    with gr.Row(elem_id="steps"):
        undo = gr.Button("Undo", size="sm", elem_id="undo", interactive=False, min_width=60)
        redo = gr.Button("Redo", size="sm", elem_id="redo", interactive=False, min_width=60)
        check = gr.Button("Check weights", size="sm", elem_id="check", min_width=110)
    said = gr.HTML("", elem_id="stack-said", apply_default_css=False)
    shell = Shell(bench, header, stack, gr.State(None), undo, redo, said)
    _wire(shell, check)
    return shell


def _wire(shell: Shell, check: gr.Button) -> None:
    bench = shell.bench
    outputs = [shell.said, *shell.outputs]

    def changed(what: Callable[[], Any]) -> tuple[Any, ...]:
        try:
            what()
            said = ""
        except SurgeryError as error:
            said = notice(str(error))
        return (said, *shell.show())

    def undo(seen: int | None = None) -> tuple[Any, ...]:
        return changed(lambda: bench.undo(seen))

    def redo(seen: int | None = None) -> tuple[Any, ...]:
        return changed(lambda: bench.redo(seen))

    def pressed(seen: int, event: gr.EventData) -> Iterator[tuple[Any, ...]]:
        do, id = str(getattr(event, "do", "")), str(getattr(event, "id", ""))
        if do == "again":
            for status, done in run(
                bench.job("solving again", edit_actions.solve_again(bench, id))
            ):
                yield (status if done is None else notice("Solved again.", "good"), *shell.show())
        else:
            yield changed(lambda: panel.act(bench, do, id, seen))

    def prove() -> tuple[Any, ...]:
        return changed(bench.prove)

    shell.undo.click(undo, shell.seen, outputs, api_name="undo", **MODEL)
    shell.redo.click(redo, shell.seen, outputs, api_name="redo", **MODEL)
    check.click(prove, None, outputs, api_name="check_weights", **MODEL)
    shell.panel.select(
        pressed,
        shell.seen,
        outputs,
        api_name="stack_button",
        api_visibility="undocumented",
        **MODEL,
    )

    # Another window may change the stack at any time; what is shown here must not go stale.
    # So may it start something that everybody else has to wait for.
    at_work = gr.State("")

    def tick(seen: int | None, known: str) -> Any:
        if seen == bench.revision and known == bench.at_work:
            return tuple(gr.skip() for _ in [*shell.outputs, at_work])
        return (*shell.show(), bench.at_work)

    gr.Timer(1.5).tick(
        tick, [shell.seen, at_work], [*shell.outputs, at_work], api_name="refresh", **HIDDEN
    )

    def stack_change(do: str, edit: str) -> dict[str, Any]:
        """Switch an edit (`toggle`), move it (`up`, `down`) or `remove` it, by its id; `undo`, `redo`."""
        panel.act(bench, do, edit, None)
        return stack_state()

    def stack_state() -> dict[str, Any]:
        """The stack as data: state, revision, edits, and whether the weights are the base's."""
        proof = bench.proof
        return {
            "state": bench.state,
            "revision": bench.revision,
            "edits": [{"id": e.id, "on": e.on, "folder": e.folder} for e in bench.stack],
            "changed": None if proof is None else list(proof.changed),
            "is_base": None if proof is None else proof.is_base,
            "digest": None if proof is None else proof.digest,
        }

    api(stack_change, api_name="stack_change", concurrency_id="model", concurrency_limit=1)
    api(stack_state, api_name="stack", queue=False)


def run(job: Job[Any]) -> Iterator[tuple[str, Any]]:
    """Run a job for a handler: (status, None) while it goes, then ("", result) or (message, None)."""
    try:
        for step in job.steps():
            yield progress(step), None
        yield "", job.result()
    except Cancelled:
        yield notice("Cancelled. Everything is as it was.", "plain"), None
    except (SurgeryError, OSError) as error:
        yield notice(str(error)), None
    except (RuntimeError, MemoryError) as error:
        yield notice(_reason(error)), None


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        return "out of memory: take a smaller model, fewer facts or shorter prompts"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"this failed inside the library: {first}"


def owner(request: gr.Request | None) -> str:
    """Who started a job: the window, so that only it can cancel."""
    return str(request.session_hash) if request is not None else ""


def cancel_button(bench: Bench, name: str) -> gr.Button:
    """A button that stops what this window has running."""
    button = gr.Button("Cancel", variant="stop", elem_id=f"{name}-cancel", visible=False, size="md")

    def cancel(request: gr.Request) -> None:
        bench.cancel(owner(request))

    button.click(cancel, None, None, api_name=f"cancel_{name}", **LIGHT)
    return button


def busy(on: bool) -> tuple[Any, Any]:
    """Updates for a run button and its cancel button."""
    return gr.update(interactive=not on), gr.update(visible=on)


def command_box(name: str, lines: int = 3) -> gr.Code:
    """Copy as command, folded away under a result."""
    with gr.Accordion("Copy as command", open=False, elem_classes="command"):
        return gr.Code(
            language="shell",
            interactive=False,
            show_label=False,
            elem_id=f"{name}-command",
            lines=lines,
            show_line_numbers=False,
            wrap_lines=True,
            buttons=["copy"],
        )


def heading(title: str, text: str = "") -> None:
    """The title of a screen and what it is for, in one sentence."""
    gr.HTML(
        f'<div class="heading"><h1>{title}</h1>{f"<p>{text}</p>" if text else ""}</div>',
        apply_default_css=False,
    )


def changes(shell: Shell, event: Any, name: str) -> None:
    """Refresh the panel after an event that may have changed the stack."""
    event.then(shell.show, None, shell.outputs, api_name=f"{name}_shown", **HIDDEN)
