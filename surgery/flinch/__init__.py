"""The flinch test: who refuses, hedges or answers what, and what a repair costs.

`scorer` and `sets` work without torch; everything else is loaded when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgery.measure.scorer import Judged, judge

if TYPE_CHECKING:
    from surgery.flinch.measure import Flinch, flinch

_HOMES = {"Flinch": "measure", "flinch": "measure"}
__all__ = ["Flinch", "Judged", "flinch", "judge"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"surgery.flinch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'surgery.flinch' has no attribute {name!r}")
