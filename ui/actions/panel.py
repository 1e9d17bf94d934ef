"""The stack panel and the line that names the state: what every window shows all the time."""

from __future__ import annotations

from surgery.errors import SurgeryError
from ui.markup import Raw, esc, notices, short
from ui.naming import label, what
from ui.session import Bench


def header(bench: Bench) -> str:
    """The state the model is in, and whether that was checked."""
    return (
        f"<style>{_outdated(bench.stamp)}</style>"
        '<div class="bar-top"><div class="word">surgery</div>'
        f'<div class="state" role="status" aria-live="polite"><span>In memory</span>'
        f"<b>{esc(bench.state)}</b></div>{_working(bench)}{_chip(bench)}</div>"
    )


def _outdated(stamp: str) -> str:
    """A rule that marks every result of another state, in this window and without asking the server."""
    return (
        f'[data-stamp]:not([data-stamp="{stamp}"])::after'
        '{content:"from an earlier state of the stack";}'
    )


def _working(bench: Bench) -> str:
    return f'<div class="chip working">{esc(bench.at_work)}</div>' if bench.at_work else ""


def _chip(bench: Bench) -> str:
    proof = bench.proof
    if not bench.is_open:
        return ""
    if proof is None:
        return '<div class="chip">weights not checked</div>'
    if proof.is_base:
        return '<div class="chip is-base">identical to the base</div>'
    if not proof.exact:
        return '<div class="chip">held at lower precision</div>'
    return f'<div class="chip is-edited">{_tensors(len(proof.changed))} changed</div>'


def panel(bench: Bench) -> str:
    """Base and edits, the newest on top, with what can be done to each."""
    if not bench.is_open:
        return (
            '<div class="stack"><h2>Stack</h2><div class="empty">No model is loaded. '
            "Choose a checkpoint on the first screen.</div></div>"
        )
    stale = bench.stale()
    rows = []
    last = len(bench.stack) - 1
    lowest = sum(entry.folder for entry in bench.stack)
    for index in reversed(range(len(bench.stack))):
        entry = bench.stack[index]
        delta = bench.deltas[entry.id]
        spec = delta.metadata.get("spec") or {}
        name = label(delta)
        detail = what(spec) if what(spec) != name else ""
        rows.append(
            f'<li class="edit {"on" if entry.on else "off"}" data-id="{entry.id}">'
            f'<button class="switch" role="switch" aria-checked="{str(entry.on).lower()}" '
            f'data-do="toggle" data-id="{entry.id}" aria-label="{esc(name)} on"><i></i></button>'
            f'<div class="body"><strong>{esc(name)}</strong>'
            + (f"<small>{esc(detail)}</small>" if detail else "")
            + f"<small>{_tensors(len(delta.tensors))} <code>{short(entry.id)}</code>"
            + (" from the folder" if entry.folder else "")
            + "</small>"
            + (f'<small class="stale">{esc(stale[entry.id])}</small>' if entry.id in stale else "")
            + _tools(entry.id, entry.folder, index, lowest, last, entry.id in stale, name)
            + "</div></li>"
        )
    base_id = bench.base_id
    rows.append(
        f'<li class="base"><span class="foot"></span><div class="body"><strong>{esc(bench.name)}'
        f"</strong><small>the base <code>{short(base_id)}</code></small></div></li>"
    )
    count = len(bench.stack)
    return (
        f'<div class="stack"><h2>Stack <span>{_edits(count)}</span></h2>'
        f"<ol>{''.join(rows)}</ol>{notices(bench.warnings)}{proof_line(bench)}</div>"
    )


def proof_line(bench: Bench) -> Raw:
    """What hashing every tensor in memory has shown."""
    proof = bench.proof
    if proof is None:
        return Raw(
            '<p class="proof">The weights in memory have not been checked since the last change.</p>'
        )
    if not proof.exact:
        return Raw(
            '<p class="proof">The model is held at lower precision than its file: '
            "equality with the base cannot be shown.</p>"
        )
    if proof.is_base:
        return Raw(
            f'<p class="proof is-base">Checked: all {proof.checked} tensors in memory have the '
            f"base’s SHA-256. <code>{short(proof.digest)}</code></p>"
        )
    names = ", ".join(proof.changed[:2]) + (
        f" and {len(proof.changed) - 2} more" if len(proof.changed) > 2 else ""
    )
    return Raw(
        f'<p class="proof">Checked: {len(proof.changed)} of {_tensors(proof.checked)} '
        f"differ{'s' if len(proof.changed) == 1 else ''} from the base, the rest "
        f"{'is' if proof.checked - len(proof.changed) == 1 else 'are'} identical. "
        f'<span class="keys">{esc(names)}</span> <code>{short(proof.digest)}</code></p>'
    )


def _tools(
    id: str, folder: bool, index: int, lowest: int, last: int, stale: bool, name: str
) -> str:
    tools = []
    if stale:
        tools.append(_tool("again", id, "Solve again", f"solve {name} again on what is beneath it"))
    if not folder:
        if index < last:
            tools.append(_tool("up", id, "Up", f"apply {name} one later"))
        if index > lowest:
            tools.append(_tool("down", id, "Down", f"apply {name} one earlier"))
        tools.append(_tool("remove", id, "Remove", f"remove {name}"))
    return f'<div class="tools">{"".join(tools)}</div>' if tools else ""


def _tool(do: str, id: str, text: str, title: str) -> str:
    return f'<button data-do="{do}" data-id="{id}" title="{esc(title)}">{text}</button>'


def _tensors(count: int) -> str:
    return f"{count} tensor{'' if count == 1 else 's'}"


def _edits(count: int) -> str:
    return "no edits" if not count else f"{count} edit{'' if count == 1 else 's'}"


def act(bench: Bench, do: str, id: str, seen: int | None) -> None:
    """What a button of the panel does, except solving again, which takes its time."""
    match do:
        case "toggle":
            bench.toggle(id, seen)
        case "up":
            bench.move(id, +1, seen)
        case "down":
            bench.move(id, -1, seen)
        case "remove":
            bench.remove(id, seen)
        case "undo":
            bench.undo(seen)
        case "redo":
            bench.redo(seen)
        case _:
            raise SurgeryError(f"nothing called {do!r} can be done to the stack")
