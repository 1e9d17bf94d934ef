"""A spec to a delta: each edit is solved on the model as the edits before it leave it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from surgery.delta import Change, Delta, combine
from surgery.errors import SurgeryError
from surgery.methods.ablate import solve_ablate
from surgery.methods.alphaedit import solve_alphaedit
from surgery.methods.emmet import solve_emmet
from surgery.methods.finetune import solve_finetune
from surgery.methods.include import solve_include
from surgery.methods.memit import solve_memit
from surgery.methods.rome import solve_rome
from surgery.methods.solved import Solved, as_delta
from surgery.model import Model
from surgery.spec import EditSpec
from surgery.stack.memory import applied

# kind -> its solver. A new kind is a file here, its part in surgery/spec/edits.py, and this line.
SOLVERS: dict[str, Callable[[Any, Model, int], Solved]] = {
    "rome": solve_rome,
    "memit": solve_memit,
    "alphaedit": solve_alphaedit,
    "emmet": solve_emmet,
    "finetune": solve_finetune,
    "ablate": solve_ablate,
    "delta": solve_include,
}


def solve(spec: EditSpec, model: Model) -> Delta:
    """Solve every edit of a spec, in order, into one delta for the model's base.

    The model is left as it was. The delta holds the spec with all choices filled in, so it says by
    itself how it came about.

    Raises:
        SurgeryError: a part that cannot be done on this model; the message says which and why.
    """
    torch.manual_seed(spec.seed)
    started = time.monotonic()
    tensors: dict[str, Change] = {}
    parts: list[Any] = []
    diagnostics: list[dict[str, Any]] = []
    untie = edits_head = False
    for number, part in enumerate(spec.edits):
        done = {"edits": [p.model_dump(mode="json") for p in parts]}
        so_far = as_delta(model, tensors, {"spec": done, "edits_head": edits_head}, untie=untie)
        with applied(model, so_far):
            solved = SOLVERS[part.kind](part, model, spec.seed + number)
        ranks = {key: [_rank(tensors.get(key)), _rank(c)] for key, c in solved.tensors.items()}
        tensors = combine([tensors, solved.tensors])
        untie, edits_head = untie or solved.untie, edits_head or solved.edits_head
        if untie and edits_head:
            raise SurgeryError(
                "one edit of this spec unties the output head, another edits it with the embedding: "
                "say the same of both"
            )
        parts.append(solved.part)
        # Which columns of the factors belong to this edit: [first, how many] by tensor.
        diagnostics.append({"kind": part.kind, **solved.diagnostics, "ranks": ranks})
    filled = spec.model_copy(update={"edits": parts, "base": None})
    return as_delta(
        model,
        tensors,
        {
            "spec": filled.compact(),
            "spec_id": filled.id,
            "seed": spec.seed,
            "edits_head": edits_head,
            "diagnostics": diagnostics,
            "versions": versions(),
            "run": {"seconds": round(time.monotonic() - started, 2), "device": str(model.device)},
        },
        untie=untie,
    )


def _rank(change: Change | None) -> int:
    return 0 if change is None else change.rank


def versions() -> dict[str, str]:
    """Of everything the figures depend on."""
    found = {"python": platform.python_version()}
    for name in ("lm-surgery", "torch", "transformers", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
