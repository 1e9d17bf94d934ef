"""Deltas: solved edits as small files of weight changes, and adapters of others read as such changes.

`Delta` and its algebra need torch; looking into a file (`read_delta_header`) does not, so the names
here are loaded when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surgery.delta.file import SUFFIX, load_delta, read_delta_header, save_delta

if TYPE_CHECKING:
    from surgery.delta.adapter import read_adapter
    from surgery.delta.delta import Change, Delta, Dense, LowRank, add, combine, materialize

__all__ = [
    "SUFFIX",
    "Change",
    "Delta",
    "Dense",
    "LowRank",
    "add",
    "combine",
    "load_delta",
    "materialize",
    "read_adapter",
    "read_delta_header",
    "save_delta",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from surgery.delta import adapter, delta

        return getattr(adapter if name == "read_adapter" else delta, name)
    raise AttributeError(f"module 'surgery.delta' has no attribute {name!r}")
