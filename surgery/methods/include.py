"""kind: delta. An existing delta, a LoRA adapter folder, or the difference of two checkpoints."""

from __future__ import annotations

from pathlib import Path

from surgery.checkpoint import Checkpoint
from surgery.delta import Change, Dense, load_delta, read_adapter
from surgery.errors import SurgeryError
from surgery.methods.solved import Solved
from surgery.model import Model
from surgery.progress import track
from surgery.spec import DeltaEdit
from surgery.stack.lineage import Lineage
from surgery.stack.memory import stack_ids


def solve_include(part: DeltaEdit, model: Model, seed: int) -> Solved:
    """Read the changes at `path`, times `scale`.

    Raises:
        SurgeryError: nothing readable there, made for another base, or tensors that do not fit.
    """
    path = Path(part.path)
    untie = edits_head = False
    tensors: dict[str, Change]
    if part.minus is not None:
        edited, base = Checkpoint.open(path), Checkpoint.open(Path(part.minus))
        tensors = _difference(edited, base)
        edits_head = edited.tied_embeddings
    elif path.is_dir():
        adapter = read_adapter(path)
        tensors = {
            model.stored_key(f"{module}.weight"): change for module, change in adapter.items()
        }
    else:
        delta = load_delta(path)
        base_id = Lineage.of(model.checkpoint).base_id
        if delta.base_id != base_id:
            raise SurgeryError(
                f"{path} was solved for the base {delta.base_id[:12]}, this is {base_id[:12]}"
            )
        below = [one for one in delta.stack if one not in stack_ids(model)]
        if below:
            raise SurgeryError(
                f"{path} was solved on top of edit {below[0][:12]}, which this model does not have: "
                "apply that one first, or include both"
            )
        tensors, untie = dict(delta.tensors), delta.untie
        edits_head = bool(delta.metadata.get("edits_head"))
    for key, change in tensors.items():
        stored = model.checkpoint.tensors.get(key)
        if stored is None or tuple(stored.shape) != change.shape:
            have = "nothing" if stored is None else f"shape {tuple(stored.shape)}"
            raise SurgeryError(
                f"{path} changes {key} with shape {change.shape}; the model has {have} there"
            )
    scaled = {key: change.scaled(part.scale) for key, change in tensors.items()}
    return Solved(scaled, part, {"tensors": len(scaled)}, untie, edits_head)


def _difference(edited: Checkpoint, base: Checkpoint) -> dict[str, Change]:
    """edited - base for every tensor whose bytes differ, in float32."""
    if edited.tensors.keys() != base.tensors.keys():
        odd = sorted(edited.tensors.keys() ^ base.tensors.keys())[0]
        raise SurgeryError(f"{edited.path} and {base.path} differ in more than weights: {odd}")
    return {
        key: Dense(edited.read(key).float() - base.read(key).float())
        for key in track(sorted(base.tensors), "comparing checkpoints")
        if edited.hash(key) != base.hash(key)
    }
