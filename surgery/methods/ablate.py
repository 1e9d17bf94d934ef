"""Ablation: take a direction out of what the model's writers add to the residual stream.

For a writer y = W x + b and orthonormal directions R (k, d),

    R W' = (1 - strength) R W,   R b' = (1 - strength) R b.

strength 1 removes, 0.5 halves, negative amplifies: the model's own signal, so prompts that do not show
it are left alone. With readers A (k, d), A R^T = I, what is read and scaled is A W, and what changes is
still along R (`directions.reader`). Behind a post-norm (Gemma) both are taken through its gain first.
Orientation, biases and norms come from the architecture table, never from a shape.
"""

from __future__ import annotations

from typing import Any

import torch

from surgery.architecture import Writer
from surgery.delta import Change, Dense, LowRank
from surgery.directions import Direction, difference_of_means
from surgery.directions.algebra import (
    ablation,
    ablation_keeping_columns,
    ablation_of_bias,
    behind_norm,
    behind_norm_read,
    dual,
    leak,
    orthonormal,
)
from surgery.directions.find import project_off
from surgery.directions.reader import with_reader
from surgery.directions.select import FEWEST, select
from surgery.errors import SurgeryError
from surgery.methods.distilled import solve_distilled
from surgery.methods.solved import Solved
from surgery.methods.sparing import solve_shift
from surgery.model import Model
from surgery.progress import track
from surgery.spec import AblateEdit, read_prompts


def solve_ablate(part: AblateEdit, model: Model, seed: int) -> Solved:
    """Solve an ablate part.

    Raises:
        SurgeryError: no direction to remove, a writer or layer the model does not have, a tied
            embedding among the writers without saying what becomes of the head.
    """
    if part.spare is not None and part.sparing != "orthogonal":
        _check_sparing(part)
        how = solve_distilled if part.sparing == "distil" else solve_shift
        return how(_prompts(part), model, seed)
    directions, filled = _directions(part, model)
    R, readers = _rows(directions, filled)
    strengths = layer_strengths(filled, model.n_layers)
    chosen = [w for w in model.writers() if _is_chosen(w, part, strengths)]
    untie, edits_head = _tie_policy(part, model, chosen)
    if part.mean == "keep" and not all(w.bias for w in chosen):
        raise SurgeryError(
            "mean: keep needs a bias on every edited writer, and this architecture stores none: "
            "the change would be lost on saving; use mean: zero"
        )

    tensors: dict[str, Change] = {}
    leaks: dict[str, float] = {}
    for writer in track(chosen, "ablating writers"):
        strength = strengths[writer.layer] if writer.layer is not None else _overall(part)
        changes, leaks[writer.label] = _edit_writer(
            model, writer, R, readers, strength, part, [d.negative for d in directions]
        )
        tensors.update(changes)
    return Solved(
        tensors,
        filled,
        {
            "direction": {"layer": directions[0].layer, "position": directions[0].position},
            "selection": directions[0].metadata.get("selection"),
            "layers": [layer for layer, strength in enumerate(strengths) if strength],
            "writers": len(chosen),
            "leak": {"most": max(leaks.values()), "least": min(leaks.values())},
        },
        untie=untie,
        edits_head=edits_head,
    )


def _check_sparing(part: AblateEdit) -> None:
    """What has no meaning where only some prompts are to change is an error, not ignored."""
    if not isinstance(part.strength, float | int):
        raise SurgeryError(f"sparing: {part.sparing} takes one strength; choose where with layers")
    if part.strength == 0:
        raise SurgeryError("nothing to edit: strength 0")
    fields = ("writers", "reader", "project", "norm", "mean", "embeddings")
    fields += ("ridge",) if part.sparing == "distil" else ("position",)
    plain = AblateEdit()
    odd = [name for name in fields if getattr(part, name) != getattr(plain, name)]
    if odd:
        raise SurgeryError(
            f"{', '.join(odd)} has no meaning for an ablate part with sparing: {part.sparing}: leave it "
            "out, or say sparing: orthogonal"
        )


