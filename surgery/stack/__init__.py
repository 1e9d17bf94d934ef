"""An edited model is base + ordered deltas: put on in memory or on disk, toggled, undone exactly.

`lineage.read_record` works without torch; everything else is loaded when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.stack.conflicts import check
    from surgery.stack.disk import Applied, apply, rebuild
    from surgery.stack.lineage import Lineage, read_record
    from surgery.stack.memory import applied, bare, set_edits, stack, stack_ids
    from surgery.stack.removal import undo

_HOMES = {
    "check": "conflicts",
    "Applied": "disk",
    "apply": "disk",
    "rebuild": "disk",
    "Lineage": "lineage",
    "read_record": "lineage",
    "applied": "memory",
    "bare": "memory",
    "set_edits": "memory",
    "stack": "memory",
    "stack_ids": "memory",
    "undo": "removal",
}
__all__ = [
    "Applied",
    "Lineage",
    "applied",
    "apply",
    "bare",
    "check",
    "read_record",
    "rebuild",
    "set_edits",
    "stack",
    "stack_ids",
    "undo",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"surgery.stack.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'surgery.stack' has no attribute {name!r}")
