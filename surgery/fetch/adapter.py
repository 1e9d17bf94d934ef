"""A LoRA adapter merged into its base: W' = W + change, in float32, rounded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.errors import SurgeryError

if TYPE_CHECKING:
    import torch

    from surgery.checkpoint import Checkpoint
    from surgery.delta import LowRank


def merge(base: Path, adapter: Path, out: Path) -> list[str]:
    """Write `base` with `adapter` merged in as the new folder `out`.

    Args:
        base: the checkpoint folder the adapter was trained on.
        adapter: a PEFT LoRA folder.
        out: the folder to make.

    Returns:
        The keys of the tensors that changed.

    Raises:
        SurgeryError: the folder is no plain LoRA adapter, or does not fit the base.
    """
    from surgery.checkpoint import Checkpoint, write_edited
    from surgery.delta import read_adapter

    checkpoint = Checkpoint.open(base)
    patches: dict[str, Callable[[], torch.Tensor]] = {}
    for module, change in read_adapter(adapter).items():
        key = f"{module}.weight"
        if key not in checkpoint.tensors:
            raise SurgeryError(f"{adapter}: {base} has no tensor {key} for it to change")
        shape = tuple(checkpoint.tensors[key].shape)
        if shape != change.shape:
            raise SurgeryError(f"{adapter}: a change of shape {change.shape} for {key} {shape}")
        patches[key] = _patch(checkpoint, key, change)
    return write_edited(checkpoint, out, patches)


def _patch(checkpoint: Checkpoint, key: str, change: LowRank) -> Callable[[], torch.Tensor]:
    def value() -> torch.Tensor:
        from surgery.delta import materialize

        weight = checkpoint.read(key)
        return materialize(weight, [change], weight.dtype)

    return value