# ---------------------------------------------------------------------- the direction
def _directions(part: AblateEdit, model: Model) -> tuple[list[Direction], AblateEdit]:
    if part.direction is not None:
        files = [part.direction] if isinstance(part.direction, str) else part.direction
        found = [Direction.load(file, model.hidden_size) for file in files]
        if part.reader == "whitened" and any(d.reader is None for d in found):
            raise SurgeryError(f"{files[0]} holds no reader: leave out reader: whitened")
        return found, _with_choices(part, found[0], model)
    part = _prompts(part)
    assert isinstance(part.positive, list) and isinstance(part.negative, list)
    spare = part.spare if isinstance(part.spare, list) else None
    enough = min(len(part.positive), len(part.negative)) >= FEWEST
    if part.layer is None and part.position is None and spare is None and enough:
        selection = select(model, part.positive, part.negative, use_chat=part.chat)
        found = selection.direction
        # Solved again, with the layer now in place, the same prompts must give the same direction.
        used = {"positive": list(selection.positive), "negative": list(selection.negative)}
        part = part.model_copy(update=used)
    else:
        found = difference_of_means(
            model,
            part.positive,
            part.negative,
            part.layer,
            part.position or -1,
            spare,
            part.chat,
        )
    filled = part.model_copy(update={"layer": found.layer, "position": found.position})
    if part.reader == "whitened" and found.reader is None:
        assert isinstance(part.positive, list) and isinstance(part.negative, list)
        found = with_reader(model, found, part.positive, part.negative, part.chat)
    return [found], _with_choices(filled, found, model)


def _with_choices(part: AblateEdit, direction: Direction, model: Model) -> AblateEdit:
    """What a selection found best and the part does not say: the layers (unless the strengths are a curve
    over them) and the reader (unless another option needs the plain one)."""
    choices: dict[str, Any] = {}
    if part.reader is None:
        plain = direction.reader is None or any(_needs_plain(part).values())
        choices["reader"] = "plain" if plain else "whitened"
    if part.layers is None and direction.layers and isinstance(part.strength, float | int):
        choices["layers"] = [layer for layer in direction.layers if layer < model.n_layers]
    return part.model_copy(update=choices)


def _prompts(part: AblateEdit) -> AblateEdit:
    """The part with its prompts read from their files."""
    if part.positive is None or part.negative is None:
        raise SurgeryError("ablate needs positive and negative prompts, or a saved direction")
    return part.model_copy(
        update={
            "positive": read_prompts(part.positive),
            "negative": read_prompts(part.negative),
            "spare": read_prompts(part.spare) if part.spare is not None else None,
        }
    )


