"""Undo: the same folder without one edit, or without all. Always from the base, never by subtracting."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from surgery.checkpoint import Checkpoint
from surgery.delta import Delta
from surgery.errors import SurgeryError
from surgery.stack.disk import Applied, rebuild
from surgery.stack.lineage import Lineage


def undo(
    folder: str | Path,
    out: str | Path,
    edit: str | None = None,
    *,
    later: Literal["refuse", "keep", "solve"] = "refuse",
    overwrite: bool = False,
) -> Applied:
    """Write `out` = the edited `folder` without one edit, or its base.

    edit: id of the edit to take out (its first characters are enough, or its name); None for all.
    later: what to do with later edits that were solved on top of it. `refuse` says which they are;
        `keep` leaves their deltas as they are; `solve` solves their specs anew (this loads the model).

    The base comes back byte for byte. Removing an edit nothing was solved on top of equals never
    having made it.

    Raises:
        SurgeryError: the folder is not edited, no such edit, or later edits build on it.
    """
    lineage = Lineage.of(Checkpoint.open(Path(folder)))
    if not lineage.edited:
        raise SurgeryError(f"{folder} is not edited: there is nothing to undo")
    if edit is None:
        return rebuild(lineage, [], Path(out), overwrite=overwrite)
    index = find(lineage, edit)
    before, gone, after = (
        lineage.deltas[:index],
        lineage.deltas[index],
        lineage.deltas[index + 1 :],
    )
    on_top = [delta for delta in after if gone.id in delta.stack]
    if on_top and later == "refuse":
        names = ", ".join(f"{delta.name} ({delta.id[:12]})" for delta in on_top)
        raise SurgeryError(
            f"{names} was solved on top of {gone.name}: say --later solve to solve again without "
            "it, or --later keep to leave it as it is"
        )
    if on_top and later == "solve":
        after = _solve_again(lineage, before, after)
    return rebuild(
        lineage, [*before, *after], Path(out), overwrite=overwrite, force=later == "keep"
    )


def find(lineage: Lineage, edit: str) -> int:
    """Index of the edit an id, the beginning of one, or a name stands for."""
    entries = lineage.record["edits"]
    hits = [i for i, e in enumerate(entries) if e["id"].startswith(edit) or e.get("name") == edit]
    if len(hits) == 1:
        return hits[0]
    have = ", ".join(f"{e['id'][:12]} ({e['name']})" for e in entries)
    problem = "no edit" if not hits else "more than one edit"
    raise SurgeryError(f"{lineage.checkpoint.path} has {problem} {edit!r}; it has {have}")


def _solve_again(lineage: Lineage, before: list[Delta], after: list[Delta]) -> list[Delta]:
    from surgery.methods import solve
    from surgery.model import load
    from surgery.spec import EditSpec
    from surgery.stack.memory import set_edits

    model = load(lineage.checkpoint.path)
    off = [delta.id for delta in lineage.deltas[len(before) :]]
    solved: list[Delta] = []
    for delta in after:
        spec = delta.metadata.get("spec")
        if spec is None:
            raise SurgeryError(f"{delta.name} holds no spec: it cannot be solved again")
        set_edits(model, solved, off=off)
        solved.append(solve(EditSpec.model_validate(spec), model))
    return solved
