"""What leaves the workbench: LoRA adapters, control vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.export.control_vector import to_control_vector
    from surgery.export.lora import Exported, to_lora

_HOMES = {"Exported": "lora", "to_control_vector": "control_vector", "to_lora": "lora"}
__all__ = ["Exported", "to_control_vector", "to_lora"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"surgery.export.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'surgery.export' has no attribute {name!r}")