def _rows(
    directions: list[Direction], part: AblateEdit
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What is taken away (k, d), and what reads it; None: the same rows, which are then orthonormal."""
    if part.reader == "whitened":
        odd = [n for n, is_odd in _needs_plain(part).items() if is_odd]
        if odd:
            raise SurgeryError(f"{', '.join(odd)} goes with reader: plain only")
        vectors = torch.stack([d.vector.double() for d in directions])
        reads = torch.stack([d.vector if d.reader is None else d.reader for d in directions])
        return vectors, dual(vectors, reads)
    found = [project_off(d, d.negative) if part.project else d.vector for d in directions]
    return orthonormal(found), None


def _needs_plain(part: AblateEdit) -> dict[str, bool]:
    """Options that have a meaning for the orthogonal projection only, and whether they are set."""
    return {
        "project": part.project,
        "norm: columns": part.norm == "columns",
        "mean: keep": part.mean == "keep",
    }


# ---------------------------------------------------------------------- where, and how much
def layer_strengths(part: AblateEdit, n_layers: int) -> list[float]:
    """Strength at every layer: one number everywhere, a curve over the edited layers, or by layer."""
    layers = part.layers if part.layers is not None else list(range(n_layers))
    for layer in [*layers, *(part.strength if isinstance(part.strength, dict) else ())]:
        if not 0 <= layer < n_layers:
            raise SurgeryError(f"layer {layer} is outside this model (0 to {n_layers - 1})")
    values = [0.0] * n_layers
    if isinstance(part.strength, dict):
        for layer, strength in part.strength.items():
            values[layer] = strength
    elif isinstance(part.strength, list):
        for place, layer in enumerate(layers):
            values[layer] = _interpolated(part.strength, place / max(1, len(layers) - 1))
    else:
        for layer in layers:
            values[layer] = part.strength
    return values


def _interpolated(curve: list[float], at: float) -> float:
    """A curve given by evenly spaced points, read at a place between 0 and 1."""
    if len(curve) == 1:
        return curve[0]
    x = at * (len(curve) - 1)
    low = min(int(x), len(curve) - 2)
    return curve[low] + (curve[low + 1] - curve[low]) * (x - low)


def _overall(part: AblateEdit) -> float:
    """Strength for the embeddings, which belong to no layer."""
    if isinstance(part.strength, float | int):
        return float(part.strength)
    raise SurgeryError("embedding among the writers needs one strength, not a curve over layers")


def _is_chosen(writer: Writer, part: AblateEdit, strengths: list[float]) -> bool:
    name = "embedding" if writer.component == "positions" else writer.component
    if name not in part.writers:
        return False
    return writer.layer is None or strengths[writer.layer] != 0.0


def _tie_policy(part: AblateEdit, model: Model, chosen: list[Writer]) -> tuple[bool, bool]:
    if not chosen:
        raise SurgeryError("nothing to edit: no writers, or strength 0 at every layer")
    if not any(w.component == "embedding" for w in chosen):
        return False, False
    if not model.tied:
        if part.embeddings == "both":
            raise SurgeryError(
                "embeddings: both is for a tied output head, and this model's head is a tensor of its "
                "own: leave it out"
            )
        return False, False
    if part.embeddings is None:
        raise SurgeryError(
            "this model's input embedding is also its output head: say embeddings: untie to give "
            "the head a copy of its own, or embeddings: both to change both"
        )
    return part.embeddings == "untie", part.embeddings == "both"


# ---------------------------------------------------------------------- one writer
def _edit_writer(
    model: Model,
    writer: Writer,
    R: torch.Tensor,
    readers: torch.Tensor | None,
    strength: float,
    part: AblateEdit,
    negatives: list[torch.Tensor],
) -> tuple[dict[str, Change], float]:
    """Changes of a writer's weight and bias, and the share of the direction it still writes."""
    module: Any = model.module(writer.module)
    weight = module.weight.detach().cpu()
    rows, reads = R, readers
    if writer.post_norm is not None:
        norm: Any = model.module(writer.post_norm)
        gain = norm.weight.detach().cpu().double() + writer.norm_offset
        if reads is None:
            rows = behind_norm(R, gain)
        else:
            rows, reads = behind_norm_read(R, reads, gain)
    key = model.stored_key(writer.weight)
    changes: dict[str, Change] = {}
    if part.norm == "columns":
        changes[key] = Dense(
            ablation_keeping_columns(weight, rows, strength, writer.layout).float()
        )
    else:
        B, A = ablation(weight, rows, strength, writer.layout, reads)
        changes[key] = LowRank(A=A.float().contiguous(), B=B.float().contiguous())
    if writer.bias:
        change = ablation_of_bias(module.bias.detach().cpu(), rows, strength, reads)
        if part.mean == "keep":
            change = change + _restored_mean(rows, negatives, strength, model.n_layers)
        changes[model.stored_key(f"{writer.module}.bias")] = Dense(change.float())
    after = weight.double() + changes[key].value().double()
    return changes, leak(weight, after, rows if reads is None else reads, writer.layout)


def _restored_mean(
    rows: torch.Tensor, negatives: list[torch.Tensor], strength: float, n_layers: int
) -> torch.Tensor:
    """The negatives' mean along the directions, shared out among the 2 L writers of the layers."""
    mean = torch.stack([n.double() for n in negatives]).mean(0)
    return strength * (rows.T @ (rows @ mean)) / (2 * n_layers)
