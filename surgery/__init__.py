"""surgery: a workbench for editing language models after training.

    model = surgery.load("weights/smollm2-135m-instruct")
    delta = surgery.solve(surgery.EditSpec.load("edits/rome_paris.yaml"), model)
    with surgery.applied(model, delta):
        ...

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgery.errors import SurgeryError

if TYPE_CHECKING:
    from surgery.audit import audit
    from surgery.delta import Delta
    from surgery.methods import solve
    from surgery.model import Model, load
    from surgery.quick import ablate, edit
    from surgery.spec import EditSpec, Fact
    from surgery.stack import applied, apply, undo

_HOMES = {
    "Delta": "surgery.delta",
    "EditSpec": "surgery.spec",
    "Fact": "surgery.spec",
    "Model": "surgery.model",
    "ablate": "surgery.quick",
    "applied": "surgery.stack",
    "apply": "surgery.stack",
    "audit": "surgery.audit",
    "edit": "surgery.quick",
    "load": "surgery.model",
    "solve": "surgery.methods",
    "undo": "surgery.stack",
}
__all__ = [
    "Delta",
    "EditSpec",
    "Fact",
    "Model",
    "SurgeryError",
    "ablate",
    "applied",
    "apply",
    "audit",
    "edit",
    "load",
    "solve",
    "undo",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'surgery' has no attribute {name!r}")
